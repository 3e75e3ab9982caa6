"""The pages for a browser. Left out with MOCHI_DOCS=false."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from server.api.call import Call
from server.page import Page
from server.page.swagger import PAGE
from server.transport.security_headers import front_page_policy

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(_request: Request) -> HTMLResponse:
    """Swagger UI."""
    return HTMLResponse(PAGE)


@router.get("/")
async def front_page(request: Request) -> Response:
    """The page at `/`. Its policy lets it show videos from the output store."""
    page: Page = request.app.state.page
    origins = Call.of(request).services.video_links.origins()
    headers = {"etag": page.etag, "content-security-policy": front_page_policy(origins)}
    if request.headers.get("if-none-match") == page.etag:
        return Response(status_code=304, headers=headers)
    return HTMLResponse(page.html, headers=headers)
