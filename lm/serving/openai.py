"""OpenAI's routes /v1/embeddings and /v1/models, and its errors. `completions` has the routes that write."""

import base64

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from lm.serving.refusals import Refusal
from lm.serving.routes import Endpoint, answered, answered_apart
from lm.serving.schema import JSON, choice, fields, inputs, integer, optional, text
from lm.serving.service import Service, Times, as_list

MOST_INPUTS = 2048
_TYPES = {
    "overloaded": "rate_limit_error",
    "failed": "server_error",
    "draining": "server_error",
    "deadline": "timeout_error",
}
_CODES = {"unauthorized": "invalid_api_key", "unknown": "model_not_found", "overloaded": "rate_limit_exceeded"}


def error(refusal: Refusal) -> tuple[int, dict[str, object]]:
    """Words a refusal as OpenAI does: a wrong field is 400."""
    found = {
        "message": str(refusal),
        "type": _TYPES.get(refusal.kind, "invalid_request_error"),
        "param": refusal.param or None,
        "code": _CODES.get(refusal.kind) if refusal.kind != "unknown" or refusal.param == "model" else None,
    }
    return 400 if refusal.kind == "invalid" else refusal.status, {"error": found}


# ---- Embeddings and models ------------------------------------------------------------------------

_EMBEDDINGS = fields(
    {"input": inputs(MOST_INPUTS, least_text=1)},
    {
        "model": optional(text()),
        "encoding_format": choice("float", "base64", default="float"),
        "dimensions": optional(integer(1)),
        "user": optional(text()),
    },
)


async def embeddings(service: Service, request: Request, body: JSON) -> Response:
    model, times = service.model(body["model"], "embed"), Times()
    weights, given = model.weights, as_list(body["input"])
    service.check_count(given, "input")
    rows = await service.embedding_rows(weights, given, times, param="input", hint="shorten it")
    vectors = await service.embed(request, weights, rows, times, normalize=True, dimensions=body["dimensions"])
    as_base64 = body["encoding_format"] == "base64"
    usage = {"prompt_tokens": times.tokens, "total_tokens": times.tokens}

    def answer() -> dict[str, object]:
        told = map(_base64, vectors) if as_base64 else vectors
        data = [{"object": "embedding", "index": i, "embedding": each} for i, each in enumerate(told)]
        return {"object": "list", "data": data, "model": model.name, "usage": usage}

    return await answered_apart(answer, sum(map(np.size, vectors)))


def _base64(vector_D: np.ndarray) -> str:
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()


async def models(service: Service, request: Request, body: object) -> Response:
    del request, body
    data = [_model(name, model.loaded_at) for name, model in service.engine.models.items()]
    return answered({"object": "list", "data": data})


async def one_model(service: Service, request: Request, body: object) -> Response:
    del body
    model = service.model(request.path_params["name"])
    return answered(_model(model.name, model.loaded_at))


def _model(name: str, created: float) -> dict[str, object]:
    return {"id": name, "object": "model", "created": int(created), "owned_by": "lm"}


_EMBEDDED = fields({"object": choice("list"), "data": {"type": "array"}, "model": text(), "usage": {"type": "object"}})
_LISTED = fields({"object": choice("list"), "data": {"type": "array"}})
_ONE = fields({"id": text(), "object": choice("model"), "created": integer(), "owned_by": text()})

ENDPOINTS = (
    Endpoint("/v1/embeddings", embeddings, error, "Embed texts or token arrays.", _EMBEDDINGS, _EMBEDDED),
    Endpoint("/v1/models", models, error, "List the models.", answer=_LISTED),
    Endpoint("/v1/models/{name}", one_model, error, "Describe a model.", answer=_ONE),
)
