"""Span corruption: an encoder-decoder predicts the spans that sentinels stand for (T5; Raffel et al., 2020)."""

import dataclasses

import numpy as np

from lm.config import DataConfig, ObjectiveConfig
from lm.data.examples import Examples, joined_text
from lm.data.flat import choose, ranks, starts
from lm.data.store import Split
from lm.errors import InputError
from lm.tasks.corrupted import CorruptedRows, Texts, hidden_counts
from lm.tasks.registry import register
from lm.tasks.rows import source_and_target_shapes
from lm.tasks.seq2seq import Seq2SeqLM
from lm.tasks.task import Task
from lm.tokenizers.special_ids import SpecialIds


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """Replaces each of several spans by a sentinel; the target is the spans (T5; Raffel et al., 2020, section 3.1.4).

    Of n tokens round(rate n) are hidden, in round(hidden / mean span) spans of random lengths. An input begins with
    shown text and ends with a sentinel. In a target each span follows its sentinel.

    Attributes:
        rate, mean_span: see `ObjectiveConfig`.
        first_sentinel: the id of the first sentinel. The ids of the others descend from it.
        most_spans: how many sentinels there are.
    """

    rate: float
    mean_span: float
    first_sentinel: int
    most_spans: int

    def counts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns how many of each example's n tokens are hidden, 1 to n - 1, and in how many spans, for n >= 2."""
        hidden, spans = hidden_counts(lengths, self.rate, self.mean_span)
        return hidden, np.minimum(np.minimum(spans, self.most_spans), lengths - hidden)

    def sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of tokens in input and target, given the lengths of the examples."""
        hidden, spans = self.counts(lengths)
        return lengths - hidden + spans, hidden + spans

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the flat inputs and the flat targets of all examples. Their sizes are `sizes(lengths)`."""
        hidden, spans = self.counts(lengths)
        of_hidden, hidden_per_span = self._partition(hidden, spans, keys, 0)
        of_shown, shown_per_span = self._partition(lengths - hidden, spans, keys, 1)
        nth_span = ranks(spans)
        sentinels = (self.first_sentinel - nth_span).astype(tokens.dtype)

        # The index of a span's first token: shown tokens before it plus hidden tokens before it.
        start = np.repeat(starts(lengths), spans)
        hidden_before = starts(hidden_per_span) - np.repeat(starts(hidden), spans)
        shown_up_to = np.cumsum(shown_per_span) - np.repeat(starts(lengths - hidden), spans)
        at_hidden = np.repeat(start + shown_up_to, hidden_per_span) + np.arange(len(of_hidden))
        at_hidden -= np.repeat(np.repeat(starts(hidden), spans), hidden_per_span)
        at_shown = np.repeat(start + hidden_before, shown_per_span) + np.arange(len(of_shown))
        at_shown -= np.repeat(np.repeat(starts(lengths - hidden), spans), shown_per_span)

        inputs = np.empty(len(of_shown) + len(sentinels), tokens.dtype)
        targets = np.empty(len(of_hidden) + len(sentinels), tokens.dtype)
        span = np.arange(len(sentinels))
        inputs[np.cumsum(shown_per_span) + span] = sentinels
        inputs[np.arange(len(of_shown)) + of_shown] = tokens[at_shown]
        targets[starts(hidden_per_span) + span] = sentinels
        targets[np.arange(len(of_hidden)) + of_hidden + 1] = tokens[at_hidden]
        return inputs, targets

    @staticmethod
    def _partition(totals: np.ndarray, parts: np.ndarray, keys: np.ndarray, use: int) -> tuple[np.ndarray, np.ndarray]:
        """Splits each total into so many parts of at least 1. All ways to do so are equally likely.

        Returns:
            The number of the part that each unit belongs to, counted over all examples, and the size of every part.
        """
        cut = choose(keys, totals - 1, parts - 1, use)
        begins = np.ones(totals.sum(), bool)
        begins[ranks(totals) > 0] = cut
        number = np.cumsum(begins) - 1
        return number, np.bincount(number, minlength=int(parts.sum()))


class SpanCorruptionRows(CorruptedRows):
    """Rows whose source has sentinels in the place of spans, and whose target has the spans after their sentinels."""

    def __init__(self, data: DataConfig, objective: ObjectiveConfig, special: SpecialIds, prefix: np.ndarray):
        if not special.num_sentinels:
            raise InputError(
                f"the tokenizer has no <extra_id_0>, which objective.name={objective.name} needs; use another "
                "tokenizer, or leave data.tokenizer empty to train one."
            )
        self._joins = objective.join_documents
        self._spans = SpanCorruption(
            objective.mask_rate, objective.mean_span, special.first_sentinel, special.num_sentinels
        )
        super().__init__(data, special, prefix)

    def corrupted_sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._spans.sizes(lengths)

    def pieces(self, split: Split, rng: np.random.Generator) -> Examples:
        return joined_text(split, self.longest, rng) if self._joins else super().pieces(split, rng)

    def corrupt(self, split: Split, examples: Examples, keys: np.ndarray) -> tuple[Texts, Texts]:
        lengths = examples.lengths[:, 0].astype(np.int64)
        text = split.read(examples.starts[:, 0], lengths).astype(np.int32)
        (sources, targets), (source_sizes, target_sizes) = self._spans(text, lengths, keys), self._spans.sizes(lengths)
        return (sources, source_sizes), (targets, target_sizes)


register(
    Task(
        name="span_corruption",
        architecture="encoder-decoder",
        row_format=SpanCorruptionRows,
        shapes=source_and_target_shapes,
        objective=Seq2SeqLM.create,
        answers=lambda _: ("generate", "translate", "answer"),
        hides="sentinel",
    )
)
