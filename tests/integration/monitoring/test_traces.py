"""With an endpoint in the environment, one request is one trace, from HTTP to each stage."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from models.mock.scenario import SCENARIO
from tests.support.jobs import end_lease
from tests.support.services.brokers import free_port
from tests.support.services.collector import Collector, Span, collector
from tests.support.stack import Stack, eventually
from worker.job import Stage

POND = {"prompt": "a pond at night", "frames": 2, "steps": 10}
STAGES = [stage.value for stage in Stage if stage is not Stage.QUEUED]
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
"""Milliseconds until spans are sent."""
STOP_SECONDS = 20.0
"""Less than the half minute that the library would wait for a collector that hangs."""


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    with collector() as traces:
        yield traces


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, traces: Collector) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("traces")
    with Stack(folder, engine="fake", fake_step_seconds="0.01") as stack:
        stack.variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": traces.endpoint, **SOON}
        stack.start_gateway()
        stack.start_worker()
        yield stack


def traceparent() -> tuple[str, str, str]:
    """What a client sends that traces, its trace and its span."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return f"00-{trace_id}-{span_id}-01", trace_id, span_id


def submit(client: httpx2.Client, headers: dict[str, str] | None = None, **body: Any) -> str:
    answer = client.post("/v2/mochi-1", json=POND | body, headers=headers)
    return str(answer.json()["request_id"])


def run_of(traces: Collector, request_id: str, **attributes: object) -> Span:
    (run,) = eventually(lambda: traces.named("run", mochi_request_id=request_id, **attributes))
    return run


def whole(traces: Collector, trace_id: str, http: str = "POST /v2/mochi-1") -> dict[str, Span]:
    """All spans of a request that was run, by name."""
    names = {http, "queued", "run", *STAGES}
    eventually(lambda: traces.of_trace(trace_id).keys() == names)
    return traces.of_trace(trace_id)


def lines(stack: Stack, event: str, request_id: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in stack.logs().splitlines()]
    return [e for e in entries if (e["event"], e.get("request_id")) == (event, request_id)]


def test_a_request_is_one_trace_from_the_client_to_each_stage(
    stack: Stack, traces: Collector
) -> None:
    header, trace_id, client_span = traceparent()
    request_id = submit(stack.http(), {"traceparent": header})
    spans = whole(traces, trace_id)
    http, run, queued = (spans[name] for name in ("POST /v2/mochi-1", "run", "queued"))
    assert run.attributes["mochi.request_id"] == request_id
    assert (http.service, run.service) == ("mochi-server-gateway", "mochi-server-worker")
    assert http.attributes["http.route"] == "/v2/mochi-1"
    assert http.attributes["http.response.status_code"] == 200
    assert (http.kind, run.kind) == ("SERVER", "CONSUMER")
    assert http.parent_id == client_span
    assert queued.parent_id == run.parent_id == http.span_id
    assert {spans[stage].parent_id for stage in STAGES} == {run.span_id}
    assert not any(span.is_error for span in spans.values())


def test_times_are_those_of_the_run(stack: Stack, traces: Collector) -> None:
    run = run_of(traces, submit(stack.http()))
    spans = whole(traces, run.trace_id)
    queued, *stages = (spans[name] for name in ("queued", *STAGES))
    assert queued.start <= queued.end == run.start == stages[0].start
    following = [*(stage.start for stage in stages[1:]), stages[-1].end]
    assert [stage.end for stage in stages] == following
    assert stages[-1].end <= run.end
    denoising = spans["denoising"]
    assert denoising.end - denoising.start > 50_000_000  # ten steps of 10 ms


def test_a_run_says_what_it_made_where_and_as_which_message(
    stack: Stack, traces: Collector
) -> None:
    request_id = submit(stack.http())
    run = run_of(traces, request_id)
    assert run.attributes == {
        "mochi.request_id": request_id,
        "mochi.attempt": 1,
        "mochi.frames": 2,
        "mochi.steps": 10,
        "mochi.worker": stack.record(request_id)["worker"],
        "mochi.device": "CPU",
        "messaging.system": "rq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "mochi-1",
        "messaging.message.id": request_id,
    }


def test_a_blocking_call_is_open_until_its_answer(stack: Stack, traces: Collector) -> None:
    answer = stack.http().post("/v1/mochi-1", json=POND)
    run = run_of(traces, answer.headers["x-request-id"])
    spans = whole(traces, run.trace_id, "POST /v1/mochi-1")
    http = spans["POST /v1/mochi-1"]
    assert http.start < spans["publishing"].start < http.end


def test_a_failed_run_has_its_code_and_no_text(stack: Stack, traces: Collector) -> None:
    run = run_of(traces, submit(stack.http(), {SCENARIO: "fail:the lens is dirty"}))
    assert (run.is_error, run.status) == (True, "internal")
    assert run.attributes["error.type"] == "internal"
    assert b"lens" not in b"".join(traces.bodies)
    spans = traces.of_trace(run.trace_id).values()
    stages = {span.name for span in spans if span.parent_id == run.span_id}
    assert stages == {"encoding_prompt", "denoising"}


def test_a_bug_has_its_code_and_no_text_either(stack: Stack, traces: Collector) -> None:
    run = run_of(traces, submit(stack.http(), {SCENARIO: "bug"}))
    assert (run.is_error, run.status, run.events) == (True, "internal", 0)
    assert b"hf_do_not_show" not in b"".join(traces.bodies)


