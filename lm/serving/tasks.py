"""POST /tasks/TASK, with the requests and answers of launch/predict.py; and POST /admin/reload."""

import dataclasses
from collections.abc import AsyncGenerator, Mapping, Sequence

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from lm.data.sentence_encoder import POOLINGS
from lm.inference import predict
from lm.inference.options import Decoding
from lm.inference.packed import Row
from lm.inference.predict import READING, TASKS, Options
from lm.inference.prompts import Embed, FillMask, Prompt
from lm.inference.requests import Answer, RequestError
from lm.serving import large
from lm.serving.lanes import Progress, Written
from lm.serving.openai import error
from lm.serving.refusals import Refusal
from lm.serving.routes import Endpoint, EventStream, answered, answered_apart
from lm.serving.schema import JSON, boolean, choice, either, fields, integer, number, optional, several, text
from lm.serving.served import Weights
from lm.serving.service import Service, Times, Waiting, as_list
from lm.serving.text import GrowingText

REQUEST = either(text(), {"type": "object"})
_IDS = {"type": "array", "items": integer(0, (1 << 31) - 1), "maxItems": 1024}
_KINDS = {
    int: integer(-1, (1 << 31) - 1),
    float: number(),
    bool | str: either(boolean(), choice("never")),
    Sequence[int]: _IDS,
    Sequence[Sequence[int]]: {"type": "array", "items": _IDS, "maxItems": 1024},
}
_DECODING = {field.name: optional(_KINDS[field.type]) for field in dataclasses.fields(Decoding)}
OPTIONS = {
    "model": optional(text()),
    "top": integer(1, 1000, default=5),
    "pooling": optional(choice(*POOLINGS)),
    "normalize": optional(boolean()),
    "prompt": optional(text()),
    "prompt_name": optional(text()),
    "language": text(default=""),
    "seed": integer(default=0),
    **_DECODING,
}
_KEPT = 64  # logits of a mask that count as one number of the answer: a request keeps at most 1 GiB of them
_TASK = fields({"inputs": either(REQUEST, several(REQUEST, most=2048))}, {"stream": boolean(default=False), **OPTIONS})


def options_of(body: JSON) -> Options:
    """Returns the options of a body that was checked with `OPTIONS`."""
    names = ("top", "pooling", "normalize", "prompt", "prompt_name", "language", "seed")
    return Options(**{name: body[name] for name in names}, decoding={name: body[name] for name in _DECODING})


def check_task(task: str) -> None:
    """Refuses what is no task.

    Raises:
        Refusal: there is no such task.
    """
    if task not in TASKS:
        raise Refusal("unknown", f"there is no such task; accepted: {', '.join(TASKS)}.", param="task")


async def answer(service: Service, request: Request, body: JSON) -> Response:
    task = request.path_params["task"]
    check_task(task)
    given = as_list(body["inputs"]) if isinstance(body["inputs"], list | str) else [body["inputs"]]
    service.check_count(given, "inputs")
    options, model = options_of(body), service.model(body["model"], task)
    if task in READING:
        if body["stream"]:
            raise Refusal("invalid", f"{task} has no stream: its answers come at once.", param="stream")
        return await _read(service, request, model.weights, task, options, given)
    return await _write(service, request, model.weights, task, options, given, stream=body["stream"])


async def _read(
    service: Service, request: Request, weights: Weights, task: str, options: Options, given: Sequence[object]
) -> Response:
    reading, readers = weights.reading(task, options)
    rows, errors = await _rows(service, reading.prompt, given)
    if isinstance(reading.prompt, FillMask):
        kept = weights.predictor.loaded.config.model.vocab_size // _KEPT
        large.check(sum(len(row.places) for row in rows.values()), "masks", max(options.top, kept))
    if isinstance(reading.prompt, Embed):
        large.check(len(rows), "inputs", weights.embedding_size(reading.prompt))
    outputs = await service.read(request, weights, readers, list(rows.values()), Times())
    return await answered_apart(lambda: _answers(reading.prompt, rows, outputs, errors), sum(map(np.size, outputs)))


