"""The attention weights of requests, computed by the engine like any other reading."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lm.inference import attention
from lm.inference.attention import Weights
from lm.inference.packed import Row
from lm.inference.predict import Predictor
from lm.serving.lanes import Found, Readers
from lm.serving.refusals import Refusal
from lm.serving.scheduler import Group, Item

LONGEST = 128  # tokens of a source, or of a decoder; more would be no picture to look at


@dataclasses.dataclass(frozen=True)
class ToAttend:
    """The work of an item whose weights are wanted: a row, and what a model that writes has written for it."""

    row: Row
    written_T: np.ndarray | None


class Attending(Readers):
    """The items whose attention weights one model computes, one by one, each padded to the same number of tokens."""

    def __init__(self, predictor: Predictor):
        Group.__init__(self)
        self._predictor = predictor

    def item(self, row: Row, written_T: np.ndarray | None) -> Item:
        """Returns the item of a row, and of what was written for it.

        Raises:
            Refusal: it has too many tokens.
        """
        decoded = 0 if written_T is None else len(attention.decoded(self._predictor, row, written_T)) - 1
        for tokens, what in ((len(row.tokens), "the input"), (decoded, "the text that is written")):
            if tokens > LONGEST:
                message = f"{what} has {tokens} tokens; attention is computed for at most {LONGEST}, so shorten it."
                raise Refusal("invalid", message, param="input")
        return Item(self, len(row.tokens) + decoded, ToAttend(row, written_T))

    def read(self, items: Sequence[Item]) -> Iterator[Found]:
        for item in items:
            yield Found([(item, self._weights(item.work))], 0)

    def warm_up(self) -> None:
        """Runs the program once."""
        loaded = self._predictor.loaded
        one = np.full(1, loaded.tokenizer.special.sep, np.int32)
        row = Row(one, np.zeros_like(one), np.zeros(0, np.int32), truncated=False)
        self._weights(ToAttend(row, None if loaded.is_encoder else one))

    def _weights(self, work: ToAttend) -> Mapping[str, Weights]:
        return attention.of_row(self._predictor, work.row, work.written_T, LONGEST)
