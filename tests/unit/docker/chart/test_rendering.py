"""The chart's objects are valid for Kubernetes and the operators, and as they were."""

from __future__ import annotations

import os
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.support.helm import CHART, VALUES, Object, helm, needs_helm, rendered, template

HERE = Path(__file__).parent
KUBERNETES = "1.35"
OPERATORS = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
"""Models of their custom resources."""
CHANGING = [
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"(?<=chart: mochi-server-).+|(?<=version: ).+|(?<=-weights-)[0-9a-f]{8}$",
        r"(?<=mochi\.json: )\|-\n(    .*\n|\n)+",
    )
]
"""With each version, or tested elsewhere."""

pytestmark = needs_helm


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_every_object_fits_its_strict_schema(values: Path) -> None:
    kubernetes = import_module("kubernetes_validate")
    for each in rendered("--values", str(values)):
        if each["apiVersion"] in OPERATORS:
            faults = [error.message for error in schema(each).iter_errors(each)]
            assert not faults, each
        else:
            kubernetes.validate(each, KUBERNETES, strict=True)


def test_a_schema_of_an_operator_refuses_a_wrong_name() -> None:
    [each] = [
        it for it in rendered("--values", str(HERE / "values" / "everything.yaml"))
        if it["kind"] == "ScaledObject"
    ]  # fmt: skip
    wrong = each | {"spec": each["spec"] | {"minReplicas": 0}}
    assert [error.message for error in schema(wrong).iter_errors(wrong)]


def schema(each: Object) -> Any:
    return _schema(OPERATORS[each["apiVersion"]], each["kind"])


@cache
def _schema(module: str, kind: str) -> Any:
    model = getattr(import_module(module), kind)
    schema = _strict(model.model_json_schema(by_alias=True))
    return import_module("jsonschema").Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    """With no properties but those that are named."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return closed | {name: _strict(each) for name, each in schema.items()}


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_helm_finds_no_fault(values: Path) -> None:
    result = helm("lint", "--strict", "--quiet", "--values", str(values), str(CHART))
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    "source", sorted((CHART / "templates").glob("*.yaml")), ids=lambda it: it.stem
)
def test_the_output_with_everything_is_as_it_was(source: Path) -> None:
    """GOLDEN=1 writes it anew."""
    values = HERE / "values" / ("password.yaml" if source.stem == "valkey" else "everything.yaml")
    text = template("--values", str(values), "--show-only", f"templates/{source.name}").stdout
    for changing in CHANGING:
        text = changing.sub("…", text)
    golden = HERE / "golden" / source.name
    if os.environ.get("GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
