"""Errors of HTTP and of the command line, and the table from errors to HTTP status codes."""

from __future__ import annotations

from collections.abc import Sequence

from models.errors import (
    INSTALL,
    EngineError,
    EngineUnavailableError,
    InvalidParametersError,
    MochiError,
    WeightsError,
)
from models.request.params import MODEL, Still
from worker import errors as jobs

NO_WORKER = (
    "No live worker. `mochi-server up` restarts its own; if this lasts, its output says why. "
    "Elsewhere, start one with `mochi-server worker`."
)
"""For operators."""


class SettingsError(MochiError):
    """A setting is invalid or unknown; the text names the variable."""


class HttpError(MochiError):
    """Base of the errors of HTTP."""


class MalformedBodyError(HttpError):
    """The body is not one JSON object in UTF-8."""


class EncodedBodyError(HttpError):
    """The body is compressed."""

    def __init__(self) -> None:
        super().__init__(
            "The body must be sent as it is, without the header `Content-Encoding`: compressed "
            "bodies, like gzip, are not read."
        )


class MissingKeyError(HttpError):
    """The request has no API key, or the client has none to send."""

    def __init__(self, text: str = "Missing Authorization or x-api-key in header") -> None:
        super().__init__(text)


class InvalidKeyError(HttpError):
    """The API key is unknown."""

    def __init__(
        self,
        text: str = "Invalid API key; ask the operator of this server for one, or create one with "
        "`mochi-server keys create NAME`. `mochi-server up` names the file of the first key.",
    ) -> None:
        super().__init__(text)


class ExpiredKeyError(InvalidKeyError):
    """The API key, or its secret from before a rotation, has expired."""

    def __init__(self) -> None:
        super().__init__("This API key has expired; ask the operator of this server for another.")


class RevokedKeyError(InvalidKeyError):
    """The API key was revoked."""

    def __init__(self) -> None:
        super().__init__("This API key was revoked; ask the operator of this server for another.")


class TooManyBadKeysError(HttpError):
    """Too many bad keys came from one address; it has to wait."""

    def __init__(self, seconds: int) -> None:
        super().__init__(
            f"Too many bad API keys came from your address. Try again in {seconds} "
            f"second{'s' * (seconds != 1)}. Keys that worked before still work."
        )
        self.retry_seconds = seconds


class ForbiddenError(HttpError):
    """The API key lacks a scope or a model."""


class UnknownRouteError(HttpError):
    """No such path. A model's name is part of one."""

    def __init__(self, models: Sequence[str], *, has_docs: bool) -> None:
        """`models`: slugs of those that this server has."""
        are = "model is" if len(models) == 1 else "models are"
        where = "; /docs shows all paths" if has_docs else ""
        super().__init__(
            f"There is no such path or model here. The {are} {_listed(models)}{where}."
        )


class UnservedModelError(HttpError):
    """This release knows the model, and no worker of this server has run it."""

    def __init__(self, model: str, served: Sequence[str]) -> None:
        super().__init__(
            f"This server does not have the model `{model}`; it has {_listed(served)}. Its "
            f"operator can start a worker with MOCHI_MODELS={model}."
        )


class McpMissingError(HttpError):
    """The gateway runs without what `/mcp` needs."""

    def __init__(self) -> None:
        super().__init__(
            "This gateway runs without the extra `mcp`. Its operator can type, in a clone of the "
            f"project, {INSTALL} '.[mcp]', and start the gateway again."
        )


class NoVersionError(HttpError):
    """The path is that of a model, without the version of the API before it."""

    def __init__(self, base_url: str) -> None:
        super().__init__(
            f"There is no such path here: the base URL of a client ends with the version of the "
            f"API, like {base_url}/v1"
        )


class NotHereError(HttpError):
    """A service of another API that this server does not have."""

    def __init__(self, service: str, api: str = "hosted API") -> None:
        super().__init__(
            f"This server has no {service}, which the {api} has: it makes videos from text, "
            f"with `{MODEL}`."
        )


