"""The models, as clients list them; and the services of other APIs that are not here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from models.request.catalogue import CATALOGUE, Model
from server.api.call import Call
from server.api.listings import HostedModel, HostedModelsBody, ModelBody, ModelsBody
from server.api.openapi import errors, name_suffix
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
    """The models that the key may use, in the shape of the OpenAI API."""
    return answer(ModelsBody(data=[*map(ModelBody.of, _usable_models(Call.of(request)))]))


async def get_model(request: Request) -> Response:
    """One of them."""
    call = Call.of(request)
    call.key.require(Scope.READ)
    slug = request.scope["path"].rpartition("/")[2]
    model = call.services.models.find(slug)
    call.key.require_model(model.slug)
    return answer(ModelBody.of(model))


for _model in CATALOGUE.values():
    router.add_api_route(
        f"/v1/models/{_model.slug}",
        get_model,
        name=get_model.__name__ + name_suffix(_model),
        response_model=ModelBody,
        responses=errors(401, 403, 404, 500, 502),
    )


@router.get("/inference-model-information/list", response_model=HostedModelsBody, **_LIST)
async def list_hosted_models(request: Request) -> Response:
    """The same with their parameters, in the shape of the hosted API."""
    models = _usable_models(Call.of(request))
    return answer(HostedModelsBody(models=[*map(HostedModel.of, models)]))


def _usable_models(call: Call) -> list[Model]:
    """A program that asks for a listed model must not be refused."""
    call.key.require(Scope.READ)
    return [model for model in call.services.models if call.key.may_use(model.slug)]


@router.api_route("/upload-asset", **_ANY_VERB)
@router.api_route("/workflows/{path:path}", **_ANY_VERB)
@router.api_route("/finetune/{path:path}", **_ANY_VERB)
async def refuse_service(request: Request) -> Response:
    raise NotHereError(_SERVICES[request.scope["path"].split("/")[1]])


async def refuse_openai_service(request: Request) -> Response:
    raise NotHereError(request.scope["path"].split("/")[2], "OpenAI API")


for _folder in OPENAI_LACKING:
    router.add_api_route(_folder + "{path:path}", refuse_openai_service, **_ANY_VERB)
