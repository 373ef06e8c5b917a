"""OpenAI's routes that write: /v1/completions and /v1/chat/completions.

A completion is what the model writes for the prompt as its source. In a chat the source is the last message of the
user: an encoder-decoder knows no conversation.
"""

import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from lm.data.characters import without_surrogates
from lm.inference.options import Decoding
from lm.inference.packed import Row
from lm.inference.predict import Options
from lm.serving.lanes import Progress, Written
from lm.serving.openai import MOST_INPUTS, error
from lm.serving.refusals import Refusal
from lm.serving.routes import Endpoint, EventStream, answered
from lm.serving.scheduler import Item
from lm.serving.schema import JSON, boolean, either, fields, inputs, integer, number, optional, several, text
from lm.serving.served import Weights
from lm.serving.service import Service, Waiting, as_list, token_ids
from lm.serving.text import GrowingText, begin
from lm.tokenizers.special_ids import end_ids
from lm.tokenizers.tokenizer import Tokenizer

_NOT_HERE = (0, None, {}, "")  # values of a field that ask for nothing
_SAMPLING = {
    "model": optional(text()),
    "temperature": optional(number(0, 2)),
    "top_p": optional({**number(None, 1), "exclusiveMinimum": 0}),
    "top_k": optional(integer(0, (1 << 31) - 1)),
    "n": optional(integer(1, 128)),
    "stop": optional(either(text(1), several(text(1), most=4))),
    "seed": optional(integer()),
    "stream": optional(boolean()),
    "stream_options": optional(fields({}, {"include_usage": optional(boolean())}, strict=False)),
    "frequency_penalty": optional(number(-2, 2)),
    "presence_penalty": optional(number(-2, 2)),
    "logit_bias": optional({"type": "object"}),
    "user": optional(text()),
    "num_beams": optional(integer(1)),
    "length_penalty": optional(number()),
    "min_length": optional(integer(0)),
}
_COMPLETIONS = fields(
    {"prompt": inputs(MOST_INPUTS)},
    {
        **_SAMPLING,
        "max_tokens": optional(integer(1)),
        "best_of": optional(integer(1)),
        "logprobs": optional(integer(0, 5)),
        "echo": optional(boolean()),
        "suffix": optional(text()),
    },
)
_PART = fields({"type": text(), "text": text()}, strict=False)
_MESSAGE = fields({"role": text(), "content": either(text(), several(_PART))}, strict=False)
_CHAT = fields(
    {"messages": several(_MESSAGE)},
    {
        **_SAMPLING,
        "max_tokens": optional(integer(1)),
        "max_completion_tokens": optional(integer(1)),
        "logprobs": optional(boolean()),
        "top_logprobs": optional(integer(0, 20)),
    },
)


class _Scored(NamedTuple):
    """A written token: its piece, its log-probability, its place in the text, and the best tokens for its place.

    `tops` is None where the lane does not find them.
    """

    piece: str
    score: float
    offset: int
    tops: Sequence[tuple[str, float]] | None


@dataclasses.dataclass
class _Choice:
    """One choice of an answer while it is written, with what its log-probabilities need."""

    text: GrowingText
    tokenizer: Tokenizer
    wants_logprobs: bool
    sums: list[float] = dataclasses.field(default_factory=list)
    offsets: list[int] = dataclasses.field(default_factory=list)
    tops: list[Sequence[tuple[int, float]] | None] = dataclasses.field(default_factory=list)
    reason: str | None = None
    scored: int = 0  # tokens whose log-probability was told

    def add(self, result: Progress | Written) -> str:
        """Returns the new text."""
        if isinstance(result, Progress):
            before = self.text.text
            new = self.text.add(result.tokens)
            if self.wants_logprobs:
                self.sums += [result.log_probability] * len(result.tokens)
                self.offsets += [begin(before, self.text.text, self._piece(token)) for token in result.tokens]
                self.tops += [result.tops] * len(result.tokens)
            if self.text.stopped:
                self.reason = "stop"
            return new
        new = ""
        if len(self.text.ids) < result.length:  # beams are told when they are finished
            new = self.text.add(result.tokens_NT[0, len(self.text.ids) : result.length])
        self.reason = "stop" if self.text.ended else "length"
        return new + self.text.finish()

    def _piece(self, token: int) -> str:
        return self.tokenizer.id_to_piece(int(token)).replace("▁", " ").replace("Ġ", " ")

    def scores(self) -> list[_Scored]:
        """Returns the tokens since the last call, with their log-probabilities."""
        found = []
        for i in range(self.scored, len(self.sums)):
            gained = self.sums[i] - (self.sums[i - 1] if i else 0.0)
            best = self.tops[i]
            tops = None if best is None else [(self._piece(token), score) for token, score in best]
            found.append(_Scored(self._piece(self.text.ids[i]), gained, self.offsets[i], tops))
        self.scored = len(self.sums)
        return found


