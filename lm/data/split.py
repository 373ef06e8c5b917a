"""One split of a corpus, and the windows of it: some of its blocks, which are read when they are needed."""

import dataclasses
import functools
import threading

import numpy as np

from lm.data.arrays import Column
from lm.tokenizers.tokenizer import Tokenizer

DOCUMENTS, SENTENCES, TOKENS = range(3)  # the columns of a block's counts

MEMORY_LIMIT = 1 << 30  # bytes; the tokens of a larger split are read on demand


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Some ranges of an array, one after the other: elements `starts[i]` to `stops[i]`, int64 [N]."""

    array: np.ndarray | Column
    starts: np.ndarray
    stops: np.ndarray


Values = np.ndarray | Column | Ranges


class Split:
    """One split of a corpus, or a window of it. Its arrays are read when they are first used.

    A block is a run of whole documents of one shard. A window is some blocks, and is a split of its own: its tokens,
    sentences and documents are counted from its first one.

    Attributes:
        blocks: int64 [N, 3], documents, sentences and tokens of each block.
    """

    def __init__(
        self,
        tokens: Values,
        sentence_lengths: Values,
        document_lengths: Values,
        tokenizer: Tokenizer | None = None,
        *,
        document_tokens: Values | None = None,
        blocks: np.ndarray | None = None,
        memory_limit: int = MEMORY_LIMIT,
    ):
        """Wraps arrays as in `Text`, in memory or in a store.

        Args:
            tokens: [T].
            sentence_lengths: [S], tokens of each sentence.
            document_lengths: [D], sentences of each document.
            tokenizer: the tokenizer that made the tokens.
            document_tokens: [D], tokens of each document; by default they are counted from the other two.
            blocks: as the attribute; by default everything is one block.
            memory_limit: bytes; the tokens of a larger split are read on demand.
        """
        self._tokens, self._sentence_lengths, self._document_lengths = tokens, sentence_lengths, document_lengths
        self._document_tokens, self._memory_limit = document_tokens, memory_limit
        self._word_starts = functools.cache(tokenizer.starts_word) if tokenizer else None
        self._lock = threading.Lock()
        if blocks is None:
            sizes = [_all(values).sum(dtype=np.int64) for values in (document_lengths, sentence_lengths)]
            blocks = np.array([[len(_all(document_lengths)), *sizes]])
        self.blocks = blocks

    @property
    def num_tokens(self) -> int:
        return int(self.blocks[:, TOKENS].sum())

    @property
    def num_documents(self) -> int:
        return int(self.blocks[:, DOCUMENTS].sum())

    @functools.cached_property
    def sentence_offsets(self) -> np.ndarray:
        """int64 [S+1]; sentence s is tokens `sentence_offsets[s]:sentence_offsets[s+1]`."""
        return _offsets(_all(self._sentence_lengths))

    @functools.cached_property
    def document_offsets(self) -> np.ndarray:
        """int64 [D+1]; document d is sentences `document_offsets[d]:document_offsets[d+1]`."""
        return _offsets(_all(self._document_lengths))

    @functools.cached_property
    def document_bounds(self) -> np.ndarray:
        """int64 [D+1]; document d is tokens `document_bounds[d]:document_bounds[d+1]`."""
        if self._document_tokens is not None:
            return _offsets(_all(self._document_tokens))
        return _offsets(_all(self._sentence_lengths))[_offsets(_all(self._document_lengths))]

    def starts_word(self, tokens: np.ndarray) -> np.ndarray:
        """Returns whether each token begins a word, bool, of the shape of `tokens`; without a tokenizer each does."""
        return np.ones(tokens.shape, bool) if self._word_starts is None else self._word_starts()[tokens]

    def window(self, blocks: np.ndarray) -> "Split":
        """Returns a window of the split. Nothing is read yet; its tokens will be read whole.

        Args:
            blocks: int [any], the numbers of its blocks, ascending.
        """
        stops = np.cumsum(self.blocks, axis=0)[blocks]
        starts = stops - self.blocks[blocks]

        def part(values: Values, kind: int) -> Ranges:
            assert not isinstance(values, Ranges), "a window has no windows"
            return Ranges(values, starts[:, kind], stops[:, kind])

        window = Split(
            part(self._tokens, TOKENS),
            part(self._sentence_lengths, SENTENCES),
            part(self._document_lengths, DOCUMENTS),
            document_tokens=None if self._document_tokens is None else part(self._document_tokens, DOCUMENTS),
            blocks=self.blocks[blocks],
        )
        window._word_starts = self._word_starts
        return window

    def load(self) -> None:
        """Reads the tokens into memory, unless there are too many of them.

        Raises:
            InputError: the storage refuses, or the data is damaged.
        """
        with self._lock:
            tokens = self._tokens
            small = isinstance(tokens, Column) and len(tokens) * tokens.dtype.itemsize <= self._memory_limit
            if small or isinstance(tokens, Ranges):
                self._tokens = _all(tokens)

    def read(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns the tokens of some spans, one after the other.

        Args:
            starts: int [N], first token of each span.
            lengths: int [N].

        Returns:
            uint16 or uint32 [sum(lengths)].

        Raises:
            InputError: the storage refuses, or the data is damaged.
        """
        self.load()
        tokens = self._tokens
        starts, lengths = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
        if isinstance(tokens, Column):
            return tokens.read(starts, starts + lengths)
        assert isinstance(tokens, np.ndarray), "the tokens of a window are in memory"
        ends = np.cumsum(lengths)
        index = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
        return tokens[index]


def _all(values: Values) -> np.ndarray:
    """Returns a whole array, read from the store where it is not in memory."""
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, Column):
        return values.read(np.zeros(1, np.int64), np.array([len(values)]))
    if isinstance(values.array, Column):
        return values.array.read(values.starts, values.stops)
    return np.concatenate([values.array[a:b] for a, b in zip(values.starts, values.stops, strict=True)])


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
