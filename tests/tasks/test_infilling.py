"""Each span is one [MASK], spans have the lengths of the paper, and sentences move as wholes."""

import numpy as np
import pytest

from lm.data.flat import make_keys
from lm.tasks.infilling import Infilling, permuted_sentences

from .documents import documents, split

MASK = 4
BART = Infilling(0.3, 3.0, MASK)


def test_infilling_leaves_the_rest_in_order_and_one_mask_a_span():
    tokens, lengths, keys = documents(1000)
    hidden, spans = BART.counts(lengths)
    sizes, targets = BART.sizes(lengths)
    np.testing.assert_array_equal(targets, lengths)
    for text, shown, masks, lost in zip(
        split(tokens, lengths), split(BART(tokens, lengths, keys), sizes), spans, hidden, strict=True
    ):
        assert shown.count(MASK) == masks
        kept = iter(text)
        assert all(any(token == each for each in kept) for token in shown if token != MASK)
        assert len(shown) - masks == len(text) - lost
        assert [MASK, MASK] not in [shown[i : i + 2] for i in range(len(shown) - 1)]


def test_infilled_spans_are_poisson():
    """Lengths with mean three, empty ones among them (Lewis et al., 2020)."""
    count, length = 4000, 200
    tokens = np.tile(np.arange(1000, 1000 + length), count)
    shown = BART(tokens, np.full(count, length), make_keys(2, np.arange(count)))
    found = []
    for row in split(shown, np.full(count, len(shown) // count)):
        padded = [999, *row, 1000 + length]
        found += [padded[i + 1] - padded[i - 1] - 1 for i in range(1, len(padded) - 1) if padded[i] == MASK]
    shares = np.bincount(found, minlength=9)[:9] / len(found)
    poisson = np.exp(-3.0) * 3.0 ** np.arange(9) / np.array([1, 1, 2, 6, 24, 120, 720, 5040, 40320])
    assert np.mean(found) == pytest.approx(3.0, abs=0.01)
    np.testing.assert_allclose(shares, poisson, atol=0.02)  # given their sum, a little narrower


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
