"""The tasks of a trained model, and their requests, one from each line. Nothing here needs jax.

A request is a string, or a mapping with the fields of its task. Each gets one answer, in order. A request that cannot
be answered gets `{"error": ...}`; the others are still answered.
"""

import collections
import json
import math
import os
import select
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from lm.data.characters import is_blank, without_surrogates

# The tasks of launch/predict.py. An encoder does the reading ones.
READING = ("fill-mask", "next-sentence", "embed")
WRITING = ("generate", "translate", "answer")
TASKS = (*READING, *WRITING)
# The fields of `lm.inference.predict.Options` that one task alone uses. The others, and those of `Decoding`, are for
# the writing tasks.
_OWN_OPTIONS = {
    "fill-mask": ("top",),
    "embed": ("pooling", "normalize", "prompt", "prompt_name"),
    "translate": ("language",),
}
# What --extra_options of a server takes, a field of `lm.inference.options.Extras` -> the option of a request. A server
# has these options of decoding if it was started with them, or if the model uses them by default.
EXTRA_OPTIONS = {
    "early_stopping": "early_stopping",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "repetition_penalty": "repetition_penalty",
    "forced": "forced_bos_token_id",
    "forced_eos": "forced_eos_token_id",
}

Request = object  # a string or a mapping; anything else is answered with an error
Answer = dict[str, Any]

TOGETHER = 256  # the most requests that are sorted by length and computed together
_BLOCK = 1 << 16  # bytes read at once, the capacity of a pipe


class RequestError(Exception):
    """One request cannot be answered; the others can."""


def has_effect(option: str, task: str) -> bool:
    """Returns whether a task uses an option, which is a field of `lm.inference.predict.Options` or of `Decoding`."""
    owner = owner_of(option)
    return task == owner if owner else task in WRITING


def owner_of(option: str) -> str | None:
    """Returns the task that alone uses an option; None for the options of all writing tasks."""
    return next((task for task, options in _OWN_OPTIONS.items() if option in options), None)


def field(request: Request, name: str, default: str | None = None) -> str:
    """Returns a string field of a request, with lone surrogates replaced. A plain string has the one field `text`.

    Raises:
        RequestError: the field is missing and has no default, is not a string, or has no character that can be seen.
    """
    if isinstance(request, str):
        request = {"text": request}
    if not isinstance(request, Mapping):
        raise RequestError(f'accepted: a line of UTF-8 text, or an object with the string "{name}".')
    value = request.get(name)
    if value is None:
        value = default
    if not isinstance(value, str):
        raise RequestError(f'the request needs the string "{name}".')
    if value is not default and is_blank(value):
        raise RequestError("the text is empty." if name == "text" else f'"{name}" is empty.')
    return without_surrogates(value)


def finite(answer: Answer) -> Answer:
    """Returns the answer, or an error in its place if it has a number that is not finite, which JSON cannot hold."""
    waiting: list[object] = [answer]
    while waiting:
        value = waiting.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return {"error": f"the model's output is {value}; its weights or this input give no finite number."}
        if isinstance(value, Mapping | list):
            waiting.extend(value.values() if isinstance(value, Mapping) else value)
    return answer


def parse(lines: Iterable[bytes]) -> Iterator[Request]:
    """Yields a request for each line: JSON if it begins with a brace, else text. A line it cannot read gives None."""
    for line in lines:
        try:
            text = line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
            yield json.loads(text) if text.lstrip().startswith("{") else text
        except (ValueError, RecursionError):
            yield None


def waiting_lines(file: IO[bytes], most: int = TOGETHER) -> Iterator[list[bytes]]:
    """Yields the lines of a file in lists: at least one line, and at most `most` that can be read without waiting.

    A regular file gives full lists. A pipe or a terminal gives a line as soon as it is complete, with the lines that
    arrived meanwhile. This reads the file's descriptor and not its buffer, so nothing may read from the file before.
    """
    descriptor = file.fileno()
    lines: collections.deque[bytes] = collections.deque()
    unfinished: list[bytes] = []
    ended = False
    while lines or not ended:
        while len(lines) < most and not ended and (not lines or select.select([descriptor], [], [], 0)[0]):
            block = os.read(descriptor, _BLOCK)
            ended = not block
            if b"\n" in block:
                *whole, block = b"".join([*unfinished, block]).split(b"\n")
                lines.extend(whole)
                unfinished.clear()
            unfinished.append(block)
            if ended and any(unfinished):
                lines.append(b"".join(unfinished))
        if lines:
            yield [lines.popleft() for _ in range(min(most, len(lines)))]
