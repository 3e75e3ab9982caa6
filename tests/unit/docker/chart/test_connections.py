"""Services, policies, ingress, metrics and autoscaling point at what there is."""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path

import pytest
import yaml

from server.api.metrics import Scrape
from server.transport.traffic import Traffic
from tests.integration.monitoring.test_alerts import PROMTOOL, promtool
from tests.support.helm import (
    CHART,
    EVERYTHING,
    PASSWORD,
    ROOT,
    TRIAL,
    Object,
    containers,
    helm,
    needs_helm,
    one,
    pods,
    rendered,
)
from worker.store.reports.statistics import QueueSurvey, Survey

MONITORING = (*PASSWORD, "--set", "metrics.dashboard.enabled=true")

pytestmark = needs_helm


def chosen(objects: tuple[Object, ...], selector: dict[str, str]) -> set[str]:
    """The components whose pods have these labels."""
    return {
        component
        for component, pod in pods(objects).items()
        if selector.items() <= pod["metadata"]["labels"].items()
    }


def test_every_selector_finds_the_pods_of_its_component_alone() -> None:
    objects = (*rendered(), *rendered(*PASSWORD), *rendered(*EVERYTHING))
    for each in objects:
        spec = each.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {}
        labels = selector.get("matchLabels", selector)
        if labels:
            component = each["metadata"]["labels"]["app.kubernetes.io/component"]
            assert chosen(objects, labels) == {component}, each


def test_the_broker_is_reached_by_gateways_and_workers_alone() -> None:
    objects = rendered()
    policy = one(objects, "NetworkPolicy", "valkey")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    [rule] = policy["ingress"]
    allowed = [chosen(objects, each["podSelector"]["matchLabels"]) for each in rule["from"]]
    assert allowed == [{"gateway"}, {"worker"}]


def test_policies_name_the_ports_of_pods_by_number() -> None:
    """Not every network looks a name up for traffic that goes through a Service."""
    objects = rendered()
    listening = {
        component: {each["containerPort"] for container in containers(pod)
                    for each in container.get("ports", [])}
        for component, pod in pods(objects).items()
    }  # fmt: skip
    for component in ("gateway", "valkey"):
        [rule] = one(objects, "NetworkPolicy", component)["spec"]["ingress"]
        assert {each["port"] for each in rule["ports"]} == listening[component]
        [port] = one(objects, "Service", component)["spec"]["ports"]
        assert {port["port"]} == listening[component]
    broker = one(objects, "NetworkPolicy", "worker")["spec"]["egress"][-1]
    assert {each["port"] for each in broker["ports"]} == listening["valkey"]


def test_a_worker_reaches_the_broker_and_names_alone_while_it_needs_no_more() -> None:
    objects = rendered()
    names, broker = one(objects, "NetworkPolicy", "worker")["spec"]["egress"]
    assert {each["port"] for each in names["ports"]} == {53, 5353}
    assert chosen(objects, broker["to"][0]["podSelector"]["matchLabels"]) == {"valkey"}
    bucket = rendered("--set", "outputs.s3=s3://videos/mochi")
    assert one(bucket, "NetworkPolicy", "worker")["spec"]["policyTypes"] == ["Ingress"]
    named = one(rendered(*EVERYTHING), "NetworkPolicy", "worker")["spec"]["egress"]
    assert [each["port"] for each in named[-1]["ports"]] == [6379, 9000, 4318]


def test_nginx_waits_longer_than_a_blocking_call_and_holds_no_event_back() -> None:
    annotations = one(rendered(*EVERYTHING), "Ingress")["metadata"]["annotations"]
    prefix = "nginx.ingress.kubernetes.io/"
    assert annotations[f"{prefix}proxy-read-timeout"] == "920"  # MOCHI_V1_SECONDS is 900
    assert annotations[f"{prefix}proxy-buffering"] == "off"
    traefik = one(rendered(*TRIAL), "Ingress")
    assert "annotations" not in traefik["metadata"]
    assert traefik["spec"]["ingressClassName"] == "traefik"


