"""Pages for a person with a browser. Left out with MOCHI_DOCS=false."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import HTMLResponse, RedirectResponse

from server.docs_page import PAGE

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Swagger UI."""
    return HTMLResponse(PAGE)


@router.get("/")
async def root() -> RedirectResponse:
    """A person with a browser wants to see something."""
    return RedirectResponse("/docs")
