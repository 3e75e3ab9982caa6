"""The page at /: its form asks for what the model accepts, and says so in the model's numbers."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import server.page
from models.mock.scenario import FORM, SCENARIO, Scenario
from models.request.catalogue import CATALOGUE
from models.request.example import EXAMPLE_REQUEST, SHORT_PROMPTS
from models.request.params import RequestParams, parse_params
from server.api.submit.plan import DRAFT_STEPS
from server.page import SCENARIOS, Page

FOLDER = Path(server.page.__file__).parent
PARAMETERS: dict[str, dict[str, Any]] = RequestParams.model_json_schema()["properties"]


class Reader(HTMLParser):
    """The elements of a page, each with its attributes, and what stands in text areas."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._area: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._area = dict(attrs).get("name") if tag == "textarea" else None

    def handle_data(self, data: str) -> None:
        if self._area:
            self.texts[self._area] = data.removeprefix("\n")  # as browsers do
            self._area = None

    def all(self, attribute: str) -> dict[str, dict[str, str | None]]:
        """The elements that have this attribute, by its value."""
        return {str(found[attribute]): found for _, found in self.elements if attribute in found}


READER = Reader(Page.render().html.decode())


def test_the_form_has_every_parameter_and_no_other() -> None:
    named = READER.all("name").keys() - {"viewport", "color-scheme", "tab", SCENARIO}
    named -= {DRAFT_STEPS}
    assert named == RequestParams.model_fields.keys()


def test_a_number_has_the_range_and_the_default_of_the_model() -> None:
    for name, parameter in PARAMETERS.items():
        if parameter.get("type") not in {"number", "integer"}:
            continue
        fields = [READER.all("name")[name]]
        fields += [READER.all("data-for")[name]] if name in READER.all("data-for") else []
        assert len(fields) == (1 if name == "seed" else 2)
        for field in fields:
            assert field["min"] == str(parameter["minimum"])
            assert field["max"] == str(parameter["maximum"])
            assert field["value"] == str(parameter["default"])
        assert fields[0]["placeholder"] == str(parameter["default"])
        assert fields[0]["step"] == ("1" if parameter["type"] == "integer" else "any")


def test_a_short_prompt_is_there_and_examples_are_a_button_away() -> None:
    assert READER.texts["prompt"] in SHORT_PROMPTS.values()
    examples = [json.loads(values) for values in READER.all("data-fill")]
    assert examples[-1] == EXAMPLE_REQUEST
    assert [example["prompt"] for example in examples[:-1]] == [*SHORT_PROMPTS.values()]
    for example in examples:
        parse_params(example)


def test_a_text_has_the_limit_of_the_model() -> None:
    for name, parameter in PARAMETERS.items():
        if parameter.get("type") != "string" or "enum" in parameter:
            continue
        field = READER.all("name")[name]
        assert field["data-most"] == str(parameter["maxLength"])
        assert ("required" in field) == ("default" not in parameter)


def test_every_format_can_be_chosen_and_what_is_a_default_is_not_sent() -> None:
    format_ = PARAMETERS["format"]
    options = {found["value"] for tag, found in READER.elements if tag == "option"}
    offered = options - {*SCENARIOS, *CATALOGUE}
    assert offered == {*format_["enum"]} - {format_["default"]}
    for name in ("poster", "last_frame"):
        box = READER.all("name")[name]
        assert (box["type"], box["value"], "checked" in box) == ("checkbox", "true", False)


def test_every_mock_scenario_can_be_chosen() -> None:
    values = {value for value in SCENARIOS if value}
    for value in values:
        Scenario.parse(value)
    named = {value.partition(":")[0] for value in values}
    assert named == {*re.findall(r"[a-z_]{3,}", FORM)}


def test_every_id_that_the_page_or_a_script_speaks_of_is_there_once() -> None:
    ids = [str(found["id"]) for _, found in READER.elements if "id" in found]
    assert len(ids) == len(set(ids))
    spoken_of = {
        name
        for _, found in READER.elements
        for attribute in ("for", "aria-describedby", "aria-labelledby", "aria-controls")
        for name in (found.get(attribute) or "").split()
    }
    for script in (FOLDER / "assets").glob("*.js"):
        spoken_of |= {*re.findall(r'\bat\("([\w-]+)"\)', script.read_text())}
    assert spoken_of <= set(ids)


def test_no_range_and_no_default_stands_in_a_script() -> None:
    numbers = {
        str(parameter.get(key))
        for parameter in PARAMETERS.values()
        for key in ("minimum", "maximum", "default", "maxLength")
    }
    scripts = "".join(script.read_text() for script in (FOLDER / "assets").glob("*.js"))
    telling = {number for number in numbers if len(number) > 2}  # 10 is anything
    assert "985521" in telling
    assert not telling & {*re.findall(r"\d+", scripts)}
