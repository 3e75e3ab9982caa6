"""Histogram of HTTP requests and their durations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import Metric

OTHER = "other"
"""Label for unknown paths and verbs, and for requests refused before routing."""
VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
HTTP_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Seconds: from a poll to a blocking call."""


class Traffic:
    """The HTTP traffic of this gateway."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the lines, and Prometheus ignores them
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._seconds = Histogram(
            "mochi_http_request_seconds",
            "HTTP requests until the end of the answer, by route, verb and status.",
            ("route", "verb", "status"),
            buckets=HTTP_BOUNDS,
            registry=self._registry,
        )
        self._children: dict[tuple[str, str, int], Histogram] = {}

    def note(self, scope: Any, status: int, seconds: float) -> None:  # noqa: ANN401 (as ASGI has it)
        """Count an answered request by its route template; a path contains ids."""
        verb = scope["method"]
        route = getattr(scope.get("route"), "path", OTHER)
        key = route, verb if verb in VERBS else OTHER, status
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._seconds.labels(*key)
        child.observe(seconds)

    def collect(self) -> Iterable[Metric]:
        """For `generate_latest`."""
        return self._registry.collect()