async def _write(
    service: Service, request: Request, weights: Weights, task: str, options: Options, given: Sequence, *, stream: bool
) -> Response:
    prompt, decoding = weights.predictor.writing(task, options)
    rows, answers = await _rows(service, prompt, given)
    how = {"seed": options.seed & 0xFFFFFFFF, "streams": stream}
    items = [
        service.to_write(weights, row, weights.predictor.decoding_of(row, options), number=index, **how)
        for index, row in rows.items()
    ]
    numbers = list(rows)
    if not stream:
        results = await service.results(request, items, Times())
        written = [(each.tokens_NT, each.scores_N) for each in results]
        tokens = sum(tokens_NT.size for tokens_NT, _ in written)
        return await answered_apart(lambda: _answers(prompt, rows, written, answers), tokens)
    tokenizer = weights.predictor.loaded.tokenizer

    async def events() -> AsyncGenerator[object]:
        for index, refusal in answers.items():
            yield {"index": index, "answer": refusal}
        texts = [GrowingText(tokenizer, ends=prompt.ends) for _ in items]
        async with Waiting(service, request, items) as waiting:
            async for place, result, _ in waiting.events():
                if isinstance(result, Progress):
                    if new := texts[place].add(result.tokens):
                        yield {"index": numbers[place], "text": new}
                    continue
                assert isinstance(result, Written)
                if decoding.num_beams == 1 and (rest := texts[place].finish()):
                    yield {"index": numbers[place], "text": rest}
                found = predict.answer(prompt, rows[numbers[place]], (result.tokens_NT, result.scores_N))
                yield {"index": numbers[place], "answer": found}

    return await EventStream.make(events(), error, service.settings.deadline)


def _answers(
    prompt: Prompt, rows: Mapping[int, Row], results: Sequence[object], errors: Mapping[int, Answer]
) -> dict[str, list[Answer]]:
    """Returns the answers to all requests, in their order."""
    found = {index: predict.answer(prompt, row, each) for (index, row), each in zip(rows.items(), results, strict=True)}
    found |= errors
    return {"answers": [found[index] for index in sorted(found)]}


async def _rows(service: Service, prompt: Prompt, given: Sequence[object]) -> tuple[dict[int, Row], dict[int, Answer]]:
    """Returns the rows of the requests that can be answered, and the errors of the others, by index."""

    def make() -> tuple[dict[int, Row], dict[int, Answer]]:
        rows: dict[int, Row] = {}
        errors: dict[int, Answer] = {}
        for index, each in enumerate(given):
            try:
                rows[index] = prompt.row(each)
                if rows[index].truncated and not service.settings.truncate:
                    raise RequestError("the text is longer than the model reads; shorten it.")
            except RequestError as refusal:
                errors[index] = {"error": str(refusal)}
                rows.pop(index, None)
        return rows, errors

    return await service.tokenize(make)


async def reload(service: Service, request: Request, body: JSON) -> Response:
    """Reads a new checkpoint. Running requests finish with the weights that they have."""
    del request
    model = service.model(body["model"])
    step, is_new = await service.reload(model.name)
    return answered({"model": model.name, "step": step, "loaded": is_new})


_ANSWERS = fields({"answers": {"type": "array", "items": {"type": "object"}}})
_RELOAD = fields({}, {"model": optional(text())})
_RELOADED = fields({"model": text(), "step": integer(), "loaded": boolean()})

ENDPOINTS = (
    Endpoint("/tasks/{task}", answer, error, "Do a task of launch/predict.py.", _TASK, _ANSWERS),
    Endpoint(
        "/admin/reload", reload, error, "Serve the newest checkpoint of a model.", _RELOAD, _RELOADED, is_queued=False
    ),
)
