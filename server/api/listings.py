"""Response bodies of what clients list: models; account, usage, history and webhooks of a key."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from models.request.catalogue import Model
from server.transport.error_body import absent_when_none

_PROMPT = (
    "Prompts are left out after the hour, unless the server keeps them (MOCHI_HISTORY_PROMPTS)."
)


class GenerationRow(BaseModel):
    """A request that has made a video, in the shape of the hosted API."""

    request_id: str
    model_name: str
    status: Literal["COMPLETED"] = "COMPLETED"
    generation_url: str | None = Field(description="The video; null when it has expired.")
    credits_deduction: float = Field(description="Credits charged.")
    latency_ms: int | None = Field(description="From the submit to the end.")
    prompt: str | None = Field(description=_PROMPT)
    parameters: dict[str, Any] = Field(description="As used.")
    created_at: datetime = Field(description="The submit.")


class HistoryRow(BaseModel):
    """A request of any state, in the shape of the hosted API."""

    request_id: str
    model_name: str
    model_status: Literal["COMPLETED", "FAILED", "PENDING"]
    credits_deduction: float = Field(description="Credits charged.")
    request_body: dict[str, Any] = Field(description=f"The parameters. {_PROMPT}")
    generation_url: str | None = Field(description="The video; null when there is none any more.")
    latency_ms: int | None = Field(description="From the submit to the end.")
    model_created: datetime = Field(description="The submit.")
    error: str | None = Field(description="When FAILED.")
    energy_joules: float | None = absent_when_none("As in `metrics` of the result.")
    cached: Literal[True] | None = absent_when_none("As in `metrics` of the result.")


class RecentBody(BaseModel):
    """The latest videos."""

    generations: list[GenerationRow]


class _PagedBody(BaseModel):
    page: int
    per_page: int
    total: int = Field(description="Rows on all pages.")
    total_pages: int


class GenerationsBody(_PagedBody):
    """One page of the requests that have made a video."""

    generations: list[GenerationRow]


class HistoryBody(_PagedBody):
    """One page of the history."""

    generations: list[HistoryRow]


class AccountCredits(BaseModel):
    """The credits of an account."""

    balance: float


class AccountBody(BaseModel):
    """The key, as the account of a user."""

    user_id: str = Field(description="The id of the key.")
    username: str = Field(description="The name of the key.")
    credits: AccountCredits


class CreditsBody(BaseModel):
    """The credits of the key."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    credits: float
    free_credits: float = Field(alias="free-credits")


class UsageRow(BaseModel):
    """The usage of one key on one day, in UTC."""

    model_config = ConfigDict(from_attributes=True)

    day: date
    key_id: str = Field(validation_alias="owner")
    requests: int = Field(description="Accepted requests.")
    completed: int = Field(description="Requests that ended with a video.")
    cancelled: int = Field(description="Requests that were cancelled.")
    blocked: int = Field(description="Requests that moderation blocked.")
    failed: dict[str, int] = Field(description="Requests that ended otherwise, by `error_code`.")
    gpu_seconds: float = Field(description="GPU time of all runs, including those without a video.")
    credits: float = Field(description="Credits charged.")
    energy_joules: float | None = absent_when_none(
        "Joules that the GPUs used for all runs; absent where they do not count."
    )
    cached: int | None = absent_when_none(
        "Of the completed requests, those without a run of their own; absent if none."
    )


class UsageBody(BaseModel):
    """Days and keys without usage are left out."""

    usage: list[UsageRow]


class ModelBody(BaseModel):
    """A model, as the OpenAI API describes one."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When it was published, in seconds since 1970.")
    owned_by: str

    @classmethod
    def of(cls, model: Model) -> Self:
        return cls(id=model.slug, created=model.published, owned_by=model.owner)


class ModelsBody(BaseModel):
    """The models of this server that the key may use."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class HostedModel(BaseModel):
    """A model, as the hosted API describes one."""

    title: str
    type: Literal["textToVideo"] = "textToVideo"
    description: str = "Makes a video from a text."
    slug: str
    parameters: dict[str, Any] = Field(description="The JSON schema of each, by name.")

    @classmethod
    def of(cls, model: Model) -> Self:
        parameters = model.request.model_json_schema()["properties"]
        return cls(title=model.title, slug=model.slug, parameters=parameters)


class HostedModelsBody(BaseModel):
    """The models of this server that the key may use."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    models: list[HostedModel] = Field(alias="Inference Segmind Model Information List With Details")


class WebhookRow(BaseModel):
    """A standing webhook."""

    webhook_id: str
    webhook_url: str
    event_types: list[str]
    status: Literal["active"] = "active"
    created_at: datetime = Field(description="When it was added, or changed.")


class WebhooksBody(BaseModel):
    """The standing webhooks of the key."""

    webhooks: list[WebhookRow]


class WebhookDone(BaseModel):
    """A standing webhook was added, changed or deleted."""

    status: Literal["success"] = "success"
    webhook_id: str
    message: str


class WebhookAttempt(BaseModel):
    """An attempt to deliver the end of a request, or a notice of the budget."""

    timestamp: datetime
    request_id: str = Field(description="Of a notice its `webhook-id`.")
    event_type: Literal["INFERENCE", "BUDGET"] = "INFERENCE"
    status: Literal["delivered", "failed"]
    response_code: int | None = Field(description="Null without an answer.")
    error: str | None = Field(description="Why it failed.")


class WebhookLogs(BaseModel):
    """The attempts of a standing webhook; each as long as its delivery is kept."""

    webhook_id: str
    logs: list[WebhookAttempt]
