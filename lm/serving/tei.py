"""The routes of text-embeddings-inference (TEI), so that its clients work: huggingface_hub, and many others.

They answer with the first model of the server that can do the task; /similarity also takes our field `model`.
"""

import re
import time

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from lm import __version__, sharding
from lm.data.characters import without_surrogates
from lm.serving import large
from lm.serving.refusals import Refusal
from lm.serving.routes import Endpoint, answered, answered_apart
from lm.serving.schema import JSON, boolean, choice, either, fields, inputs, integer, optional, several, text
from lm.serving.served import Served
from lm.serving.service import TOKENIZING_THREADS, Given, Service, Times, as_list
from lm.tokenizers.frame import Frame

_STATUS = {"failed": 424, "unknown": 424}
_TYPES = {
    "unauthorized": "Unauthorized",
    "unknown": "Backend",
    "overloaded": "Overloaded",
    "failed": "Backend",
    "draining": "Unhealthy",
    "deadline": "Overloaded",
}


def error(refusal: Refusal) -> tuple[int, dict[str, object]]:
    """Words a refusal as TEI does. An empty input is 400."""
    if refusal.kind == "invalid" and re.match(r"(the text|\S+) is (empty|a list of 0)[;.]", str(refusal)):
        return 400, {"error": str(refusal), "error_type": "Empty"}
    status = _STATUS.get(refusal.kind, refusal.status)
    return status, {"error": str(refusal), "error_type": _TYPES.get(refusal.kind, "Validation")}


def _headers(times: Times, characters: int) -> dict[str, str]:
    milliseconds = lambda seconds: str(round(1000 * seconds))  # noqa: E731
    total = milliseconds(time.monotonic() - times.begun)
    return {
        "x-compute-type": sharding.platform(),
        "x-compute-time": total,
        "x-compute-characters": str(characters),
        "x-compute-tokens": str(times.tokens),
        "x-total-time": total,
        "x-tokenization-time": milliseconds(times.tokenizing),
        "x-queue-time": milliseconds(times.queueing),
        "x-inference-time": milliseconds(times.computing),
    }


def _characters(given: list[Given]) -> int:
    return sum(len(each) for each in given if isinstance(each, str))


# ---- Embeddings ---------------------------------------------------------------------------------

_CUT = {
    "truncate": optional(boolean()),
    "truncation_direction": choice("Left", "Right", "left", "right", default="Right"),
    "prompt_name": optional(text()),
}
_INPUTS = inputs(2048, least_text=1)
_EMBED = fields(
    {"inputs": _INPUTS}, {**_CUT, "normalize": boolean(default=True), "dimensions": optional(integer(1))}, strict=False
)
_EMBED_ALL = fields({"inputs": _INPUTS}, _CUT, strict=False)
_SIMILARITY = fields(
    {"inputs": fields({"source_sentence": text(1), "sentences": several(text(1))})},
    {"parameters": optional(fields({}, _CUT, strict=False)), "model": optional(text())},
    strict=False,
)
_PAIR = several(text(1), most=2)
_PREDICT = fields({"inputs": either(text(1), _PAIR, several(_PAIR, most=2048))}, _CUT, strict=False)
_RERANK = fields({"query": text(1), "texts": several(text(1), most=2048)}, _CUT, strict=False)


async def embed(service: Service, request: Request, body: JSON) -> Response:
    model, times, given = service.model(None, "embed"), Times(), as_list(body["inputs"])
    weights = model.weights
    rows = await _rows(service, model, given, body, times)
    vectors = await service.embed(
        request, weights, rows, times, normalize=body["normalize"], dimensions=body["dimensions"]
    )
    return await answered_apart(lambda: vectors, sum(map(np.size, vectors)), _headers(times, _characters(given)))


async def embed_all(service: Service, request: Request, body: JSON) -> Response:
    """Answers the vector of every token, special tokens included."""
    model, times, given = service.model(None, "embed"), Times(), as_list(body["inputs"])
    weights = model.weights
    rows = await _rows(service, model, given, body, times)
    found = await service.vectors(request, weights, rows, times)
    return await answered_apart(lambda: found, sum(map(np.size, found)), _headers(times, _characters(given)))


async def similarity(service: Service, request: Request, body: JSON) -> Response:
    model, times = service.model(body["model"], "embed"), Times()
    weights, given = model.weights, [body["inputs"]["source_sentence"], *body["inputs"]["sentences"]]
    cut = body["parameters"] or {"truncate": None, "truncation_direction": "Right", "prompt_name": None}
    rows = await _rows(service, model, given, cut, times)
    source_D, *others = await service.embed(request, weights, rows, times, normalize=True)
    found = [float(np.dot(source_D, vector_D)) for vector_D in others]
    return answered(found, headers=_headers(times, _characters(given)))


async def _rows(service: Service, model: Served, given: list[Given], body: JSON, times: Times) -> list:
    service.check_count(given, "inputs")
    how = {"truncate": body["truncate"], "side": body["truncation_direction"].lower()}
    return await service.embedding_rows(model.weights, given, times, prompt_name=body["prompt_name"], **how)


async def predict(service: Service, request: Request, body: JSON) -> Response:
    """Refuses: no model here has a head that classifies."""
    del service, request, body
    raise Refusal("unknown", "model is not a classifier model")


