"""Each model has a name, ranges and defaults that fit together."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from models.errors import InvalidParametersError
from models.request.catalogue import CATALOGUE, FAST_MOCHI, MOCHI, Model
from models.request.params import MODEL, GenerateParams, RequestParams, parse_params
from models.settings import EngineSettings
from models.weights.folder import is_hub_id

MODELS = [*CATALOGUE.values()]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.slug)
def test_a_model_has_a_name_for_paths_and_parameters_that_know_it(model: Model) -> None:
    assert CATALOGUE[model.slug] is model
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", model.slug)
    assert model.parameters.model == model.slug
    assert is_hub_id(model.weights)


def test_the_first_model_is_the_default_one() -> None:
    assert next(iter(CATALOGUE)) == MODEL == MOCHI.slug
    assert MOCHI.parameters is GenerateParams


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.slug)
def test_defaults_are_in_their_ranges(model: Model) -> None:
    defaults = model.request(prompt="a pond").model_dump()
    params, unknown = parse_params(defaults, model.request)
    assert (params.model_dump(), unknown) == (defaults, [])


@pytest.mark.parametrize(
    "text", ["title", "weights", "schedule", "mock_seed"], ids=lambda name: name
)
def test_no_two_models_share(text: str) -> None:
    assert len({getattr(model, text) for model in MODELS}) == len(MODELS)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("steps", 17, "`steps` must be a whole number from 4 to 16; got 17."),
        ("steps", 3, "`steps` must be a whole number from 4 to 16; got 3."),
        ("guidance_scale", 3.1, "`guidance_scale` must be a number from 1 to 3; got 3.1."),
        ("guidance_scale", 0.9, "`guidance_scale` must be a number from 1 to 3; got 0.9."),
        ("frames", 161, "`frames` must be a whole number from 1 to 160; got 161."),
    ],
)
def test_the_fast_model_names_its_own_ranges(name: str, value: Any, rule: str) -> None:
    with pytest.raises(InvalidParametersError) as refused:
        parse_params({"prompt": "a pond", name: value}, FAST_MOCHI.request)
    assert str(refused.value) == rule


def test_the_fast_model_makes_few_steps_with_little_guidance_unless_told_otherwise() -> None:
    params, _ = parse_params({"prompt": "a pond"}, FAST_MOCHI.request)
    assert (params.steps, params.guidance_scale, params.frames) == (8, 1.5, 52)


@pytest.mark.parametrize(("name", "most"), [("steps", 16), ("frames", 160), ("guidance_scale", 3)])
def test_a_number_has_an_upper_bound(name: str, most: float) -> None:
    assert FAST_MOCHI.parameters.most(name) == most


@pytest.mark.parametrize(
    ("given", "slugs"),
    [
        ("mochi-1", ["mochi-1"]),
        ("mochi-1-fast", ["mochi-1-fast"]),
        ("mochi-1-fast, mochi-1", ["mochi-1-fast", "mochi-1"]),
        ("mochi-1,mochi-1", ["mochi-1"]),
    ],
)
def test_a_worker_runs_the_models_that_are_named(given: str, slugs: list[str]) -> None:
    settings = EngineSettings(models=given)
    assert [model.slug for model in settings.served] == slugs
    assert settings.weights == CATALOGUE[slugs[0]].weights


@pytest.mark.parametrize(
    ("given", "unknown"), [("mochi-2", "mochi-2"), ("mochi-1,", "without a name")]
)
def test_an_unknown_model_is_refused_with_those_that_there_are(given: str, unknown: str) -> None:
    with pytest.raises(ValidationError, match=f"no model {unknown}; there are: mochi-1, mochi-1-f"):
        EngineSettings(models=given)


def test_weights_that_are_named_are_loaded_whatever_the_model() -> None:
    assert EngineSettings(models="mochi-1-fast", weights="me/mine").weights == "me/mine"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.slug)
def test_a_request_has_the_models_parameters_and_those_of_files(model: Model) -> None:
    asked = model.request(prompt="a pond", format="gif", poster=True)
    assert asked.model == model.slug
    frames = model.parameters.model_validate_json(asked.model_dump_json())
    assert frames == model.parameters(prompt="a pond")
    assert {*model.request.model_fields} == {*RequestParams.model_fields}
