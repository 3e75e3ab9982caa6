"""The Model Context Protocol at `/mcp`: one tool, which makes a video. Needs the extra `mcp`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import anyio
import mcp_types as mcp
import structlog
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.session import ServerSession
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from models.errors import MochiError
from models.version import this_build
from server.api.call import Call
from server.api.openapi import parameters_of
from server.api.schemas import ResultBody
from server.api.submit.submission import OPTIONAL, Submission
from server.paths import MCP
from server.transport.body import read_bytes
from server.transport.responses import BUG
from worker.job import Job, Stage, Status

TOOL = "generate_video"
_MODEL = "model"
"""An argument where the server has several."""
_DESCRIPTION = (
    "Make a video of a few seconds from a text, with Mochi 1, and return the link to it. Takes "
    "minutes. Closing the call's connection cancels the video."
)

_Context = ServerRequestContext[Any, Request]

_log = structlog.get_logger()
logging.getLogger("mcp").setLevel(logging.WARNING)  # it logs each session


class McpEndpoint:
    """Without sessions: each call is complete in itself, and any gateway takes it."""

    def __init__(self, body_bytes: int) -> None:
        self._server: Server[Any] = Server(
            "mochi-server",
            version=this_build().version,
            on_list_tools=_list_tools,
            on_call_tool=_call_tool,
        )
        self._body_bytes = body_bytes

    @property
    def route(self) -> Route:
        return Route(MCP, self, methods=["POST"])

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """For as long as the gateway runs."""
        self._manager = StreamableHTTPSessionManager(
            self._server, stateless=True, max_request_body_size=self._body_bytes
        )
        async with self._manager.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_bytes(Request(scope, receive), self._body_bytes)
        await self._manager.handle_request(scope, _until_hang_up(scope, body), send)


def _until_hang_up(scope: Scope, body: bytes) -> Receive:
    """Receives the body, then a disconnect when it happens, and not at the next write."""
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def next_message() -> Message:
        if messages:
            return messages.pop()
        await scope["state"]["hang_up"].wait()
        return {"type": "http.disconnect"}

    return next_message


async def _list_tools(
    context: _Context, _params: mcp.PaginatedRequestParams | None
) -> mcp.ListToolsResult:
    call = Call.of(cast("Request", context.request))  # the transport is HTTP
    slugs = call.services.models.slugs
    schema = parameters_of(call.services.models)
    if len(slugs) > 1:
        schema["properties"][_MODEL] = {"type": "string", "enum": slugs, "default": slugs[0]}
    tool = mcp.Tool(
        name=TOOL,
        title=f"Video with {' or '.join(slugs)}",
        description=_DESCRIPTION,
        input_schema={name: schema[name] for name in ("type", "properties", "required")},
        annotations=mcp.ToolAnnotations(read_only_hint=False, destructive_hint=False),
    )
    return mcp.ListToolsResult(tools=[tool])


async def _call_tool(context: _Context, params: mcp.CallToolRequestParams) -> mcp.CallToolResult:
    if params.name != TOOL:
        return _refusal(f"There is no tool {params.name!r}. The tool is `{TOOL}`.")
    call = Call.of(cast("Request", context.request))  # the transport is HTTP
    try:
        return await _generate(context.session, call, _given(params))
    except MochiError as error:
        return _refusal(str(error))
    except Exception:  # noqa: BLE001 (the package would send its text to the client)
        request_id = getattr(call.request.state, "request_id", None)
        _log.exception("http.bug", method="POST", path=MCP, request_id=request_id)
        return _refusal(f"{BUG} The request {request_id} goes on." if request_id else BUG)


def _given(params: mcp.CallToolRequestParams) -> dict[str, Any]:
    """The arguments without optional ones that are null, which some models send for a default."""
    arguments = params.arguments or {}
    return {
        name: value
        for name, value in arguments.items()
        if value is not None or name not in OPTIONAL | {_MODEL}
    }


def _refusal(text: str) -> mcp.CallToolResult:
    """For the model to read, and to correct its call."""
    return mcp.CallToolResult(content=[mcp.TextContent(text=text)], is_error=True)


async def _generate(
    session: ServerSession, call: Call, arguments: dict[str, Any]
) -> mcp.CallToolResult:
    services = call.services
    served = services.models.slugs
    slug = arguments.pop(_MODEL, served[0]) if len(served) > 1 else served[0]
    model = call.require_submit(slug)
    submission = await Submission.read(call, arguments, model=model)
    with anyio.CancelScope(shield=True):  # a request that is accepted is known here, to cancel it
        accepted = await submission.accept(needs_worker=True)
    request_id, owner = accepted.request_id, call.key.key_id
    call.request.state.request_id = request_id
    reporter = _Reporter(session, call, request_id)
    reporting = asyncio.create_task(reporter.run())
    waiting = asyncio.create_task(
        services.poller.wait_for_end(request_id, services.settings.v1_seconds)
    )
    try:
        await asyncio.wait({reporting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            reporting.result()  # a bug there ends the call, too
        await waiting
    except asyncio.CancelledError:
        if submission.idempotency_key is None and services.settings.cancel_on_disconnect:
            services.canceller.cancel(request_id, owner)
        raise
    finally:
        reporting.cancel()
        waiting.cancel()
    job = await services.store.find(request_id, owner)
    if job.status is Status.FAILED:
        return _refusal(job.error)
    return _result(await call.result_body(job), reporter.preview)


def _result(body: ResultBody, preview: str) -> mcp.CallToolResult:
    """The facts, the links, and the last preview, which is a data URL or empty."""
    files = [each for each in (body.video, body.poster, body.last_frame) if each]
    content: list[mcp.ContentBlock] = [
        mcp.TextContent(text=body.model_dump_json(indent=2)),
        *(
            mcp.ResourceLink(
                name=file.file_name, uri=file.url, mime_type=file.content_type, size=file.file_size
            )
            for file in files
        ),
    ]
    if preview:
        kind, _, data = preview.removeprefix("data:").partition(";base64,")
        content.append(mcp.ImageContent(data=data, mime_type=kind))
    return mcp.CallToolResult(content=content, structured_content=body.model_dump(mode="json"))


class _Reporter:
    """Tells the client of progress, which only ever grows, and keeps the latest preview."""

    def __init__(self, session: ServerSession, call: Call, request_id: str) -> None:
        self._session = session
        self._call = call
        self._request_id = request_id
        self.preview = ""

    async def run(self) -> None:
        """Until the request ends or the gateway stops; silently where the broker is away."""
        with suppress(MochiError):
            store, poller = self._call.services.store, self._call.services.poller
            told = -1
            job = await store.find(self._request_id, self._call.key.key_id)
            async for now in poller.follow(job):
                if now is None or now.status.is_final:
                    continue
                if now.preview_step is not None:
                    self.preview = await store.preview(self._request_id) or self.preview
                if now.progress > told:
                    told = now.progress
                    await self._session.report_progress(told, 100, _message(now))


def _message(job: Job) -> str:
    place = job.stage.replace("_", " ")
    if job.position is not None:
        return f"{place}, place {job.position}"
    if job.stage is Stage.DENOISING:
        return f"{place}, step {job.step} of {job.last_step}"
    return place