async def rerank(service: Service, request: Request, body: JSON) -> Response:
    """Refuses: no model here has a head that compares a query with a text."""
    del service, request, body
    raise Refusal("unknown", "model is not a re-ranker model")


# ---- Tokens ---------------------------------------------------------------------------------------

_TOKENIZE = fields(
    {"inputs": either(text(1), several(text(1), most=2048))},
    {"add_special_tokens": boolean(default=True), "prompt_name": optional(text())},
    strict=False,
)
_NUMBERS_A_TOKEN = 4  # of JSON that is as long as what /tokenize says of a token
_IDS = several(integer(0, (1 << 31) - 1))
_DECODE = fields(
    {"ids": either(_IDS, several(_IDS, most=2048))}, {"skip_special_tokens": boolean(default=True)}, strict=False
)


async def tokenize(service: Service, request: Request, body: JSON) -> Response:
    del request
    model = service.model(None)
    tokenizer = model.predictor.loaded.tokenizer
    given = [without_surrogates(each) for each in as_list(body["inputs"])]
    service.check_count(given, "inputs")
    ids = await service.in_thread(lambda: tokenizer.encode(given))
    tokens = sum(map(len, ids))
    large.check(tokens, "tokens", _NUMBERS_A_TOKEN)
    if body["add_special_tokens"]:
        special = tokenizer.special
        frame = tokenizer.frame(1) if model.is_encoder else Frame(((), (special.sep,)), ((), (0,)), (0,))
        ids = [frame.around([each])[0] for each in ids]
    specials = set(tokenizer.special_ids.tolist())
    one = lambda i: {"id": i, "text": tokenizer.id_to_piece(i), "special": i in specials, "start": None, "stop": None}  # noqa: E731
    described = lambda: [[one(i) for i in each.tolist()] for each in ids]  # noqa: E731
    return await answered_apart(described, _NUMBERS_A_TOKEN * tokens)


async def decode(service: Service, request: Request, body: JSON) -> Response:
    del request
    tokenizer = service.model(None).predictor.loaded.tokenizer
    given = as_list(body["ids"])
    service.check_count(given, "ids")
    for each in given:
        if max(each) >= tokenizer.vocab_size:
            raise Refusal("invalid", f"{max(each)} is no token id; there are {tokenizer.vocab_size}.", param="ids")
    if not body["skip_special_tokens"]:
        raise Refusal("invalid", "skip_special_tokens accepts true.", param="skip_special_tokens")
    return answered(await service.in_thread(lambda: [tokenizer.decode(each) for each in given]))


# ---- The server -----------------------------------------------------------------------------------


async def info(service: Service, request: Request, body: object) -> Response:
    del request, body
    model, settings = service.model(None), service.settings
    loaded = model.predictor.loaded
    kind: dict[str, object] = (
        {"embedding": {"pooling": ",".join(loaded.sentence_encoder.pooling)}}
        if model.is_encoder
        else {"generation": {}}
    )
    return answered(
        {
            "model_id": model.path,
            "model_sha": None,
            "model_dtype": loaded.config.train.activations,
            "served_model_name": model.name,
            "model_type": kind,
            "max_concurrent_requests": settings.waiting_items,
            "max_input_length": model.longest,
            "max_batch_tokens": service.scheduler.limits.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_inputs,
            "auto_truncate": settings.truncate,
            "tokenization_workers": TOKENIZING_THREADS,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            # Ours: the step of the weights, and what becomes of an embedding that a client wants shorter.
            "step": model.weights.step,
            "dimensions": "cut and normalized",
        }
    )


async def by_type(service: Service, request: Request, body: JSON) -> Response:
    """Answers a post to the server itself, as huggingface_hub's InferenceClient sends it, by the kind of the model."""
    if isinstance(body["inputs"], dict):
        return await similarity(service, request, body)
    return await embed(service, request, body)


_BY_TYPE = {**_EMBED, "properties": {**_SIMILARITY["properties"], **_EMBED["properties"]}}
_BY_TYPE["properties"]["inputs"] = either(*_INPUTS["anyOf"], _SIMILARITY["properties"]["inputs"])
_VECTORS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_LISTS = {"type": "array"}

ENDPOINTS = (
    Endpoint("/embed", embed, error, "Embed texts.", _EMBED, _VECTORS),
    Endpoint("/embed_all", embed_all, error, "Embed every token of texts.", _EMBED_ALL, _LISTS),
    Endpoint("/similarity", similarity, error, "Compare sentences with one sentence.", _SIMILARITY, _NUMBERS),
    Endpoint("/predict", predict, error, "Classify texts; no model here can.", _PREDICT, _LISTS, is_queued=False),
    Endpoint("/rerank", rerank, error, "Rank texts by a query; no model here can.", _RERANK, _LISTS, is_queued=False),
    Endpoint("/tokenize", tokenize, error, "Turn texts into tokens.", _TOKENIZE, _LISTS, is_queued=False),
    Endpoint("/decode", decode, error, "Turn token ids into texts.", _DECODE, _LISTS, is_queued=False),
    Endpoint("/info", info, error, "Describe the first model and the limits.", answer={"type": "object"}),
    Endpoint("/", by_type, error, "Embed or compare, by the kind of the model.", _BY_TYPE, _LISTS),
    Endpoint("/invocations", by_type, error, "The same as a post to /.", _BY_TYPE, _LISTS),
)