class WebhookNotFoundError(HttpError):
    """The key has no such standing webhook."""

    def __init__(self) -> None:
        super().__init__("This API key has no webhook with this `webhook_id`; list its webhooks.")


class WebhookUrlTakenError(HttpError):
    """Another standing webhook of the key has the URL."""

    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"Your webhook {webhook_id} has this URL: update that one, or delete it.")


class WrongVerbError(HttpError):
    """The path is right, the verb is not."""


class WrongContentTypeError(HttpError):
    """The declared content type is not one that the route takes."""

    def __init__(self, text: str = "") -> None:
        super().__init__(
            text
            or "Invalid content type: send JSON as `application/json`, or a form as "
            "`multipart/form-data` or `application/x-www-form-urlencoded`"
        )


class JsonAsFormError(WrongContentTypeError):
    """A body of JSON is declared to be a form, which is what curl does by itself."""

    def __init__(self) -> None:
        super().__init__(
            "Invalid content type: the body is JSON, and was sent as a form. Add the header "
            "`content-type: application/json`"
        )


class BadHeaderError(HttpError):
    """A header has an invalid value."""


class BadQueryError(HttpError):
    """A query parameter has an invalid value."""


class BodyTooLargeError(HttpError):
    """The body is too large."""


class BadHostError(HttpError):
    """The Host header is invalid."""


class RangeError(HttpError):
    """The requested range starts beyond the end of the video."""

    def __init__(self, size: int) -> None:
        super().__init__(f"The video has {size:,} bytes; the range starts beyond them.")
        self.size = size


class VideoNotReadyError(HttpError):
    """There is no video yet, or there will be none."""

    def __init__(self, request_id: str, failure: str) -> None:
        why = f"it failed: {failure}" if failure else "poll it until it is completed."
        super().__init__(f"Request {request_id} has no video: {why}")


class NoStillError(HttpError):
    """The request has a video, and not this still."""

    def __init__(self, request_id: str, still: Still, *, is_asked: bool) -> None:
        why = (
            "as a worker of an earlier release ran it: submit it again"
            if is_asked
            else f"as it was not asked for: a request has one with `{still}: true` in the submit"
        )
        super().__init__(f"Request {request_id} has no {still}, {why}.")


