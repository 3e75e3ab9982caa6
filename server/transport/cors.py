"""Lets pages of other origins call the gateway from a browser (CORS, Fetch Standard)."""

from __future__ import annotations

import re
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp
from typing_extensions import override

from server.transport.error_body import ErrorBody
from server.transport.responses import answer

ANY = "*"
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")


class Cors(CORSMiddleware):
    """Answers preflights, which have no key, and marks the other responses for `origins`.

    All response headers may be read. No cookies are used, so none are allowed.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=[ANY] if ANY in origins else [],
            allow_origin_regex="|".join(map(_pattern, origins)),
            allow_methods=METHODS,
            allow_headers=[ANY],
            allow_private_network=True,
            expose_headers=[ANY],
        )

    @override
    def preflight_response(self, request_headers: Headers) -> Response:
        """Refuse as everywhere: in JSON, with the remedy."""
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        origin = request_headers["origin"]
        error = (
            f"This server takes no {request_headers['access-control-request-method']}."
            if self.is_allowed_origin(origin)
            else f"Pages of {origin} may not call this server. Its operator can allow them in "
            "MOCHI_CORS_ORIGINS."
        )
        return answer(ErrorBody(error=error), response.status_code, {"vary": "Origin"})


def _pattern(origin: str) -> str:
    return re.escape(origin).replace(r":\*", r"(:\d+)?")
