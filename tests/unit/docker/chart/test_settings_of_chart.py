"""What the chart sets is a setting, and every setting can be set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from server.settings import ServerSettings
from tests.support.helm import (
    CHART,
    EVERYTHING,
    ROOT,
    VALUES,
    Object,
    containers,
    helm,
    needs_helm,
    one,
    pods,
    refusal,
    rendered,
    variables,
)

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
RESERVED = set(SCHEMA["$defs"]["settings"]["propertyNames"]["not"]["anyOf"][0]["enum"])
"""Settings with a value of their own."""
SETTINGS = {f"MOCHI_{name.upper()}" for name in ServerSettings.model_fields}

pytestmark = needs_helm


def ours(pod: Object) -> set[str]:
    names = {name for container in containers(pod) for name in variables(container)}
    return {name for name in names if name.startswith("MOCHI_")}


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_every_variable_is_a_setting_with_a_valid_value(
    values: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pod in pods(rendered("--values", str(values))).values():
        for container in containers(pod):
            with monkeypatch.context() as patch:
                for name, value in variables(container).items():
                    patch.setenv(name, value)
                assert ours(pod) <= SETTINGS
                ServerSettings()


def test_a_setting_that_has_a_value_of_its_own_is_refused_among_the_others() -> None:
    everything = rendered(*EVERYTHING)
    own = set[str]().union(*map(ours, pods(everything).values()))
    given = {"MOCHI_RETENTION_SECONDS", "MOCHI_TRUSTED_PROXIES", "MOCHI_V1_SECONDS"}
    given |= {"MOCHI_PROFILE", "MOCHI_CHECKPOINT_STEPS", "MOCHI_WEIGHTS", "MOCHI_PUBLIC_URL"}
    given |= {"MOCHI_MODERATION_TERMS"}
    assert own - given == RESERVED - {"MOCHI_WORKERS"}
    assert RESERVED < SETTINGS
    assert "MOCHI_REDIS_URL" in refusal("settings.MOCHI_REDIS_URL=redis://other")
    # A pod has the cards of one worker; `worker.replicas` starts more.
    assert "MOCHI_WORKERS" in refusal("worker.settings.MOCHI_WORKERS=4")
    # Probes, KEDA and the ServiceMonitor speak HTTP.
    assert "MOCHI_TLS_CERT" in refusal("gateway.settings.MOCHI_TLS_CERT=/tls/cert.pem")


def test_a_setting_of_a_component_wins_over_that_of_all() -> None:
    objects = rendered("--set", "settings.MOCHI_LEASE_SECONDS=20",
                       "--set", "gateway.settings.MOCHI_LEASE_SECONDS=30")  # fmt: skip
    found = {name: variables(containers(pod)[-1]) for name, pod in pods(objects).items()}
    assert found["gateway"]["MOCHI_LEASE_SECONDS"] == "30"
    assert found["worker"]["MOCHI_LEASE_SECONDS"] == "20"


@pytest.mark.parametrize(("value", "written"), [("false", "false"), ("0", "0"), ('""', None)])
def test_a_component_switches_off_what_is_set_for_all(
    tmp_path: Path, value: str, written: str | None
) -> None:
    """An empty text is the default of the setting, whose variable is left out."""
    values = tmp_path / "values.yaml"
    values.write_text(
        "settings: {MOCHI_CANCEL_ON_DISCONNECT: true, MOCHI_V1_SECONDS: 300}\n"
        f"gateway: {{settings: {{MOCHI_CANCEL_ON_DISCONNECT: {value}, MOCHI_V1_SECONDS: ''}}}}\n"
        "ingress: {enabled: true}"
    )
    objects = rendered("--values", str(values))
    gateway = variables(containers(pods(objects)["gateway"])[-1])
    assert gateway.get("MOCHI_CANCEL_ON_DISCONNECT") == written
    timeout = "nginx.ingress.kubernetes.io/proxy-read-timeout"
    assert one(objects, "Ingress")["metadata"]["annotations"][timeout] == "620"


@pytest.mark.parametrize(
    ("given", "url"),
    [(None, "https://videos.example"), ("https://other/mochi", "https://other/mochi")],
)
def test_links_have_the_host_of_the_ingress_unless_the_operator_names_another(
    given: str | None, url: str
) -> None:
    setting = ("--set", f"settings.MOCHI_PUBLIC_URL={given}") if given else ()
    gateway = pods(rendered(*EVERYTHING, *setting))["gateway"]
    assert variables(containers(gateway)[-1])["MOCHI_PUBLIC_URL"] == url


def test_names_are_short_enough_for_those_that_kubernetes_derives() -> None:
    result = helm("template", "a" * 53, str(CHART))
    assert max(len(it["metadata"]["name"]) for it in yaml.safe_load_all(result.stdout) if it) <= 63


def test_a_large_number_stays_a_whole_number(tmp_path: Path) -> None:
    """Helm reads numbers of a file as floats, and would write 1.048576e+06."""
    values = tmp_path / "values.yaml"
    values.write_text("settings: {MOCHI_BODY_BYTES: 1048576, MOCHI_STEP_CACHE: 0.06}")
    worker = variables(containers(pods(rendered("--values", str(values)))["worker"])[-1])
    assert worker["MOCHI_BODY_BYTES"] == "1048576"
    assert worker["MOCHI_STEP_CACHE"] == "0.06"


def test_the_chart_runs_the_images_of_the_dockerfile() -> None:
    """Their user, their folders, and the file that the heartbeat touches."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    objects = pods(rendered())
    for component in ("gateway", "worker"):
        pod = objects[component]["spec"]
        assert f"USER {pod['securityContext']['runAsUser']}" in dockerfile
        mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert {"/data", "/data/outputs", "/tmp"} <= mounts
    worker = variables(objects["worker"]["spec"]["containers"][0])
    assert f"MOCHI_ALIVE_FILE={worker['MOCHI_ALIVE_FILE']}\n" in dockerfile


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (("outputs.volume.size=",), "set outputs.s3, or outputs.volume.size"),
        (("weights.volume.size=",), "set weights.volume.size"),
        (("broker.volume.size=",), "minLength"),
        (("broker.bundled=false",), "Set broker.urlSecret"),
        (("keda.enabled=true",), "set metrics.keySecret"),
        (("metrics.serviceMonitor.enabled=true",), "set metrics.keySecret"),
        (("settings.MOCHI_MOCK=true", "weights.pull=false"), 'set worker.gpuResource: ""'),
        (("worker.settings.MOCHI_ENGINE=fake", "worker.gpuResource="), "set weights.pull: false"),
        (("worker.gpuResource=",), "set MOCHI_MOCK"),
        (
            ("settings.MOCHI_MOCK=true", "worker.settings.MOCHI_MOCK=false", "worker.gpuResource="),
            "set MOCHI_MOCK",
        ),
        (
            ("keda.enabled=true", "metrics.public=true", "keda.minReplicas=5"),
            "keda.minReplicas (5) is above keda.maxReplicas (4)",
        ),
        (
            ("gateway.autoscaling.enabled=true", "gateway.autoscaling.maxReplicas=1"),
            "gateway.autoscaling.minReplicas (2) is above gateway.autoscaling.maxReplicas (1)",
        ),
        (
            ("settings.MOCHI_RUN_SECONDS=7200",),
            "Raise worker.drainSeconds (3600) to MOCHI_RUN_SECONDS",
        ),
        (
            ("gateway.settings.MOCHI_V1_SECONDS=900",),
            "Raise gateway.drainSeconds (600) to MOCHI_V1_SECONDS (900)",
        ),
        (("worker.gpusPerVideo=3",), "must be one of 1, 2, 4, 6, 8"),
        (("worker.gpus=3",), "additional properties 'gpus' not allowed"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_remedy(
    values: tuple[str, ...], remedy: str
) -> None:
    assert remedy in refusal(*values)
