"""Text infilling: an encoder-decoder restores a text in which [MASK] stands for spans (BART; Lewis et al., 2020)."""

import dataclasses

import numpy as np

from lm.config import DataConfig, ObjectiveConfig
from lm.data.examples import Examples
from lm.data.flat import choose, ranks, starts, uniform
from lm.data.store import Split
from lm.tasks.corrupted import CorruptedRows, Texts, hidden_counts
from lm.tasks.registry import register
from lm.tasks.rows import source_and_target_shapes
from lm.tasks.seq2seq import Seq2SeqLM
from lm.tasks.task import Task
from lm.tokenizers.special_ids import SpecialIds, require


@dataclasses.dataclass(frozen=True)
class RandomSpans:
    """Replaces each of several spans of words by one [MASK] (BART; Lewis et al., 2020, section 2.2).

    It draws what `add_whole_word_mask` draws in fairseq/data/denoising_dataset.py of facebookresearch/fairseq, with
    `mask_length=span-poisson` and `replace_length=1`. Of W words m = ceil(rate W) are to be hidden: lengths of spans
    come from a Poisson distribution until they add up to m, and the last one is cut. Each span of a length above 0
    begins at a word of its own, and ends with the text at the latest. Spans may overlap: then fewer than m words are
    hidden, and a [MASK] that another span covers is hidden too. Each length of 0 inserts a [MASK] at a random place.

    Attributes:
        rate, mean_span: see `ObjectiveConfig`.
        mask_id: the id of [MASK].
    """

    rate: float
    mean_span: float
    mask_id: int

    def sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the most tokens that input and target can have.

        An input is shorter than its text by a share of about rate (1 - 1 / mean span), or less where spans overlap. We
        count on two thirds of that share, less eight tokens. This margin is six standard deviations at 500 tokens, and
        two at 20.
        """
        shorter = (self.rate * (1 - 1 / self.mean_span) * 2 / 3 * lengths).astype(np.int64)
        return np.minimum(lengths, lengths - shorter + 8), lengths

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray, keys: np.ndarray, starts_word: np.ndarray) -> Texts:
        """Returns the inputs of all examples. The rare one that is longer than `sizes(lengths)` is cut.

        Args:
            tokens: int [sum(lengths)], the flat tokens of N examples.
            lengths: int64 [N].
            keys: uint64 [N], a random key for each example.
            starts_word: bool [sum(lengths)], whether a token begins a word.
        """
        example = np.repeat(np.arange(len(lengths)), lengths)
        words = np.bincount(example[starts_word], minlength=len(lengths))
        spans, inserted, span_words = self._spans(words, keys)

        # The n-th word in a random order of an example's words begins its n-th span.
        of_word = np.repeat(np.arange(len(lengths)), words)
        order = np.lexsort((uniform(keys, words, 1), of_word))
        first_word = order[ranks(words) < np.repeat(spans, words)]
        word_begins = np.append(np.flatnonzero(starts_word), len(tokens))
        word_stop = np.repeat(np.cumsum(words), spans)  # the first word of the next example
        after_word = np.minimum(first_word + span_words, word_stop)
        text_stop = np.repeat(np.cumsum(lengths), spans)
        begin = word_begins[first_word]
        end = np.where(after_word == word_stop, text_stop, word_begins[after_word])

        covered = np.zeros(len(tokens) + 2, np.int64)  # by how many spans, their first tokens apart
        np.add.at(covered, begin + 1, 1)
        np.add.at(covered, end, -1)
        shown = np.cumsum(covered[: len(tokens)]) == 0
        masked = tokens.copy()
        masked[begin] = self.mask_id
        kept = np.bincount(example[shown], minlength=len(lengths))
        sizes = kept + inserted
        inputs = np.full(sizes.sum(), self.mask_id, tokens.dtype)
        inputs[~choose(keys, sizes, inserted, 2)] = masked[shown]
        most = self.sizes(lengths)[0]
        return inputs[ranks(sizes) < np.repeat(most, sizes)], np.minimum(sizes, most)

    def _spans(self, words: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns how many spans and insertions each example has, int64 [N], and the words of each span."""
        hidden = np.ceil(self.rate * words).astype(np.int64)
        draws = np.where(hidden, hidden + 32, 0)  # these add up to less than `hidden` about never
        of_draw = np.repeat(np.arange(len(words)), draws)
        counts = np.searchsorted(_poisson(self.mean_span), uniform(keys, draws, 0), side="right")
        total = np.cumsum(counts)
        before = total - counts
        before -= np.repeat(before[starts(draws)[draws > 0]], draws[draws > 0])
        counts = np.minimum(counts, hidden[of_draw] - before)
        used = before < hidden[of_draw]
        spans = np.bincount(of_draw[used & (counts > 0)], minlength=len(words))
        inserted = np.bincount(of_draw[used & (counts == 0)], minlength=len(words))
        return spans, inserted, counts[used & (counts > 0)]


def _poisson(mean: float) -> np.ndarray:
    """Returns P(X <= k) for k = 0, 1, ..., as far as it is below 1."""
    count = np.arange(1, 32 + int(8 * mean))
    density = np.exp(-mean + np.append(0.0, np.cumsum(np.log(mean / count))))
    return np.cumsum(density)


@dataclasses.dataclass(frozen=True)
class FixedSpans:
    """Replaces each of several spans by one [MASK]; a span may be empty.

    Of n tokens m = round(rate n) are hidden in s = round(m / mean span) spans, with a shown token between any two. The
    lengths of spans have a Poisson distribution, given their sum m, so that the size of the input depends on n alone.

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

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray, keys: np.ndarray, starts_word: np.ndarray) -> Texts:
        """Returns the inputs of all examples. The arguments are those of `RandomSpans`."""
        del starts_word
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
        return inputs, shown + spans


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
        kind = RandomSpans if objective.spans == "random" else FixedSpans
        self._spans = kind(objective.mask_rate, objective.mean_span, special.mask)
        self._permute = objective.permute_sentences
        super().__init__(data, special, prefix)

    def corrupted_sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._spans.sizes(lengths)

    def corrupt(self, split: Split, examples: Examples, keys: np.ndarray) -> tuple[Texts, Texts]:
        lengths = examples.lengths[:, 0].astype(np.int64)
        shown = text = split.read(examples.starts[:, 0], lengths).astype(np.int32)
        if self._permute:
            at = np.repeat(examples.starts[:, 0], lengths) + ranks(lengths)
            sentence = np.searchsorted(split.sentence_offsets, at, side="right")
            shown = text[permuted_sentences(lengths, sentence, keys)]
        return self._spans(shown, lengths, keys, split.starts_word(shown)), (text, lengths)


register(
    Task(
        name="infilling",
        architecture="encoder-decoder",
        row_format=InfillingRows,
        shapes=source_and_target_shapes,
        objective=Seq2SeqLM.create,
        answers=lambda _: ("generate", "translate", "answer"),
        hides="mask",
    )
)