class NotADraftError(HttpError):
    """The request to finish is no draft."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"Request {request_id} is no draft: only one submitted with `draft_steps` can be "
            "finished."
        )


class DraftNotReadyError(HttpError):
    """The draft to finish waits or runs, or has failed."""

    def __init__(self, request_id: str, status: str, failure: str) -> None:
        remedy = (
            f"submit it again; it failed: {failure}"
            if failure
            else "poll it until it is COMPLETED, then finish it."
        )
        super().__init__(f"Draft {request_id} is {status}: {remedy}")


class OutOfFilesError(HttpError):
    """The process, or its machine, has as many open files as its limit allows."""

    remedy = "Too many open files: raise their limit (ulimit -n, LimitNOFILE)."

    def __init__(self) -> None:
        super().__init__(
            "This gateway can open no more files; try again in a moment. Its log has the remedy."
        )


class MockPaymentError(HttpError):
    """What the hosted API answers without credits; here only as a mock scenario."""

    def __init__(self) -> None:
        super().__init__("Insufficient credits, as requested by the mock scenario.")


class WaitTimeoutError(HttpError):
    """A blocking call reached its time limit, or the gateway stops. The request runs on."""

    def __init__(self, request_id: str, seconds: float, *, is_stopping: bool = False) -> None:
        status_path = f"/v2/requests/{request_id}"
        super().__init__(
            "This gateway stops before the video is ready. The request is kept: poll "
            f"{status_path} at another gateway, or after the next start."
            if is_stopping
            else f"The video is not ready after {seconds:.0f} seconds. It is still being made: "
            f"poll {status_path}"
        )


class CommandError(MochiError):
    """Base of the errors of the command line."""


class ClientError(CommandError):
    """`generate` was refused by the server, or got no usable response."""


class OutputError(CommandError):
    """An output file or folder cannot be written."""


class UnreachableError(ClientError):
    """The server did not respond; a retry may succeed."""


STATUS: dict[type[MochiError], int] = {
    InvalidParametersError: 400,
    MalformedBodyError: 400,
    BadHeaderError: 400,
    BadQueryError: 400,
    BadHostError: 400,
    NotADraftError: 400,
    MissingKeyError: 401,
    InvalidKeyError: 401,
    jobs.KeyEndedError: 401,
    ExpiredKeyError: 401,
    RevokedKeyError: 401,
    MockPaymentError: 402,
    ForbiddenError: 403,
    McpMissingError: 404,
    NoVersionError: 404,
    UnknownRouteError: 404,
    UnservedModelError: 404,
    NotHereError: 404,
    WebhookNotFoundError: 404,
    jobs.RequestNotFoundError: 404,
    VideoNotReadyError: 404,
    NoStillError: 404,
    WrongVerbError: 405,
    WrongContentTypeError: 406,
    JsonAsFormError: 406,
    jobs.TooFewCreditsError: 406,
    jobs.MonthlyCapError: 406,
    jobs.IdempotencyConflictError: 409,
    jobs.FinishConflictError: 409,
    WebhookUrlTakenError: 409,
    DraftNotReadyError: 409,
    BodyTooLargeError: 413,
    EncodedBodyError: 415,
    RangeError: 416,
    TooManyBadKeysError: 429,
    jobs.QueueFullError: 429,
    jobs.TooManyJobsError: 429,
    jobs.TooFastError: 429,
    jobs.VideoGoneError: 404,
    jobs.StorageError: 500,
    jobs.DiskFullError: 500,
    jobs.BrokerUnavailableError: 502,
    jobs.BrokerUnfitError: 502,
    jobs.SchemaError: 502,
    jobs.NoWorkerError: 502,
    jobs.OtherStoreError: 502,
    jobs.StoreUnverifiedError: 502,
    OutOfFilesError: 502,
    WaitTimeoutError: 504,
}
"""Every error that an HTTP client can get. 422 is not an error: it is the response for FAILED."""

NEVER_IN_HTTP: frozenset[type[MochiError]] = frozenset(
    {
        CommandError,
        EngineError,
        EngineUnavailableError,
        SettingsError,
        WeightsError,
        jobs.BrokerStartError,
        jobs.OutputsUnusableError,
        jobs.ProvenanceUnusableError,
        jobs.TracingUnusableError,
    }
)
"""Errors, with their subclasses, that stop a process at its start, end in a job record, or occur on
the command line only."""

MEANING: dict[int, str] = {
    400: "The body is not JSON; or a parameter or header is missing, wrong or out of range",
    401: "No API key, or one that is unknown, expired or revoked",
    402: "Only as a mock scenario: the hosted API answers so without credits",
    403: "The API key may not do this",
    404: "Unknown model or route; unknown or expired request, or one made with another key; or a "
    "video that is not ready, or whose file is gone",
    405: "Wrong verb",
    406: "Wrong or missing content type; or too few credits, in all or for this month",
    409: "The `Idempotency-Key` was used before with another body or model; or another standing "
    "webhook of the key has the URL; or the draft to finish is not COMPLETED, or has a finish with "
    "another `webhook_url`",
    413: "The body is over the limit",
    415: "The body is compressed",
    416: "The range starts beyond the end of the video",
    422: "The request ran and FAILED",
    429: "The queue is full; the API key has too many requests at once, or within a minute; or "
    "many bad keys came from the client's address",
    500: "A bug of the server; its log has the trace",
    502: "The broker is unreachable, or (v1) no live worker serves the model; "
    "or a worker stores videos where the gateway does not read them; or the gateway can open no "
    "more files",
    504: "v1 passed its time limit, or the gateway stops; the job runs on and can be polled on v2",
}
"""One line per status, for the OpenAPI document and `docs/api.md`."""


def _listed(slugs: Sequence[str]) -> str:
    return " and ".join(f"`{slug}`" for slug in slugs)


def visible(text: str) -> str:
    """`text` with unprintable characters escaped, as they could be terminal commands."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
