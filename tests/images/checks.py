"""What is checked on the running services. Each check returns what it saw, or raises."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx2
from segmind import SegmindClient

from models.request.example import EXAMPLE_REQUEST
from tests.images.engine import FULL, PROFILES, ImagesError, Project, run
from tests.images.traffic import BODY, Traffic, ends

SERVICES = ("gateway", "worker", "valkey")
USERS = {"gateway": "10001", "worker": "10001", "valkey": "999"}
PATIENCE_SECONDS = 300.0
SLOW = BODY | {"x-mock-scenario": "slow:5"}
SBOM = "/usr/share/doc/mochi-server/sbom.cdx.json"
BEFORE_SECONDS = 3.0
"""Of traffic, before and after a restart."""

_Result = TypeVar("_Result")


def eventually(ask: Callable[[], _Result], what: str) -> _Result:
    """The first true answer.

    Raises:
        ImagesError: there is none in time.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise ImagesError(f"Not within {PATIENCE_SECONDS:g} s: {what}. Last: {answer!r}")
        time.sleep(0.5)
    return answer


def expect(condition: object, message: str) -> None:
    if not condition:
        raise ImagesError(message)


def build(project: Project) -> str:
    """The gateway, and the worker with the light mock."""
    project.compose("build", "gateway", "worker")
    return "; ".join(_layers(project, project.image(one)) for one in ("gateway", "worker"))


def build_full(project: Project) -> str:
    """The worker with torch, as it runs on a GPU."""
    image = project.image(FULL)
    told = {name.removeprefix("BUILD_"): value for name, value in project.variables.items()}
    arguments = [f"--build-arg={name}={value}" for name, value in told.items()]
    run([project.engine, "build", "--target", "worker", "--tag", image, *arguments, "."])
    return _layers(project, image)


def _layers(project: Project, image: str) -> str:
    """The sizes of its layers, the uppermost first, which is that of our own code."""
    sizes = run([project.engine, "history", "--format", "{{.Size}}", image]).split("\n")
    return f"{image} {' '.join(size.replace(' ', '') for size in sizes if size[0] != '0')}"


def labels_and_sbom(project: Project) -> str:
    """The labels have the build's version, and each licence of the SBOM."""
    seen = []
    for service in ("gateway", "worker"):
        image = project.image(service)
        labels = json.loads(run([project.engine, "inspect", image]))[0]["Config"]["Labels"]
        of_image = {
            key.removeprefix("org.opencontainers.image."): value for key, value in labels.items()
        }
        version = run([project.engine, "run", "--rm", image, "--version"])
        expect(of_image["version"] in version, f"label {of_image['version']}, command {version}")
        command = ["run", "--rm", "--entrypoint", "cat", image, SBOM]
        sbom = json.loads(run([project.engine, *command]))
        missing = _licences(sbom) - set(of_image["licenses"].split(" AND "))
        expect(not missing, f"{service}: licences that the label does not have: {missing}")
        seen.append(f"{service} {version}, {len(sbom['components'])} components")
    return "; ".join(seen)


def _licences(sbom: dict[str, Any]) -> set[str]:
    """The SPDX ids and exceptions of all components; of `A OR B`, the first."""
    found: set[str] = set()
    for component in sbom["components"]:
        for entry in component.get("licenses", []):
            text = entry.get("expression") or entry["license"].get("id", "")
            found.update(part.split(" OR ")[0].strip("()") for part in text.split(" AND "))
    return found - {""}


def start(project: Project) -> str:
    """The services come up, and the server is ready."""
    project.compose("up", "--detach")
    _ready(project)
    return project.url


def _ready(project: Project) -> None:
    def answers() -> bool:
        try:
            answer = httpx2.get(f"{project.url}/readyz", trust_env=False).json()
            return bool(answer["status"] == "ready")
        except (httpx2.HTTPError, ValueError, KeyError):
            return False

    try:
        eventually(answers, "the server is ready")
    except ImagesError as error:
        raise ImagesError(f"{error}\n{project.compose('logs', '--tail', '20')}") from None


def hardening(project: Project) -> str:
    """No container has root, capabilities, a way to regain them, or a root file system to write."""
    for service in SERVICES:
        user = project.shell(service, "id -u")
        expect(user == USERS[service], f"{service} runs as {user}")
        status = project.shell(service, "cat /proc/self/status")
        found = dict(re.findall(r"^(CapEff|CapBnd|NoNewPrivs):\s+(\w+)$", status, re.MULTILINE))
        expect(int(found["CapEff"], 16) == int(found["CapBnd"], 16) == 0, f"{service}: {found}")
        expect(found["NoNewPrivs"] == "1", f"{service} may regain privileges")
        written = project.shell(service, "touch /written /etc/written 2>&1 || true")
        expect("Read-only" in written, f"{service}: the root is not read-only: {written}")
    return f"{', '.join(SERVICES)}: {', '.join(USERS[one] for one in SERVICES)}"


