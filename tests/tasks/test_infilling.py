"""Each span is one [MASK], spans have the lengths of the paper, and sentences move as wholes."""

import itertools

import numpy as np
import pytest

from lm.data.flat import make_keys
from lm.tasks.infilling import FixedSpans, RandomSpans, permuted_sentences

from .documents import documents, split

MASK = 4
FIXED = FixedSpans(0.3, 3.0, MASK)
BART = RandomSpans(0.3, 3.0, MASK)


EVERY = np.ones(0, bool)  # fixed spans do not look at words


def test_fixed_spans_leave_the_rest_in_order_and_one_mask_each():
    tokens, lengths, keys = documents(1000)
    hidden, spans = FIXED.counts(lengths)
    sizes, targets = FIXED.sizes(lengths)
    np.testing.assert_array_equal(targets, lengths)
    for text, shown, masks, lost in zip(
        split(tokens, lengths), split(FIXED(tokens, lengths, keys, EVERY)[0], sizes), spans, hidden, strict=True
    ):
        assert shown.count(MASK) == masks
        kept = iter(text)
        assert all(any(token == each for each in kept) for token in shown if token != MASK)
        assert len(shown) - masks == len(text) - lost
        assert [MASK, MASK] not in [shown[i : i + 2] for i in range(len(shown) - 1)]


def test_fixed_spans_are_poisson():
    """Lengths with mean three, empty ones among them (Lewis et al., 2020)."""
    count, length = 4000, 200
    tokens = np.tile(np.arange(1000, 1000 + length), count)
    shown, _ = FIXED(tokens, np.full(count, length), make_keys(2, np.arange(count)), EVERY)
    found = []
    for row in split(shown, np.full(count, len(shown) // count)):
        padded = [999, *row, 1000 + length]
        found += [padded[i + 1] - padded[i - 1] - 1 for i in range(1, len(padded) - 1) if padded[i] == MASK]
    shares = np.bincount(found, minlength=9)[:9] / len(found)
    poisson = np.exp(-3.0) * 3.0 ** np.arange(9) / np.array([1, 1, 2, 6, 24, 120, 720, 5040, 40320])
    assert np.mean(found) == pytest.approx(3.0, abs=0.01)
    np.testing.assert_allclose(shares, poisson, atol=0.02)  # given their sum, a little narrower


def fairseqs(starts_word: list[bool], rng: np.random.Generator) -> tuple[int, int, int]:
    """Tokens, masks and hidden words of one input of `add_whole_word_mask`, for a mask ratio of 0.3 and a lambda of 3.

    It follows fairseq/data/denoising_dataset.py word by word.
    """
    words = np.flatnonzero(starts_word)
    to_hide = int(np.ceil(0.3 * len(words)))
    spans: list[int] = []
    while sum(spans) < to_hide:
        spans.append(min(int(rng.poisson(3.0)), to_hide - sum(spans)))
    long = [span for span in spans if span]
    covered: set[int] = set()
    first = rng.permutation(len(words))[: len(long)]
    for word, span in zip(first, long, strict=True):
        end = words[word + span] if word + span < len(words) else len(starts_word)
        covered |= set(range(words[word] + 1, end))
    kept = [word for word in first if words[word] not in covered]
    hidden = sum(int(place) in covered for place in words) + len(kept)
    masks = len(kept) + len(spans) - len(long)
    return len(starts_word) - len(covered) + len(spans) - len(long), masks, hidden


@pytest.mark.parametrize("share", [1.0, 0.7])
def test_random_spans_are_fairseqs(share: float):
    """42.4 masks in a row of 510 one-token words, with a standard deviation of 4.5, and as many tokens in the input."""
    count, length = 600, 510
    rng = np.random.default_rng(0)
    starts_word = rng.random((count, length)) < share
    starts_word[:, 0] = True
    theirs = np.array([fairseqs(row.tolist(), rng) for row in starts_word])
    tokens = np.tile(np.arange(1000, 1000 + length), count)
    inputs, sizes = BART(tokens, np.full(count, length), make_keys(1, np.arange(count)), starts_word.ravel())
    rows = split(inputs, sizes)
    seen = [np.array([token for token in row if token != MASK]) for row in rows]
    hidden = [starts.sum() - starts[row - 1000].sum() for starts, row in zip(starts_word, seen, strict=True)]
    ours = np.stack([sizes, [row.count(MASK) for row in rows], hidden], axis=1)
    error = theirs.std(axis=0) * np.sqrt(2 / count)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4.5 * error).all()
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.15)
    assert all((np.diff(row) > 0).all() for row in seen)  # the rest keeps its order
    assert any([MASK, MASK] in [row[i : i + 2] for i in range(len(row) - 1)] for row in rows)  # spans may touch
    if share == 1.0:
        assert ours[:, 1].mean() == pytest.approx(42.4, abs=0.8)
        assert ours[:, 1].std() == pytest.approx(4.5, abs=0.6)


def test_random_spans_hide_whole_words():
    """A [MASK] stands where a word begins, and a hidden span ends where the next word begins."""
    tokens, lengths, keys = documents(300, longest=80)
    tokens = np.arange(len(tokens)) + 1000  # a token names its place
    starts_word = np.random.default_rng(3).random(len(tokens)) < 0.6
    inputs, sizes = BART(tokens, lengths, keys, starts_word)
    assert (sizes <= BART.sizes(lengths)[0]).all()
    begins = np.cumsum(lengths) - lengths
    for begin, length, row, size in zip(begins, lengths, split(inputs, sizes), sizes, strict=True):
        seen = [int(token) - 1000 for token in row if token != MASK]
        assert all(begin <= place < begin + length for place in seen)
        cut = size == BART.sizes(np.array([length]))[0][0]
        ends = [] if cut else [int(begin + length)]
        for before, after in itertools.pairwise([int(begin) - 1, *seen, *ends]):
            if after - before > 1:  # hidden between
                assert starts_word[before + 1]
                assert after == begin + length or starts_word[after]


def test_an_example_is_infilled_alike_whatever_lies_beside_it():
    tokens, lengths, keys = documents(50)
    starts_word = tokens % 3 > 0
    inputs, sizes = BART(tokens, lengths, keys, starts_word)
    begins = np.cumsum(lengths) - lengths
    for index in (0, 7, 49):
        here = slice(begins[index], begins[index] + lengths[index])
        alone, _ = BART(tokens[here], lengths[index : index + 1], keys[index : index + 1], starts_word[here])
        assert alone.tolist() == split(inputs, sizes)[index]


def test_sentences_move_as_wholes():
    lengths = np.array([6, 5])
    sentences = np.array([3, 3, 4, 4, 4, 5, 9, 10, 10, 10, 11])
    orders = set()
    for seed in range(60):
        order = permuted_sentences(lengths, sentences, make_keys(seed, np.arange(2)))
        assert sorted(order[:6].tolist()) == list(range(6))
        moved = sentences[order]
        assert (np.diff(np.flatnonzero(np.diff(moved))) >= 1).all()
        for number in np.unique(sentences):
            places = np.flatnonzero(moved == number)
            np.testing.assert_array_equal(order[places], np.flatnonzero(sentences == number))
            assert places[-1] - places[0] + 1 == len(places)
        orders.add(tuple(dict.fromkeys(moved[:6].tolist())))
    assert len(orders) == 6
