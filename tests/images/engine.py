"""Docker or podman, and a project of Compose that is this run's own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILES = ("compose.yaml", "docker/compose.mock.yaml")
COMPOSE = {"docker": ["docker", "compose"], "podman": ["podman-compose"]}
PROFILES = ("tls", "metrics", "traces")
FULL = "torch"
"""Of the image that Compose does not build: the worker with torch."""
OURS = ("MOCHI_", "OTEL_", "RESOURCE_", "COMPOSE_", "CADDY_", "AWS_", "GF_", "HF_")
"""Prefixes of variables that would change what Compose starts."""
COMMAND_SECONDS = 1800
"""Longest command: a build with a slow network. podman-compose waits for ever for a dead broker."""


class ImagesError(Exception):
    """A command that failed, or something that is not as it should be."""


def run(command: list[str], environ: dict[str, str] | None = None) -> str:
    """The standard output of a command.

    Raises:
        ImagesError: with the end of what it printed.
    """
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ImagesError(f"{' '.join(command)} has not ended for {COMMAND_SECONDS} s.") from None
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise ImagesError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout.strip()


def choose_engine() -> str:
    """The first of docker and podman that is usable.

    Raises:
        ImagesError: neither is.
    """
    for engine, compose in COMPOSE.items():
        if shutil.which(compose[0]):
            try:
                run([engine, "info"])
                run([*compose, "version"])
            except ImagesError:
                continue
            return engine
    raise ImagesError("No daemon answers to `docker compose`, and there is no `podman-compose`.")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@dataclass
class Project:
    """The services of compose.yaml with the light mock, under a name of their own.

    `variables` are those that Compose reads.
    """

    engine: str
    name: str
    port: int = field(default_factory=free_port)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        outside = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
        # podman leaves health checks out of its own format.
        own = {"MOCHI_PORT": str(self.port), "BUILDAH_FORMAT": "docker"}
        return outside | own | self.variables

    def compose(self, *arguments: str, profiles: tuple[str, ...] = ()) -> str:
        """Run a command of Compose for this project, without the operator's own .env."""
        command = [*COMPOSE[self.engine], "-p", self.name, "--env-file", os.devnull]
        for file in FILES:
            command += ["-f", file]
        for profile in profiles:
            command += ["--profile", profile]
        return run([*command, *arguments], self.environ)

    def containers(self, service: str) -> list[str]:
        """The ids of its containers, stopped ones included."""
        labels = {"project": self.name, "service": service}
        filters = [
            f"--filter=label=com.docker.compose.{key}={value}" for key, value in labels.items()
        ]
        return run([self.engine, "ps", "--all", "--quiet", *filters]).split()

    def container(self, service: str) -> str:
        """The id of its only container.

        Raises:
            ImagesError: there is not one.
        """
        found = self.containers(service)
        if len(found) != 1:
            raise ImagesError(f"{service} has {len(found)} containers, not one.")
        return found[0]

    def inspect(self, container: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(run([self.engine, "inspect", container]))
        return found[0]

    def health(self, service: str) -> list[str]:
        """`healthy`, `unhealthy` or `starting`, of each container."""
        states = [self.inspect(one)["State"] for one in self.containers(service)]
        return [state.get("Health", {}).get("Status") or "none" for state in states]

    def shell(self, service: str, script: str) -> str:
        """The output of a script of `sh` in the container."""
        return run([self.engine, "exec", self.container(service), "sh", "-c", script])

    def kill(self, service: str) -> None:
        """Kill -9 of the main process from within: to `docker kill` the policy does not apply."""
        self.shell(service, "kill -9 $(cat /proc/1/task/1/children)")

    def image(self, service: str) -> str:
        """How Compose names the image of a service that it builds."""
        local = "localhost/" if self.engine == "podman" else ""
        separator = "_" if self.engine == "podman" else "-"
        return f"{local}{self.name}{separator}{service}"

    def remove(self) -> str:
        """Containers, networks, volumes and images of this project."""
        self.compose("down", "--volumes", "--remove-orphans", profiles=PROFILES)
        names = [self.image(one) for one in ("gateway", "worker", FULL)]
        # Those that a failed build has not made are not there.
        subprocess.run([self.engine, "rmi", "--force", *names], capture_output=True, check=False)
        return "containers, networks, volumes, images"