def health(project: Project) -> str:
    """Every health check passes."""

    def states() -> dict[str, list[str]]:
        return {service: project.health(service) for service in SERVICES}

    try:
        eventually(
            lambda: all(state == ["healthy"] for state in states().values()), "all are healthy"
        )
    except ImagesError as error:
        raise ImagesError(f"{error}\n{states()}") from None
    return ", ".join(SERVICES)


def make_key(project: Project) -> str:
    """An API key, made as an operator makes one."""
    printed = project.compose("run", "--rm", "gateway", "keys", "create", "images")
    key = re.search(r"mochi_[\w-]+", printed)
    if key is None:
        raise ImagesError(f"`keys create` printed no key: {printed}")
    return key[0]


def video(project: Project, key: str) -> str:
    """The SDK makes a video; returns its link."""
    client = SegmindClient(api_key=key, base_url=f"{project.url}/v1", timeout=600)
    result: dict[str, Any] = client.run("mochi-1", **EXAMPLE_REQUEST)
    link = str(result["output"])
    _download(link)
    return link


def _download(link: str) -> bytes:
    content = httpx2.get(link, trust_env=False).raise_for_status().content
    expect(content[4:8] == b"ftyp", f"{link} is no MP4")
    return content


def killed(project: Project, key: str, service: str) -> str:
    """Kill -9 of a container's process while requests run and wait: none is lost."""
    with httpx2.Client(
        base_url=project.url, headers={"x-api-key": key}, trust_env=False, timeout=60
    ) as client:
        answers = [client.post("/v2/mochi-1", json=SLOW).raise_for_status() for _ in range(3)]
        ids = [answer.json()["request_id"] for answer in answers]
        status = f"/v2/requests/{ids[0]}/status"
        eventually(
            lambda: client.get(status).json()["status"] == "PROCESSING", "the first request runs"
        )
    before = project.inspect(project.container(service))["State"]["StartedAt"]
    project.kill(service)
    eventually(
        lambda: project.inspect(project.container(service))["State"]["StartedAt"] != before,
        f"{service} is started again",
    )
    found = ends(project.url, key, ids, PATIENCE_SECONDS)
    expect(found == {"COMPLETED": len(ids)}, f"{service} was killed: {dict(found)}")
    return f"{len(ids)} of {len(ids)} requests completed"


def restart(project: Project, key: str) -> str:
    """A gateway is restarted under load: only documented answers, and nothing is lost."""
    with Traffic(project.url, key) as traffic:
        time.sleep(BEFORE_SECONDS)
        project.compose("restart", "gateway")
        _ready(project)
        time.sleep(BEFORE_SECONDS)
    expect(not traffic.undocumented, f"undocumented: {traffic.undocumented}")
    found = ends(project.url, key, traffic.acknowledged, PATIENCE_SECONDS)
    count = len(traffic.acknowledged)
    expect(found == {"COMPLETED": count}, f"of {count} requests: {dict(found)}")
    return f"{count} of {count} requests completed; answers {dict(traffic.answers)}"


def volumes(project: Project, key: str, link: str) -> str:
    """Keys, records and videos outlive their containers."""
    before = _download(link)
    project.compose("down")
    start(project)
    expect(_download(link) == before, "the video is another one")
    answer = httpx2.get(
        f"{project.url}/v1/get-user-credits", headers={"x-api-key": key}, trust_env=False
    )
    expect(answer.is_success, f"the key is refused: {answer.status_code}")
    return "a key and a video, after `down` and `up`"


def scaled(project: Project) -> str:
    """Two gateways, each on a free port."""
    project.variables["MOCHI_PORT"] = ""
    project.compose("up", "--detach", "--scale", "gateway=2")
    addresses = [
        run([project.engine, "port", container, "8000"]).splitlines()[0]
        for container in project.containers("gateway")
    ]
    expect(len(set(addresses)) == 2, f"the gateways have the addresses {addresses}")

    def answer() -> bool:
        try:
            return all(
                httpx2.get(f"http://{address}/healthz", trust_env=False).is_success
                for address in addresses
            )
        except httpx2.HTTPError:
            return False

    eventually(answer, "both gateways answer")
    return ", ".join(addresses)


def profiles(project: Project) -> str:
    """Compose accepts every profile."""
    for profile in PROFILES:
        project.compose("config", profiles=(profile,))
    return ", ".join(PROFILES)
