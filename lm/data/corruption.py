"""Hides spans of text, many examples at once, as a pure function of a key for each example.

Everything is flat: N examples lie one after the other, `counts` [N] says how long each is. Random numbers come from
hashing (key, place), so an example is corrupted the same way whoever builds it and whatever lies beside it.
"""

import dataclasses

import numpy as np


def ranks(counts: np.ndarray) -> np.ndarray:
    """0..c-1 for each count c, one after the other: int64 [sum(counts)]."""
    ends = np.cumsum(counts, dtype=np.int64)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def mix(values: np.ndarray) -> np.ndarray:
    """Hashes uint64 to uint64 (Steele et al., 2014: the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def make_keys(*parts: np.ndarray | int) -> np.ndarray:
    """A key for each combination of integers, such as seed, row and number in the row; they broadcast."""
    key = np.zeros((), np.uint64)
    for part in parts:
        key = mix(key ^ mix(np.asarray(part, np.uint64)))
    return np.asarray(key)


def uniform(keys: np.ndarray, counts: np.ndarray, use: int) -> np.ndarray:
    """Random numbers of one use: `counts[i]` from key i. float64 [sum(counts)], in [0, 1)."""
    places = np.repeat(make_keys(keys, use), counts) ^ mix(ranks(counts).astype(np.uint64))
    return (mix(places) >> np.uint64(11)) * 2.0**-53


def choose(keys: np.ndarray, counts: np.ndarray, chosen: np.ndarray, use: int) -> np.ndarray:
    """Marks `chosen[i]` of `counts[i]` places, every subset being equally likely: bool [sum(counts)]."""
    group = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((uniform(keys, counts, use), group))
    marked = np.zeros(len(group), bool)
    marked[order] = ranks(counts) < chosen[group]
    return marked


def _rounded(lengths: np.ndarray, rate: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of each example a rate hides, 1 to n - 1 of them, and in how many spans of that mean."""
    hidden = np.clip(np.round(rate * lengths), 1, lengths - 1).astype(np.int64)
    return hidden, np.maximum(1, np.round(hidden / mean_span)).astype(np.int64)


def _before(counts: np.ndarray) -> np.ndarray:
    return np.cumsum(counts, dtype=np.int64) - counts


@dataclasses.dataclass(frozen=True)
class SpanCorruption:
    """T5's objective (Raffel et al., 2020, section 3.1.4): spans give way to sentinels, and are what is predicted.

    Of n tokens round(rate n) are hidden, in round(hidden / mean span) spans of random lengths. Text and spans
    alternate, and the text begins.

    Attributes:
        rate, mean_span: see `ObjectiveConfig`.
        first_sentinel: the id of the first; the next ones descend.
        most_spans: how many sentinels there are.
    """

    rate: float
    mean_span: float
    first_sentinel: int
    most_spans: int

    def counts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many of an example's tokens are hidden, and in how many spans: 1 to n - 1, n being 2 or more."""
        hidden, spans = _rounded(lengths, self.rate, self.mean_span)
        return hidden, np.minimum(np.minimum(spans, self.most_spans), lengths - hidden)

    def sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of input and target, from the lengths alone."""
        hidden, spans = self.counts(lengths)
        return lengths - hidden + spans, hidden + spans

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each one after the other, `sizes(lengths)` long."""
        hidden, spans = self.counts(lengths)
        of_hidden, hidden_per_span = self._partition(hidden, spans, keys, 0)
        of_shown, shown_per_span = self._partition(lengths - hidden, spans, keys, 1)
        nth_span = ranks(spans)
        sentinels = (self.first_sentinel - nth_span).astype(tokens.dtype)

        # Where each span begins among all tokens: after the text before it and the spans before it.
        start = np.repeat(_before(lengths), spans)
        hidden_before = _before(hidden_per_span) - np.repeat(_before(hidden), spans)
        shown_up_to = np.cumsum(shown_per_span) - np.repeat(_before(lengths - hidden), spans)
        at_hidden = np.repeat(start + shown_up_to, hidden_per_span) + np.arange(len(of_hidden))
        at_hidden -= np.repeat(np.repeat(_before(hidden), spans), hidden_per_span)
        at_shown = np.repeat(start + hidden_before, shown_per_span) + np.arange(len(of_shown))
        at_shown -= np.repeat(np.repeat(_before(lengths - hidden), spans), shown_per_span)

        inputs = np.empty(len(of_shown) + len(sentinels), tokens.dtype)
        targets = np.empty(len(of_hidden) + len(sentinels), tokens.dtype)
        span = np.arange(len(sentinels))
        inputs[np.cumsum(shown_per_span) + span] = sentinels
        inputs[np.arange(len(of_shown)) + of_shown] = tokens[at_shown]
        targets[_before(hidden_per_span) + span] = sentinels
        targets[np.arange(len(of_hidden)) + of_hidden + 1] = tokens[at_hidden]
        return inputs, targets

    @staticmethod
    def _partition(totals: np.ndarray, parts: np.ndarray, keys: np.ndarray, use: int) -> tuple[np.ndarray, np.ndarray]:
        """Cuts each total into that many parts of 1 or more, every way being equally likely.

        Returns:
            For each unit the number of its part, counted over all examples; and the size of every part.
        """
        cut = choose(keys, totals - 1, parts - 1, use)
        begins = np.ones(totals.sum(), bool)
        begins[ranks(totals) > 0] = cut
        number = np.cumsum(begins) - 1
        return number, np.bincount(number, minlength=int(parts.sum()))


