"""Text infilling: an encoder-decoder restores a text in which [MASK] stands for spans (BART; Lewis et al., 2020)."""

import dataclasses

import numpy as np

from lm.config import Config, DataConfig, ObjectiveConfig
from lm.data.examples import Examples
from lm.data.flat import choose, ranks, starts, uniform
from lm.data.special_ids import SpecialIds, require
from lm.data.store import Split
from lm.tasks.corrupted import CorruptedRows, hidden_counts
from lm.tasks.registry import register
from lm.tasks.rows import source_and_target_shapes
from lm.tasks.seq2seq import Seq2SeqLM
from lm.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Infilling:
    """Replaces each of several spans by one [MASK]; a span may be empty (BART; Lewis et al., 2020, section 2.2).

    Of n tokens m = round(rate n) are hidden in s = round(m / mean span) spans. The paper draws the lengths of spans
    from a Poisson distribution. We condition that on the sum m, which makes it multinomial, so that the size of the
    input depends on n alone. The target is the whole text.

    Attributes:
        rate, mean_span: see `ObjectiveConfig`.
        mask_id: the id of [MASK].
    """

    rate: float
    mean_span: float
    mask_id: int

    def counts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns how many tokens of each example are hidden, and in how many spans."""
        hidden, spans = hidden_counts(lengths, self.rate, self.mean_span)
        return hidden, np.minimum(spans, hidden)

    def sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of tokens in input and target, given the lengths of the examples."""
        hidden, spans = self.counts(lengths)
        return lengths - hidden + spans, lengths

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Returns the flat inputs of all examples."""
        hidden, spans = self.counts(lengths)
        shown = lengths - hidden
        # The gaps are before, between and after the shown tokens. Each span lies in a gap of its own.
        in_gap = choose(keys, shown + 1, spans, 0)
        first = np.repeat(starts(spans), hidden)
        span = first + (uniform(keys, hidden, 1) * np.repeat(spans, hidden)).astype(np.int64)
        span_sizes = np.bincount(span, minlength=int(spans.sum()))

        gap_sizes = np.zeros(len(in_gap), np.int64)  # hidden tokens in each gap
        gap_sizes[in_gap] = span_sizes
        is_token = ranks(shown + 1) < np.repeat(shown, shown + 1)  # the gap before a token, not the last one
        at = np.repeat(starts(lengths), shown) + ranks(shown)
        hidden_up_to = np.cumsum(gap_sizes) - np.repeat(starts(hidden), shown + 1)
        at += hidden_up_to[is_token]

        inputs = np.full(int((shown + spans).sum()), self.mask_id, tokens.dtype)
        spans_up_to = np.cumsum(in_gap)[is_token]
        inputs[np.arange(len(at)) + spans_up_to] = tokens[at]
        return inputs


def permuted_sentences(lengths: np.ndarray, sentences: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns the order of tokens after the sentences of each example are shuffled.

    Args:
        lengths: int [N], tokens of each example.
        sentences: int [sum(lengths)], the number of each token's sentence, ascending within an example.
        keys: uint64 [N], a random key for each example.

    Returns:
        int64 [sum(lengths)], the index of the token that moves to each position.
    """
    example = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.ones(len(sentences), bool)
    begins[1:] = (np.diff(sentences) != 0) | (np.diff(example) != 0)
    number = np.cumsum(begins) - 1
    per_example = np.bincount(example[begins], minlength=len(lengths))
    return np.lexsort((np.arange(len(sentences)), uniform(keys, per_example, 2)[number], example))


class InfillingRows(CorruptedRows):
    """Rows whose source is a text with spans hidden and whose target is the whole text.

    With `objective.permute_sentences` the sentences of the source are shuffled first.
    """

    def __init__(self, data: DataConfig, objective: ObjectiveConfig, special: SpecialIds, prefix: np.ndarray):
        require(special, "mask", use=f"objective.name={objective.name}")
        self._spans = Infilling(objective.mask_rate, objective.mean_span, special.mask)
        self._permute = objective.permute_sentences
        super().__init__(data, special, prefix)

    def corrupted_sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._spans.sizes(lengths)

    def corrupt(self, split: Split, examples: Examples, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths = examples.lengths[:, 0].astype(np.int64)
        shown = text = split.read(examples.starts[:, 0], lengths).astype(np.int32)
        if self._permute:
            at = np.repeat(examples.starts[:, 0], lengths) + ranks(lengths)
            sentence = np.searchsorted(split.sentence_offsets, at, side="right")
            shown = text[permuted_sentences(lengths, sentence, keys)]
        return self._spans(shown, lengths, keys), text


def answers(config: Config) -> tuple[str, ...]:
    del config
    return ("generate", "translate", "answer")


register(
    Task(
        name="infilling",
        architecture="encoder-decoder",
        row_format=InfillingRows,
        shapes=source_and_target_shapes,
        objective=Seq2SeqLM.create,
        answers=answers,
        hides="mask",
    )
)
