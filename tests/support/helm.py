"""Renders the chart with the real Helm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "docker" / "chart"
HELM = shutil.which("helm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

needs_helm = pytest.mark.skipif(
    HELM is None and "CI" not in os.environ, reason="Helm is not installed: scripts/helm"
)

Object = dict[str, Any]
VALUES = sorted((ROOT / "tests" / "unit" / "docker" / "chart" / "values").glob("*.yaml"))
"""Files of values as operators might write them."""
EVERYTHING, PASSWORD, TRIAL = (
    ("--values", str(VALUES[0].with_name(f"{name}.yaml")))
    for name in ("everything", "password", "trial")
)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert HELM is not None, "scripts/helm"
    return subprocess.run([HELM, *arguments], check=False, capture_output=True, text=True)


def template(*arguments: str) -> subprocess.CompletedProcess[str]:
    return helm("template", "mochi", str(CHART), "--namespace", "video", *arguments)


@cache
def rendered(*arguments: str) -> tuple[Object, ...]:
    """All objects. The arguments are those of `helm template`."""
    result = template(*arguments)
    assert result.returncode == 0, result.stderr
    return tuple(filter(None, yaml.safe_load_all(result.stdout)))


def refusal(*values: str) -> str:
    """What Helm says of values, like `keda.enabled=true`, that it refuses."""
    result = template(*(part for value in values for part in ("--set", value)))
    assert result.returncode == 1, result.stdout
    return result.stderr


def one(objects: tuple[Object, ...], kind: str, name: str = "") -> Object:
    """The only object of a kind, or the one whose name ends so."""
    [found] = [it for it in objects if it["kind"] == kind and it["metadata"]["name"].endswith(name)]
    return found


def pods(objects: tuple[Object, ...]) -> dict[str, Object]:
    """The template of each workload's pods, by component."""
    return {
        it["metadata"]["labels"]["app.kubernetes.io/component"]: it["spec"]["template"]
        for it in objects
        if it["kind"] in {"Deployment", "StatefulSet", "Job"}
    }


def containers(pod: Object) -> list[Object]:
    spec = pod["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def variables(container: Object) -> dict[str, str]:
    """The value of each variable; of one from a Secret, empty."""
    return {each["name"]: each.get("value", "") for each in container.get("env", [])}
