"""The special tokens that stand around one text or two."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Frame:
    """The special tokens of a model's input of one or two texts.

    Attributes:
        ids: the special tokens before the first text, after it and, with two texts, after the second.
        types: the token type of each of them.
        text_types: the token type of each text.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of special tokens."""
        return sum(map(len, self.ids))

    def around(self, texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns tokens and token types, int32 [n], of the texts with their special tokens."""
        tokens, types = [np.array(self.ids[0], np.int32)], [np.array(self.types[0], np.int32)]
        for text, kind, ids, kinds in zip(texts, self.text_types, self.ids[1:], self.types[1:], strict=True):
            tokens += [text, np.array(ids, np.int32)]
            types += [np.full(len(text), kind), np.array(kinds, np.int32)]
        return np.concatenate(tokens).astype(np.int32), np.concatenate(types).astype(np.int32)


def cls_and_sep(cls: int, sep: int, texts: int) -> Frame:
    """Returns BERT's frame: [CLS] text [SEP], or [CLS] text [SEP] text [SEP]."""
    return Frame(((cls,), *((sep,),) * texts), ((0,), *((kind,) for kind in range(texts))), tuple(range(texts)))