class _Writing:
    """What the two routes of completions share: the items of a request, and their growing texts."""

    def __init__(
        self,
        service: Service,
        request: Request,
        body: JSON,
        weights: Weights,
        decoding: Decoding,
        rows: Sequence[Row],
    ):
        self._service, self._request = service, request
        self.body, self.rows = body, rows
        tokenizer = weights.predictor.loaded.tokenizer
        stop = body["stop"] or []
        self.stop = [without_surrogates(each) for each in ([stop] if isinstance(stop, str) else stop)]
        self.wants_logprobs = _wants_logprobs(body)
        copies = body["n"] or 1
        seed = secrets.randbits(32) if body["seed"] is None else body["seed"] & 0xFFFFFFFF
        streams = bool(body["stream"] or self.stop or self.wants_logprobs)
        how = {"seed": seed, "streams": streams, "every_step": self.wants_logprobs}
        self.items: list[Item] = [
            service.to_write(weights, row, decoding, number=place * copies + copy, **how)
            for place, row in enumerate(rows)
            for copy in range(copies)
        ]
        ends = end_ids(weights.predictor.loaded.config, tokenizer.special)
        self.choices = [
            _Choice(GrowingText(tokenizer, self.stop, ends), tokenizer, self.wants_logprobs) for _ in self.items
        ]

    async def events(self) -> AsyncGenerator[tuple[int, str]]:
        """Yields the number of a choice and its new text; the last time with its reason set."""
        async with Waiting(self._service, self._request, self.items) as waiting:
            async for number, result, _ in waiting.events():
                choice = self.choices[number]
                if choice.reason is not None:
                    continue  # the end of an item that a stop string has ended
                assert isinstance(result, Progress | Written)
                new = choice.add(result)
                if choice.text.stopped and isinstance(result, Progress):
                    waiting.finish(number)
                yield number, new

    @property
    def usage(self) -> dict[str, int]:
        read = sum(len(row.tokens) for row in self.rows)
        written = sum(len(choice.text.ids) for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def decoding_options(body: JSON, weights: Weights) -> Options:
    """Returns the options that a request asks for; what it does not name is the model's default.

    Raises:
        Refusal: no model here has one of them.
    """
    refuse_unsupported(body, max(1, *(lane.shape.tops for lane in weights.lanes)))
    beams = body["num_beams"] or 1
    asked = body.get("max_completion_tokens") or body["max_tokens"]
    most = weights.lanes[0].shape.written
    if asked is not None and asked > most:
        raise Refusal("invalid", f"max_tokens is {asked}; this server writes at most {most}.", param="max_tokens")
    temperature = body["temperature"] if body["temperature"] is not None else float(beams == 1)
    given = {"max_length": asked or (min(16, most) if "prompt" in body else most), "num_beams": beams}
    given |= {"temperature": temperature, "length_penalty": body["length_penalty"], "min_length": body["min_length"]}
    if temperature:
        given |= {"top_k": body["top_k"] or 0, "top_p": body["top_p"] or 1.0}
    return Options(decoding=given)


def refuse_unsupported(body: JSON, most_tops: int) -> None:
    """Refuses what no model here can do, by name. `most_tops`: of how many best tokens the scores can be told."""
    for name in ("frequency_penalty", "presence_penalty", "logit_bias", "suffix", "echo"):
        if body.get(name) not in (*_NOT_HERE, False):
            raise Refusal("invalid", f"{name} is not supported; leave it out.", param=name)
    if body.get("best_of") not in (None, body["n"] or 1):
        raise Refusal("invalid", "best_of is supported only where it equals n; use num_beams.", param="best_of")
    param = "top_logprobs" if "messages" in body else "logprobs"
    if _asked(body) > most_tops:
        message = f"{param} is {_asked(body)}; this server finds {most_tops}. --top_logprobs, at its start, adds some."
        raise Refusal("invalid", message, param=param)
    if body.get("top_logprobs") and not body["logprobs"]:
        raise Refusal("invalid", "top_logprobs needs logprobs; set it to true.", param="top_logprobs")
    beams = body["num_beams"] or 1
    if beams > 1 and _wants_logprobs(body):
        raise Refusal("invalid", "logprobs are known without beams only; leave out num_beams.", param="logprobs")


async def completions(service: Service, request: Request, body: JSON) -> Response:
    model = service.model(body["model"], "generate")
    weights, given, copies = model.weights, as_list(body["prompt"]), body["n"] or 1
    service.check_count(range(len(given) * copies), "n" if copies > 1 else "prompt")
    prompt, decoding = weights.predictor.writing("generate", decoding_options(body, weights))

    def rows() -> list[Row]:
        ids = [prompt.row_of(token_ids(weights, each, "prompt")) if isinstance(each, list) else None for each in given]
        return [row or prompt.row(each) for row, each in zip(ids, given, strict=True)]

    writing = _Writing(service, request, body, weights, decoding, await service.written_rows(rows))
    head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time())}
    head |= {"model": model.name}
    piece = lambda number, new: {"text": new, "index": number, "logprobs": _logprobs(writing, number)}  # noqa: E731
    if body["stream"]:
        return await EventStream.make(_stream(writing, head, piece), error, service.settings.deadline)
    texts = await _collect(writing)
    choices = [
        {"text": whole, "index": i, "logprobs": _logprobs(writing, i), "finish_reason": writing.choices[i].reason}
        for i, whole in enumerate(texts)
    ]
    return answered(head | {"choices": choices, "usage": writing.usage})