def rules(*values: str) -> dict[str, Object]:
    groups = one(rendered(*values), "PrometheusRule")["spec"]["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_the_rules_are_those_of_compose_and_one_for_workers_that_load_for_long() -> None:
    text = (ROOT / "docker" / "prometheus" / "rules.yaml").read_text()
    release = 'job="mochi", namespace="video"'
    [group] = yaml.safe_load(text.replace('job="mochi"', release))["groups"]
    compose = {rule["alert"]: rule for rule in group["rules"]}
    # Each upgrade would page, and each scaling to zero.
    del compose["MochiNoWorker"]
    ours = rules(*MONITORING)
    assert ours.pop("MochiNoWorkerComes")["for"] == "3600s"
    assert ours == compose
    assert rules(*EVERYTHING).keys() == compose.keys() - {"MochiLogLost"} | {"MochiNoWorkerComes"}


def series(figure: str, values: str, *, namespace: str = "video", job: str = "mochi") -> Object:
    labels = f'instance="gateway", job="{job}", namespace="{namespace}"'
    return {"series": f"{figure}{{{labels}}}", "values": values}


@pytest.mark.skipif(PROMTOOL is None and "CI" not in os.environ, reason="promtool is not installed")
def test_an_alert_is_of_one_release_whatever_the_others_do(tmp_path: Path) -> None:
    spec = one(rendered(*MONITORING), "PrometheusRule")["spec"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    rule = rules(*MONITORING)["MochiNoWorkerComes"]
    alert = {
        "exp_labels": {"severity": "page", "job": "mochi", "namespace": "video"},
        "exp_annotations": rule["annotations"],
    }
    case = {
        "interval": "1m",
        "input_series": [
            series("mochi_unfinished_requests", "1x100"),
            series("mochi_live_workers", "1 1 0x98"),
            series("mochi_unfinished_requests", "0x100", namespace="idle"),
            series("mochi_live_workers", "0x100", namespace="idle"),
            series("mochi_unfinished_requests", "1x100", job="other"),
            series("mochi_live_workers", "1x100", job="other"),
        ],
        "alert_rule_test": [
            {"eval_time": time, "alertname": rule["alert"], "exp_alerts": expected}
            for time, expected in (("61m", []), ("63m", [alert]))
        ],
    }
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [case]})
    )
    result = promtool("test", "rules", str(tmp_path / "test.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_calls_the_job_what_rules_and_dashboard_call_it() -> None:
    def jobs(release: str) -> tuple[str, set[str]]:
        result = helm("template", release, str(CHART), *MONITORING)
        objects = tuple(filter(None, yaml.safe_load_all(result.stdout)))
        [endpoint] = one(objects, "ServiceMonitor")["spec"]["endpoints"]
        [relabeling] = endpoint["relabelings"]
        assert relabeling["targetLabel"] == "job"
        asked = f"{one(objects, 'PrometheusRule')}{one(objects, 'ConfigMap')}"
        return relabeling["replacement"], set(re.findall(r'job=\\*"([^"\\]+)', asked))

    for release, job in (("mochi", "mochi"), ("b", "b-mochi")):
        assert jobs(release) == (job, {job})
    [endpoint] = one(rendered(*MONITORING), "ServiceMonitor")["spec"]["endpoints"]
    assert "authorization" not in endpoint
    [endpoint] = one(rendered(*EVERYTHING), "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "admin-key", "key": "key"}


def test_the_dashboard_is_that_of_compose_for_one_release() -> None:
    data = one(rendered(*MONITORING), "ConfigMap")["data"]
    board = ROOT / "docker" / "grafana" / "dashboards" / "mochi.json"
    of_release = board.read_text().replace(r"job=\"mochi\"", r"job=\"mochi\", namespace=\"video\"")
    expected = json.loads(of_release) | {"title": "mochi-server: video/mochi"}
    found = json.loads(data["mochi.json"])
    assert found | {"uid": expected["uid"]} == expected
    for link in (CHART / "files").iterdir():
        assert link.resolve().is_relative_to(ROOT / "docker")


def test_two_releases_do_not_overwrite_each_others_dashboard() -> None:
    """Grafana tells dashboards apart by a uid of at most 40 characters."""
    found = set()
    for release, namespace in (("mochi", "video"), ("mochi", "test"), ("m" * 53, "video")):
        values = (*MONITORING, "--namespace", namespace)
        text = helm("template", release, str(CHART), *values).stdout
        data = one(tuple(filter(None, yaml.safe_load_all(text))), "ConfigMap")["data"]
        found.add(json.loads(data["mochi.json"])["uid"])
    assert len(found) == 3
    assert all(re.fullmatch(r"[\w-]{1,40}", uid, re.ASCII) for uid in found)


def test_documented_commands_install_a_packaged_chart_as_that_of_a_checkout_has_no_images() -> None:
    text = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    commands = re.findall(r"^\$ helm (?:install|upgrade) .+$", text, re.MULTILINE)
    assert len(commands) == 2
    assert all("mochi mochi-server-$VERSION.tgz " in command for command in commands)


def test_keda_reads_a_figure_that_there_is_and_may_scale_to_zero() -> None:
    objects = rendered(*EVERYTHING)
    scaled = one(objects, "ScaledObject")["spec"]
    assert (
        scaled["scaleTargetRef"]["name"] == one(objects, "Deployment", "worker")["metadata"]["name"]
    )
    assert scaled["minReplicaCount"] == 0
    [trigger] = scaled["triggers"]
    figure = trigger["metadata"]["valueLocation"]
    survey = Survey({"mochi-1": QueueSurvey(2, 3, 0)}, [], 0, {}, {})
    text = Scrape("1", Traffic(), survey, {}).text().decode()
    assert f"\n{figure} 5.0\n" in text
    service = one(objects, "Service", "gateway")
    assert trigger["metadata"]["url"] == (
        f"http://{service['metadata']['name']}.{service['metadata']['namespace']}.svc:8000/metrics"
    )
    assert trigger["metadata"]["authMode"] == "bearer"
    token = one(objects, "TriggerAuthentication")
    assert trigger["authenticationRef"]["name"] == token["metadata"]["name"]


def test_the_notes_name_what_there_is_and_what_is_missing() -> None:
    def notes(*values: str) -> str:
        result = helm("install", "mochi", str(CHART), "--dry-run=client", *values)
        assert result.returncode == 0, result.stderr
        return result.stdout.partition("NOTES:")[2]

    text = notes()
    for kind, name in re.findall(r"(deployment|service)/(\S+)", text):
        assert one(rendered(), kind.title(), name)
    assert "component=weights" in text
    assert "WARNING" not in text
    assert "MOCHI_TRUSTED_PROXIES is not set" in notes(*TRIAL)
    assert "every pod of the cluster can reach the broker" in notes(*TRIAL)
    assert "https://videos.example/v1" in notes(*EVERYTHING)
    assert "https://videos.example/v1" in notes(*TRIAL)  # the controller's certificate
    warning = "everyone who reaches the Ingress can read /metrics"
    assert warning not in notes(*TRIAL)
    assert warning in notes(*TRIAL, "--set", "metrics.public=true")


def test_a_package_holds_the_rules_and_the_dashboard_themselves(tmp_path: Path) -> None:
    """In the repository they are links."""
    result = helm("package", str(CHART), "--destination", str(tmp_path))
    assert result.returncode == 0, result.stderr
    [package] = tmp_path.glob("*.tgz")
    with tarfile.open(package) as files:
        for name in ("rules.yaml", "mochi.json"):
            content = files.extractfile(f"mochi-server/files/{name}")
            assert content is not None
            assert content.read() == (CHART / "files" / name).read_bytes()
