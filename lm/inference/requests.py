"""Requests in, answers out: what every task shares.

A request is a string, or a mapping with the fields of its task. Rows of similar length are computed together; each
request gets one answer, in order, and one that cannot be answered gets `{"error": ...}` while the others go on.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from lm import checkpoint, models
from lm.config import Config
from lm.data import tokenizer as tokenizers
from lm.data.tokenizer import Tokenizer

Answer = dict[str, Any]

ROWS = 16  # computed together at most
_SHORTEST = 16  # the smallest padded length; the others are its doubles


class RequestError(Exception):
    """One request that cannot be answered; the others can."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One request as the model reads it.

    Attributes:
        tokens: int32 [n].
        types: int32 [n], token types.
        truncated: whether text was cut off.
        index: its number among all requests.
    """

    tokens: np.ndarray
    types: np.ndarray
    truncated: bool
    index: int = 0


R = TypeVar("R")


def answers(
    requests: Iterable[Any],
    make_row: Callable[[Any], Row],
    compute: Callable[[Sequence[Row]], Iterable[R]],
    present: Callable[[Row, R], Answer],
) -> Iterator[Answer]:
    """Answers in the order of the requests.

    Args:
        requests: read as they are needed.
        make_row: a request as a row, or `RequestError`.
        compute: the results of at most `ROWS` rows.
        present: an answer from a row and its result.
    """
    numbered = enumerate(requests)
    while chunk := list(itertools.islice(numbered, 8 * ROWS)):
        found: dict[int, Answer] = {}
        rows: list[Row] = []
        for index, request in chunk:
            try:
                rows.append(dataclasses.replace(make_row(request), index=index))
            except RequestError as error:
                found[index] = {"error": str(error)}
        rows.sort(key=lambda row: len(row.tokens))
        for start in range(0, len(rows), ROWS):
            together = rows[start : start + ROWS]
            for row, result in zip(together, compute(together), strict=False):
                found[row.index] = present(row, result) | ({"truncated": True} if row.truncated else {})
        yield from (found[index] for index, _ in chunk)


def pad(rows: Sequence[Row], longest: int, pad_id: int) -> dict[str, np.ndarray]:
    """`tokens`, `segments`, `positions` and `types`, int32 [B, L].

    B and L are rounded up to powers of two, so that a handful of compiled programs serve all sizes; a row added so
    is a copy of padding.
    """
    length = min(round_up(max(len(row.tokens) for row in rows), _SHORTEST), longest)
    shape = (round_up(len(rows), 1), length)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "segments", "positions", "types")}
    batch["tokens"][:] = pad_id
    for index, row in enumerate(rows):
        size = len(row.tokens)
        batch["tokens"][index, :size] = row.tokens
        batch["segments"][index, :size] = 1
        batch["positions"][index, :size] = np.arange(size)
        batch["types"][index, :size] = row.types
    return batch


def round_up(value: int, least: int) -> int:
    """The next power of two, at least `least`."""
    return max(least, 1 << max(0, value - 1).bit_length())


def field(request: Any, name: str, default: str | None = None) -> str:
    """A string of a request, without lone surrogates; a plain line is its `text`.

    Raises:
        RequestError: it is missing (unless there is a default), no string, or empty.
    """
    if isinstance(request, str):
        request = {"text": request}
    if not isinstance(request, Mapping):
        raise RequestError(f'accepted: a line of text, or an object with the string "{name}".')
    value = request.get(name, default)
    if not isinstance(value, str):
        raise RequestError(f'the request needs the string "{name}".')
    if not value.strip() and value is not default:
        raise RequestError("the text is empty." if name == "text" else f'"{name}" is empty.')
    return value.encode("utf-8", "replace").decode()  # JSON can spell half a character; no tokenizer takes one


def parse(lines: Iterable[bytes]) -> Iterator[Any]:
    """Each line as a request, JSON where it begins with a brace; what cannot be read is None, which no task takes."""
    for line in lines:
        try:
            text = line.decode("utf-8").removeprefix("\ufeff").rstrip("\r\n")
            yield json.loads(text) if text.lstrip().startswith("{") else text
        except (ValueError, RecursionError):
            yield None


def load(path: str) -> tuple[epath.Path, Config, models.Params, Tokenizer]:
    """Reads `WORKDIR` or `WORKDIR/checkpoints/N`: the working directory, config, parameters and tokenizer.

    Raises:
        InputError: when there is no such checkpoint.
    """
    workdir, step = checkpoint.locate(path)
    config = checkpoint.read_config(workdir)
    return workdir, config, checkpoint.load_params(workdir, step), tokenizers.load_tokenizer(str(workdir))
