"""The official SDK without a base URL, led to the local server as `mochi-server wrap` leads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx  # the SDK's HTTP client, which the project itself does not use
from segmind import SegmindClient
from typing_extensions import override

from server.paths import HOSTED_NAMES


class Led(httpx.HTTPTransport):
    """Sends what is for any host of the hosted API to `url`; refuses all else."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = httpx.URL(url)

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        assert request.url.host.endswith(HOSTED_NAMES), request.url
        request.url = request.url.copy_with(
            scheme=self._url.scheme, host=self._url.host, port=self._url.port
        )
        return super().handle_request(request)


@contextmanager
def hosted_sdk(url: str, key: str) -> Iterator[SegmindClient]:
    """`SegmindClient()`, all of whose calls reach the server at `url`."""
    client = SegmindClient(api_key=key, timeout=60)
    headers, base = client._client.headers, client.base_url
    client._client.close()
    with httpx.Client(transport=Led(url), headers=headers, base_url=base, timeout=60) as led:
        client._client = led
        yield client