async def chat(service: Service, request: Request, body: JSON) -> Response:
    model = service.model(body["model"], "generate")
    weights, source = model.weights, _last_user_message(body["messages"])
    service.check_count(range(body["n"] or 1), "n")
    prompt, decoding = weights.predictor.writing("generate", decoding_options(body, weights))
    rows = await service.written_rows(lambda: [prompt.row(source)])
    writing = _Writing(service, request, body, weights, decoding, rows)
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}
    begun: set[int] = set()

    def piece(number: int, new: str) -> dict[str, object]:
        role = {} if number in begun else {"role": "assistant"}
        begun.add(number)
        return {"index": number, "delta": role | {"content": new}, "logprobs": _chat_logprobs(writing, number)}

    if body["stream"]:
        events = _stream(writing, head | {"object": "chat.completion.chunk"}, piece)
        return await EventStream.make(events, error, service.settings.deadline)
    texts = await _collect(writing)
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": whole, "refusal": None},
            "logprobs": _chat_logprobs(writing, i),
            "finish_reason": writing.choices[i].reason,
        }
        for i, whole in enumerate(texts)
    ]
    return answered(head | {"object": "chat.completion", "choices": choices, "usage": writing.usage})


def _last_user_message(messages: Sequence[JSON]) -> str:
    """Returns the text of the last message of a user: an encoder-decoder has no conversation."""
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            return content if isinstance(content, str) else "".join(part["text"] for part in content)
    raise Refusal("invalid", "messages has no message of the user.", param="messages")


async def _collect(writing: _Writing) -> list[str]:
    async for _ in writing.events():
        pass
    return [choice.text.text for choice in writing.choices]


async def _stream(
    writing: _Writing, head: Mapping[str, object], piece: Callable[[int, str], dict[str, object]]
) -> AsyncGenerator[object]:
    """Yields the chunks of a stream: the new text of one choice each, and at the end the usage, if it is asked for."""
    with_usage = bool((writing.body["stream_options"] or {}).get("include_usage"))
    more = {"usage": None} if with_usage else {}
    async for index, new in writing.events():
        reason = writing.choices[index].reason
        if new or reason:
            yield {**head, "choices": [piece(index, new) | {"finish_reason": reason}], **more}
    if with_usage:
        yield {**head, "choices": [], "usage": writing.usage}


def _wants_logprobs(body: JSON) -> bool:
    """Returns whether the written tokens' log-probabilities are asked for. 0 asks for these, and for no best tokens."""
    return body["logprobs"] is not None and body["logprobs"] is not False


def _asked(body: JSON) -> int:
    """Returns for how many of the most probable tokens a request asks."""
    return (body["top_logprobs"] if "messages" in body else body["logprobs"]) or 0


def _tops(writing: _Writing, scored: _Scored) -> list[tuple[str, float]] | None:
    """Returns the best tokens that a request asks for; None where they are unknown. Greedy decoding writes the best."""
    if scored.tops is not None:
        return list(scored.tops[: _asked(writing.body)])
    is_greedy = not writing.items[0].work.decoding.temperature
    return [(scored.piece, scored.score)][: _asked(writing.body)] if is_greedy else None


def _logprobs(writing: _Writing, number: int) -> dict[str, object] | None:
    """Returns the log-probabilities of a choice's new tokens. The written token is among the best that are told."""
    if not writing.wants_logprobs:
        return None
    scores = writing.choices[number].scores()
    tops = [_tops(writing, each) for each in scores]
    knows = _asked(writing.body) and None not in tops
    told = [dict(best or ()) | {each.piece: each.score} for each, best in zip(scores, tops, strict=True)]
    return {
        "tokens": [each.piece for each in scores],
        "token_logprobs": [each.score for each in scores],
        "top_logprobs": told if knows else None,
        "text_offset": [each.offset for each in scores],
    }


def _chat_logprobs(writing: _Writing, number: int) -> dict[str, object] | None:
    if not writing.wants_logprobs:
        return None
    one = lambda piece, score: {"token": piece, "logprob": score, "bytes": list(piece.encode())}  # noqa: E731
    content = [
        one(each.piece, each.score) | {"top_logprobs": [one(*top) for top in _tops(writing, each) or ()]}
        for each in writing.choices[number].scores()
    ]
    return {"content": content, "refusal": None}


_WRITTEN = fields(
    {"id": text(), "object": text(), "created": integer(), "model": text(), "choices": {"type": "array"}}, strict=False
)

ENDPOINTS = (
    Endpoint("/v1/completions", completions, error, "Write text for prompts.", _COMPLETIONS, _WRITTEN),
    Endpoint("/v1/chat/completions", chat, error, "Write text for the last message of the user.", _CHAT, _WRITTEN),
)
