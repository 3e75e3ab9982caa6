"""The model, as clients list models; and the services of other APIs that are not here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from models.params import MODEL, GenerateParams
from server.api.call import Call
from server.api.listings import HostedModel, HostedModelsBody, ModelBody, ModelsBody
from server.api.openapi import errors
from server.errors import NotHereError
from server.keys.lookup import Scope
from server.paths import OPENAI_LACKING
from server.transport.responses import answer

_SERVICES = {
    "upload-asset": "upload of files",
    "workflows": "PixelFlows",
    "finetune": "fine-tuning",
}
"""What the first part of a path leads to at the hosted API."""
_ANY_VERB: dict[str, Any] = {
    "methods": ["GET", "POST", "PUT", "PATCH", "DELETE"],
    "include_in_schema": False,
}
_LIST: dict[str, Any] = {"responses": errors(401, 403, 500, 502)}

router = APIRouter(tags=["Models"])


@router.get("/v1/models", response_model=ModelsBody, **_LIST)
async def list_models(request: Request) -> Response:
    """The model, in the shape of the OpenAI API."""
    Call.of(request).key.require(Scope.READ)
    return answer(ModelsBody(data=[ModelBody()]))


@router.get(f"/v1/models/{MODEL}", response_model=ModelBody, **_LIST)
async def get_model(request: Request) -> Response:
    """The same, alone."""
    Call.of(request).key.require(Scope.READ)
    return answer(ModelBody())


@router.get("/inference-model-information/list", response_model=HostedModelsBody, **_LIST)
async def list_hosted_models(request: Request) -> Response:
    """The model with its parameters, in the shape of the hosted API."""
    Call.of(request).key.require(Scope.READ)
    parameters = GenerateParams.model_json_schema()["properties"]
    return answer(HostedModelsBody(models=[HostedModel(parameters=parameters)]))


@router.api_route("/upload-asset", **_ANY_VERB)
@router.api_route("/workflows/{path:path}", **_ANY_VERB)
@router.api_route("/finetune/{path:path}", **_ANY_VERB)
async def refuse_service(request: Request) -> Response:
    raise NotHereError(_SERVICES[request.scope["path"].split("/")[1]])


async def refuse_openai_service(request: Request) -> Response:
    raise NotHereError(request.scope["path"].split("/")[2], "OpenAI API")


for _folder in OPENAI_LACKING:
    router.add_api_route(_folder + "{path:path}", refuse_openai_service, **_ANY_VERB)
