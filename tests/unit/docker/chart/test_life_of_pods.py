"""How pods start, live, stop and scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.paths import PROBES
from server.settings import ServerSettings
from tests.support.helm import (
    EVERYTHING,
    TRIAL,
    VALUES,
    Object,
    containers,
    needs_helm,
    one,
    pods,
    refusal,
    rendered,
    variables,
)

pytestmark = needs_helm


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_every_pod_is_hardened(values: Path) -> None:
    for pod in pods(rendered("--values", str(values))).values():
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is False
        assert spec["automountServiceAccountToken"] is False
        assert spec["shareProcessNamespace"] is True
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in containers(pod):
            guard = container["securityContext"]
            assert guard["readOnlyRootFilesystem"] is True
            assert guard["capabilities"] == {"drop": ["ALL"]}
            assert guard["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_kubernetes_waits_longer_for_a_pod_than_its_drain_lasts(values: Path) -> None:
    objects = pods(rendered("--values", str(values)))
    for component in ("gateway", "worker"):
        spec = objects[component]["spec"]
        container = spec["containers"][0]
        pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        drain = float(variables(container)["MOCHI_DRAIN_SECONDS"])
        # As for systemd: the requeue, the exit, the last lines of the log.
        assert spec["terminationGracePeriodSeconds"] >= pause + drain + 25


def test_no_run_is_longer_than_the_drain_of_a_worker() -> None:
    """So a pod that is scaled down has finished its video."""
    worker = variables(pods(rendered())["worker"]["spec"]["containers"][0])
    longest = ServerSettings.model_fields["run_seconds"].default
    assert float(worker["MOCHI_DRAIN_SECONDS"]) >= longest
    assert "MOCHI_RUN_SECONDS" not in worker


def test_a_gateway_accepts_connections_for_a_while_after_its_end_was_decided() -> None:
    container = pods(rendered())["gateway"]["spec"]["containers"][0]
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}


def test_a_gateway_gets_requests_while_broker_store_and_workers_are_away() -> None:
    for values in ((), EVERYTHING):
        container = pods(rendered(*values))["gateway"]["spec"]["containers"][0]
        assert probes(container) == {"startupProbe", "livenessProbe", "readinessProbe"}
        paths = {container[name]["httpGet"]["path"] for name in probes(container)}
        assert paths == {"/healthz"} < PROBES


def test_the_probes_of_a_worker_start_no_python_and_ask_no_broker() -> None:
    container = pods(rendered())["worker"]["spec"]["containers"][0]
    assert probes(container) == {"startupProbe", "livenessProbe"}
    file = variables(container)["MOCHI_ALIVE_FILE"]
    for name in probes(container):
        assert container[name]["exec"]["command"] == [
            "sh", "-c", f'test -n "$(find {file} -mmin -1)"'
        ]  # fmt: skip
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 3600


def probes(container: Object) -> set[str]:
    return {name for name in container if name.endswith("Probe")}


def test_a_pod_has_the_cards_that_share_a_video_and_memory_for_their_exchange() -> None:
    pod = pods(rendered(*EVERYTHING))["worker"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert variables(container)["MOCHI_GPUS_PER_VIDEO"] == "4"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    trial = pods(rendered(*TRIAL))["worker"]["spec"]["containers"][0]
    assert set(trial["resources"]["limits"]) == {"memory"}


def test_another_version_of_the_chart_alone_restarts_no_pod() -> None:
    for each in rendered():
        pod = each.get("spec", {}).get("template", {})
        if each["kind"] in {"Deployment", "StatefulSet"}:
            assert pod["metadata"]["labels"] == each["spec"]["selector"]["matchLabels"]
        elif pod:
            assert all(name.startswith("app.kubernetes.io/") for name in pod["metadata"]["labels"])
            assert "app.kubernetes.io/version" not in pod["metadata"]["labels"]


def test_a_new_worker_needs_no_second_card() -> None:
    strategy = one(rendered(), "Deployment", "worker")["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 0, "maxUnavailable": 1}


def test_what_an_autoscaler_sets_an_upgrade_leaves() -> None:
    for component in ("gateway", "worker"):
        assert "replicas" in one(rendered(), "Deployment", component)["spec"]
        assert "replicas" not in one(rendered(*EVERYTHING), "Deployment", component)["spec"]


def test_workers_read_the_weights_that_the_job_writes_and_wait_for_them() -> None:
    objects = pods(rendered())
    [pull] = objects["weights"]["spec"]["containers"]
    assert pull["args"] == ["weights", "pull"]
    worker = objects["worker"]["spec"]
    [wait] = worker["initContainers"]
    assert wait["command"][-1] == "until mochi-server weights path; do sleep 10; done"
    mounts = [
        {each["name"]: each for each in container["volumeMounts"]}["weights"]
        for container in (pull, wait, worker["containers"][0])
    ]
    assert [mount["mountPath"] for mount in mounts] == ["/data/weights"] * 3
    assert [mount.get("readOnly", False) for mount in mounts] == [False, True, True]


def test_workers_wait_for_the_classifiers_of_moderation_too() -> None:
    commit = "0" * 40
    objects = pods(
        rendered(*EVERYTHING, "--set", f"worker.settings.MOCHI_REVISION={commit}",
                 "--set", "worker.settings.MOCHI_VARIANT=bf16")
    )  # fmt: skip
    classifier = "Falconsai/nsfw_image_detection"
    pulls = [variables(pull) for pull in objects["weights"]["spec"]["containers"]]
    assert [pull.get("MOCHI_WEIGHTS") for pull in pulls] == [None, classifier]
    assert [pull.get("MOCHI_REVISION") for pull in pulls] == [commit, None]
    assert [pull.get("MOCHI_VARIANT") for pull in pulls] == ["bf16", None]
    [wait] = objects["worker"]["spec"]["initContainers"]
    assert (
        f"&& mochi-server weights path --weights {classifier} --revision ''" in wait["command"][-1]
    )
    assert "does not match pattern" in refusal("weights.classifiers={a/b; reboot}")


def test_files_that_settings_name_are_mounted_where_they_are_read() -> None:
    objects = pods(rendered(*EVERYTHING))
    found = {
        (component, container["name"])
        for component, pod in objects.items()
        for container in containers(pod)
        for mount in container["volumeMounts"]
        if mount["name"] == "terms" == pod["spec"]["volumes"][-1]["name"]
    }
    assert found == {
        ("gateway", "gateway"),
        ("worker", "weights"),
        ("worker", "worker"),
        ("weights", "pull-0"),
        ("weights", "pull-1"),
    }


def test_the_pull_runs_where_the_operator_wants_it_and_goes_on_for_hours() -> None:
    job = one(rendered(*EVERYTHING), "Job")["spec"]
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "web"}
    assert pod["tolerations"] == [{"key": "web", "operator": "Exists"}]
    assert all(it["resources"]["limits"] == {"memory": "4Gi"} for it in pod["containers"])
    assert job["backoffLimit"] >= 100


def test_a_container_without_a_card_of_its_own_sees_none() -> None:
    """The image asks for all, which a container that requests none may get."""

    def seen(*values: str) -> set[str]:
        return {
            f"{component} {container['name']}"
            for component, pod in pods(rendered(*values)).items()
            for container in containers(pod)
            if component != "valkey"
            and container["image"].startswith("mochi-server-worker")
            and variables(container).get("NVIDIA_VISIBLE_DEVICES") != "void"
        }

    assert seen() == {"worker worker"}
    assert seen(*TRIAL) == set()


def test_a_gateway_listens_where_the_cluster_has_addresses() -> None:
    def host(*values: str) -> str:
        return variables(pods(rendered(*values))["gateway"]["spec"]["containers"][0])["MOCHI_HOST"]

    assert host() == "0.0.0.0"  # noqa: S104 (of the pod)
    assert host("--set", "gateway.host=::") == "::"


def test_another_pull_is_another_job() -> None:
    """A Job cannot be changed."""
    first = one(rendered(), "Job")["metadata"]["name"]
    same = rendered("--set", "gateway.replicas=3")
    assert one(same, "Job")["metadata"]["name"] == first
    other = rendered("--set", "worker.settings.MOCHI_VARIANT=bf16")
    assert one(other, "Job")["metadata"]["name"] != first


def test_uninstalling_keeps_videos_and_weights() -> None:
    kept = {
        it["metadata"]["name"]
        for it in rendered()
        if it["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
    }
    assert kept == {"mochi-outputs", "mochi-weights"}
