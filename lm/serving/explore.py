"""What the page at / needs beside the tasks: GET /tasks, POST /attention, and its own files."""

import functools
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from lm.errors import InputError
from lm.inference.attention import Weights
from lm.inference.packed import Row
from lm.inference.predict import READING
from lm.inference.prompts import Prompt
from lm.inference.requests import RequestError
from lm.serving.lanes import Written
from lm.serving.openai import error
from lm.serving.refusals import Refusal
from lm.serving.routes import Endpoint, answered, answered_apart
from lm.serving.schema import JSON, choice, fields, integer, optional, several, text
from lm.serving.service import Service, Times
from lm.serving.tasks import OPTIONS, REQUEST, check_task, options_of

_FOLDER = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
# The page loads nothing from elsewhere, and no other page may frame it.
_POLICY = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


async def tasks(service: Service, request: Request, body: object) -> Response:
    """Answers what each model can do, and within which limits."""
    del request, body
    models = []
    for model in service.engine.models.values():
        config, lanes = model.predictor.loaded.config, model.weights.lanes
        models.append(
            {
                "name": model.name,
                "step": model.weights.step,
                "tasks": list(model.tasks),
                "longest_input": model.longest,
                "longest_output": model.longest_written,
                "beams": sorted({lane.shape.beams for lane in lanes}),
                "languages": list(config.languages),
                "layers": config.model.num_layers,
                "heads": config.model.num_heads,
            }
        )
    return answered({"models": models})


# ---- Attention ------------------------------------------------------------------------------------

_ASKED = fields(
    {"task": text(), "input": REQUEST},
    {**OPTIONS, "of": optional(choice("cross", "encoder", "decoder")), "layer": optional(integer(1))},
)


async def attention(service: Service, request: Request, body: JSON) -> Response:
    """Answers the attention weights of one layer. A model that writes first writes what it would answer."""
    task = body["task"]
    check_task(task)
    options, weights = options_of(body), service.model(body["model"], task).weights
    written_T = None
    if task in READING:
        row = await _row(service, weights.predictor.reading(task, options).prompt, body["input"])
    else:
        prompt, _ = weights.predictor.writing(task, options)
        row = await _row(service, prompt, body["input"])
        item = service.to_write(
            weights, row, weights.predictor.decoding_of(row, options), seed=options.seed & 0xFFFFFFFF
        )
        (written,) = await service.results(request, [item], Times())
        assert isinstance(written, Written)
        written_T = written.tokens_NT[0]
    (found,) = await service.results(request, [weights.attending.item(row, written_T)], Times())
    of = body["of"] or next(iter(found))
    if of not in found:
        raise Refusal("invalid", f"this model has no attention {of!r}; it has {', '.join(found)}.", param="of")
    layer = _layer(found[of], body["layer"])
    return await answered_apart(lambda: {"of": of, "has": list(found)} | layer, found[of].weights_NHLS[0].size)


async def _row(service: Service, prompt: Prompt, given: object) -> Row:
    try:
        return await service.in_thread(lambda: prompt.row(given))
    except RequestError as refusal:
        raise Refusal("invalid", str(refusal), param="input") from None


def _layer(weights: Weights, layer: int | None) -> dict[str, object]:
    """Returns one layer of the weights, the last one by default, and the tokens that they are between."""
    layers = len(weights.weights_NHLS)
    layer = layers if layer is None else layer
    if layer > layers:
        raise Refusal("invalid", f"layer is {layer}; accepted: 1 to {layers}.", param="layer")
    rounded_HLS = np.round(weights.weights_NHLS[layer - 1].astype(np.float64), 4)
    tokens = {"queries": list(weights.queries), "keys": list(weights.keys)}
    return {"layer": layer, "layers": layers, **tokens, "weights": rounded_HLS}


# ---- Files ----------------------------------------------------------------------------------------


def page_files() -> dict[str, Callable[[Request], Awaitable[Response]]]:
    """Returns what answers the path of each file of the page. They are read once.

    Raises:
        InputError: the installation lacks the page.
    """
    found = {}
    for file in sorted(_FOLDER.glob("*")):
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        content = file.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        found[path] = functools.partial(_file, content, tag, _TYPES[file.suffix])
    if "/" not in found:
        raise InputError(f"{_FOLDER} has no index.html; install lm again.")
    return found


async def _file(content: bytes, tag: str, kind: str, request: Request) -> Response:
    request.state.route = "/page"
    headers = {
        "etag": tag,
        "cache-control": "no-cache",
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
    }
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


# ---- Routes ---------------------------------------------------------------------------------------

_MODEL = fields({"name": text(), "step": integer(), "tasks": several(text())}, strict=False)
_WEIGHTS = several(several(several({"type": "number"})))
_TOKENS = several(text())
_FOUND = fields(
    {
        "of": text(),
        "has": several(text()),
        "layer": integer(1),
        "layers": integer(1),
        "queries": _TOKENS,
        "keys": _TOKENS,
        "weights": _WEIGHTS,
    }
)

ENDPOINTS = (
    Endpoint("/tasks", tasks, error, "List what each model can do.", answer=fields({"models": several(_MODEL)})),
    Endpoint("/attention", attention, error, "Compute the attention weights of a layer.", _ASKED, _FOUND),
)