@dataclasses.dataclass(frozen=True)
class Infilling:
    """BART's objective (Lewis et al., 2020, section 2.2): spans, also empty ones, give way to one [MASK] each.

    Of n tokens m = round(rate n) are hidden in s = round(m / mean span) spans. The paper draws lengths from a
    Poisson distribution; here they are Poisson given that their sum is m, that is multinomial, so that the length
    of the input is known before. The target is the whole text.

    Attributes:
        rate, mean_span: see `ObjectiveConfig`.
        mask_id: of [MASK].
    """

    rate: float
    mean_span: float
    mask_id: int

    def counts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many of an example's tokens are hidden, and in how many spans."""
        hidden, spans = _rounded(lengths, self.rate, self.mean_span)
        return hidden, np.minimum(spans, hidden)

    def sizes(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of input and target, from the lengths alone."""
        hidden, spans = self.counts(lengths)
        return lengths - hidden + spans, lengths

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The inputs, one after the other."""
        hidden, spans = self.counts(lengths)
        shown = lengths - hidden
        # A span lies in one of the gaps before, between and after the shown tokens, no two in the same.
        in_gap = choose(keys, shown + 1, spans, 0)
        first = np.repeat(_before(spans), hidden)
        span = first + (uniform(keys, hidden, 1) * np.repeat(spans, hidden)).astype(np.int64)
        span_sizes = np.bincount(span, minlength=int(spans.sum()))

        gap_sizes = np.zeros(len(in_gap), np.int64)  # hidden tokens in each gap
        gap_sizes[in_gap] = span_sizes
        is_token = ranks(shown + 1) < np.repeat(shown, shown + 1)  # the gap before a token, not the last one
        at = np.repeat(_before(lengths), shown) + ranks(shown)
        hidden_up_to = np.cumsum(gap_sizes) - np.repeat(_before(hidden), shown + 1)
        at += hidden_up_to[is_token]

        inputs = np.full(int((shown + spans).sum()), self.mask_id, tokens.dtype)
        spans_up_to = np.cumsum(in_gap)[is_token]
        inputs[np.arange(len(at)) + spans_up_to] = tokens[at]
        return inputs


def permuted_sentences(lengths: np.ndarray, sentences: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The order of tokens when each example's sentences are shuffled.

    Args:
        lengths: int [N], tokens of each example.
        sentences: int [sum(lengths)], ascending numbers that tell the sentences of an example apart.
        keys: uint64 [N].

    Returns:
        int64 [sum(lengths)]: the index of the token that comes at each place.
    """
    example = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.ones(len(sentences), bool)
    begins[1:] = (np.diff(sentences) != 0) | (np.diff(example) != 0)
    number = np.cumsum(begins) - 1
    per_example = np.bincount(example[begins], minlength=len(lengths))
    return np.lexsort((np.arange(len(sentences)), uniform(keys, per_example, 2)[number], example))