def test_nothing_secret_is_in_a_span(stack: Stack, traces: Collector) -> None:
    key = stack.key()
    client = stack.http(key)
    request_id = submit(client, prompt="the secret garden", negative_prompt="nettles")
    run_of(traces, request_id)
    result = client.get(f"/v2/requests/{request_id}").json()
    signature = result["output"].split("/")[-2]
    assert len(signature) == 43
    assert httpx2.get(result["output"]).is_success
    client.get("/v1/get-user-credits", params={"prompt": "the secret garden", "key": key})
    eventually(lambda: traces.named("GET /v1/get-user-credits"))
    (video,) = eventually(lambda: traces.named("GET /v2/videos/{request_id}.mp4"))
    assert video.attributes["url.query"] == "REDACTED"
    told = b"".join(traces.bodies)
    for secret in ("secret", "nettles", key, key[-20:], signature):
        assert secret.encode() not in told


def test_a_poll_is_no_part_of_the_requests_trace_and_probes_of_none(
    stack: Stack, traces: Collector
) -> None:
    client = stack.http()
    request_id = submit(client)
    run = run_of(traces, request_id)
    for path in ("/healthz", "/readyz", "/metrics", f"/v2/requests/{request_id}/status"):
        client.get(path)
    path = f"/v2/requests/{request_id}/status"
    (poll,) = eventually(
        lambda: traces.named("GET /v2/requests/{request_id}/status", url_path=path)
    )
    assert poll.trace_id != run.trace_id
    paths = {span.attributes.get("url.path") for span in traces.spans}
    assert paths.isdisjoint({"/healthz", "/readyz", "/metrics"})


def test_a_client_that_samples_a_trace_out_is_heeded(stack: Stack, traces: Collector) -> None:
    header, trace_id, _ = traceparent()
    client = stack.http()
    unseen = submit(client, {"traceparent": header[:-2] + "00"})
    assert stack.record(unseen)["traceparent"][3:35] == trace_id
    run_of(traces, submit(client))  # which came after
    assert not traces.of_trace(trace_id)


def test_lines_of_the_log_name_the_span(stack: Stack, traces: Collector) -> None:
    request_id = submit(stack.http())
    run = run_of(traces, request_id)
    (accepted,) = lines(stack, "request.accepted", request_id)
    (completed,) = lines(stack, "run.completed", request_id)
    assert accepted["trace_id"] == completed["trace_id"] == run.trace_id
    assert (accepted["span_id"], completed["span_id"]) == (run.parent_id, run.span_id)


def test_another_attempt_is_in_the_same_trace(stack: Stack, traces: Collector) -> None:
    stack.processes[-1].kill()
    slow = stack.start_worker(fake_step_seconds="60")
    request_id = submit(stack.http())
    eventually(lambda: stack.record(request_id)["status"] == "PROCESSING")
    slow.kill()
    slow.wait()  # or it might beat once more
    end_lease(stack.redis, request_id)
    stack.start_worker()
    run = run_of(traces, request_id)  # the only one that came to its end
    assert run.attributes["mochi.attempt"] == 2
    (accepted,) = lines(stack, "request.accepted", request_id)
    assert run.trace_id == accepted["trace_id"]


def test_a_collector_that_is_away_delays_nothing_and_is_seldom_named(tmp_path: Path) -> None:
    with Stack(tmp_path, engine="fake", fake_step_seconds="0.01") as stack:
        away = f"http://127.0.0.1:{free_port()}"
        stack.variables = SOON | {"OTEL_EXPORTER_OTLP_ENDPOINT": away}
        stack.variables["OTEL_EXPORTER_OTLP_TIMEOUT"] = "300"  # the gateway tries again and again
        stack.start_gateway()
        stack.variables["OTEL_EXPORTER_OTLP_TIMEOUT"] = "0.5"  # the worker drops batch after batch
        stack.start_worker()
        client = stack.http()
        for _ in range(4):
            assert client.post("/v1/mochi-1", json=POND).is_success
        for process, line in zip(stack.processes, ("Connection refused", "Failed"), strict=True):
            eventually(partial(says, stack, process, line))
            process.terminate()
        for process in stack.processes:
            process.wait(STOP_SECONDS)
            assert stack.log_of(process).count("export") <= 2


def says(stack: Stack, process: subprocess.Popen[bytes], line: str) -> bool:
    return line in stack.log_of(process)


def test_without_an_endpoint_there_is_no_trace_of_traces(server: Stack) -> None:
    header, trace_id, _ = traceparent()
    client = server.http()
    request_id = submit(client, {"traceparent": header})
    eventually(lambda: client.get(f"/v2/requests/{request_id}").json()["metrics"])
    assert "traceparent" not in server.record(request_id)
    (completed,) = lines(server, "run.completed", request_id)
    assert "trace_id" not in completed
    assert trace_id not in server.logs()


def test_a_bad_variable_stops_the_start(tmp_path: Path) -> None:
    stack = Stack(tmp_path, engine="fake")
    stack.variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "worker"],
        env=stack.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == os.EX_CONFIG
    assert "OTEL_EXPORTER_OTLP_PROTOCOL: got 'grpc'" in ended.stderr
