"""The alert rules, evaluated by Prometheus' own `promtool`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMTOOL = shutil.which("promtool")
RULES = Path(__file__).parents[3] / "docker" / "prometheus" / "rules.yaml"
UP = 'up{job="mochi", instance="gateway:8000"}'

pytestmark = pytest.mark.skipif(
    PROMTOOL is None and "CI" not in os.environ, reason="promtool is not installed"
)


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None, "apt install prometheus"
    return subprocess.run([PROMTOOL, *arguments], check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("values", "fires"),
    [
        pytest.param("1x10", False, id="it answers"),
        pytest.param("1 0x9", True, id="it does not answer"),
        pytest.param("1 1 stale", True, id="its address has gone with it"),
        pytest.param("1 1 _x3 1x6", False, id="it is back"),
    ],
)
def test_a_gateway_that_cannot_be_scraped_raises_an_alert(
    tmp_path: Path, values: str, *, fires: bool
) -> None:
    instance = {} if "stale" in values else {"instance": "gateway:8000"}
    labels = {"severity": "page", "job": "mochi"} | instance
    annotations = rule("MochiUnreachable")["annotations"]
    name = instance.get("instance", "The gateway")
    annotations["summary"] = re.sub("{{.*}}", name, annotations["summary"])
    expected = [{"exp_labels": labels, "exp_annotations": annotations}] if fires else []
    case = {
        "interval": "1m",
        "input_series": [{"series": UP, "values": values}],
        "alert_rule_test": [
            {"eval_time": "8m", "alertname": "MochiUnreachable", "exp_alerts": expected}
        ],
    }
    test = tmp_path / "test.yaml"
    test.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [case]}))
    result = promtool("test", "rules", str(test))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("waiting", "takers", "others", "fires"),
    [
        pytest.param(3, 0, 1, True, id="the workers run other models"),
        pytest.param(3, 1, 0, False, id="a worker runs it"),
        pytest.param(0, 0, 1, False, id="no request waits"),
        pytest.param(3, 0, 0, False, id="there is no worker at all"),
    ],
)
def test_requests_for_a_model_that_no_worker_runs_raise_an_alert(
    tmp_path: Path, waiting: int, takers: int, others: int, *, fires: bool
) -> None:
    labels = {"job": "mochi", "model": "mochi-1-fast"}
    annotations = {
        name: text.replace("{{ $labels.model }}", labels["model"]).replace("{{ $value }}", "3")
        for name, text in rule("MochiModelWithoutWorker")["annotations"].items()
    }
    alert = {"exp_labels": labels | {"severity": "warn"}, "exp_annotations": annotations}
    of_model, all_ = 'job="mochi", model="mochi-1-fast"', 'job="mochi"'
    series = {
        f"mochi_model_waiting_requests{{{of_model}}}": waiting,
        f"mochi_model_live_workers{{{of_model}}}": takers,
        f"mochi_live_workers{{{all_}}}": takers + others,
    }
    case = {
        "interval": "1m",
        "input_series": [
            {"series": name, "values": f"{value}x10"} for name, value in series.items()
        ],
        "alert_rule_test": [
            {
                "eval_time": "8m",
                "alertname": "MochiModelWithoutWorker",
                "exp_alerts": [alert] if fires else [],
            }
        ],
    }
    test = tmp_path / "test.yaml"
    test.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": [case]}))
    result = promtool("test", "rules", str(test))
    assert result.returncode == 0, result.stdout + result.stderr


def test_promtool_finds_no_fault_in_the_rules() -> None:
    result = promtool("check", "rules", str(RULES))
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_sends_alerts_to_the_alertmanager_of_compose() -> None:
    folder = RULES.parent
    # Not the key's file, which the operator makes.
    result = promtool("check", "config", "--syntax-only", str(folder / "prometheus.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr
    [manager] = yaml.safe_load((folder / "prometheus.yaml").read_text())["alerting"][
        "alertmanagers"
    ]
    [target] = manager["static_configs"][0]["targets"]
    host, _, port = target.partition(":")
    services = yaml.safe_load((folder.parents[1] / "compose.yaml").read_text())["services"]
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    config = yaml.safe_load((folder / "alertmanager.yaml").read_text())
    assert config["route"]["receiver"] in {each["name"] for each in config["receivers"]}


def rule(name: str) -> dict[str, Any]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    [found] = [rule for group in groups for rule in group["rules"] if rule["alert"] == name]
    return dict(found)
