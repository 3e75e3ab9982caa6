"""The pages for a browser. Left out with MOCHI_DOCS=false."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from server.api.call import Call
from server.errors import UnknownRouteError
from server.page import Page
from server.page.files import PageFile
from server.page.swagger import PAGE
from server.paths import PAGE_FOLDER
from server.transport.responses import not_modified
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
    policy = {"content-security-policy": front_page_policy(origins)}
    return _answer(request, PageFile(page.html, "text/html", page.etag), policy)


@router.get(PAGE_FOLDER + "{name:path}")
async def page_file(request: Request) -> Response:
    """A script, a style or a picture of the page."""
    file = request.app.state.page_files.get(request.path_params["name"])
    if file is None:
        raise UnknownRouteError(Call.of(request).services.models.slugs, has_docs=True)
    return _answer(request, file, {})


def _answer(request: Request, file: PageFile, headers: dict[str, str]) -> Response:
    headers = {"etag": file.etag, **headers}
    if unchanged := not_modified(request, headers):
        return unchanged
    return Response(file.content, headers=headers, media_type=file.media_type)
