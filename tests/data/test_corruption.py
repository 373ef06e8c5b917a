"""What is hidden can be put back, and as much is hidden as the papers say."""

import numpy as np
import pytest

from lm.data.corruption import Infilling, SpanCorruption, choose, make_keys, permuted_sentences, ranks, uniform

FIRST_SENTINEL, SENTINELS, MASK = 104, 100, 4
T5 = SpanCorruption(0.15, 3.0, FIRST_SENTINEL, SENTINELS)
BART = Infilling(0.3, 3.0, MASK)


def documents(count: int, longest: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, lengths and keys of random documents."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, count)
    return rng.integers(105, 4000, lengths.sum()), lengths, make_keys(seed, np.arange(count))


def split(flat: np.ndarray, sizes: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(flat, np.cumsum(sizes)[:-1])]


def merged(inputs: list[int], targets: list[int]) -> list[int]:
    """The text: every sentinel of the inputs gives way to what follows it in the targets."""
    spans: dict[int, list[int]] = {}
    for token in targets:
        if token <= FIRST_SENTINEL:
            assert token not in spans
            spans[token] = []
        else:
            spans[next(reversed(spans))].append(token)
    text = []
    for token in inputs:
        text += spans.pop(token) if token <= FIRST_SENTINEL else [token]
    assert not spans
    return text


def test_568_tokens_make_512_and_114_with_their_ends():
    inputs, targets = T5.sizes(np.array([568]))
    assert (inputs[0] + 1, targets[0] + 1) == (512, 114)


def test_corruption_inverts_exactly_for_a_thousand_documents():
    tokens, lengths, keys = documents(1000)
    inputs, targets = (
        split(flat, sizes) for flat, sizes in zip(T5(tokens, lengths, keys), T5.sizes(lengths), strict=True)
    )
    for text, shown, hidden in zip(split(tokens, lengths), inputs, targets, strict=True):
        assert merged(shown, hidden) == text
        sentinels = [token for token in shown if token <= FIRST_SENTINEL]
        assert sentinels == list(range(FIRST_SENTINEL, FIRST_SENTINEL - len(sentinels), -1))
        assert [token for token in hidden if token <= FIRST_SENTINEL] == sentinels
        assert shown[0] > FIRST_SENTINEL  # text first
        assert hidden[0] == FIRST_SENTINEL


def test_noise_density_and_mean_span_are_the_papers():
    tokens, lengths, keys = documents(2000)
    inputs, targets = T5(tokens, lengths, keys)
    spans = (targets <= FIRST_SENTINEL).sum()
    hidden = len(targets) - spans
    # Both are rounded in every document, so the error is that of rounding: half a token or span in each.
    assert hidden / len(tokens) == pytest.approx(0.15, abs=0.5 / np.sqrt(12 * 2000) * 4 / lengths.mean() + 0.001)
    assert hidden / spans == pytest.approx(3.0, abs=0.05)
    assert (inputs > FIRST_SENTINEL).sum() + hidden == len(tokens)


def test_places_are_hidden_equally_often_and_spans_are_of_every_length():
    """In many corruptions of one length; the first token never is, and the last always, as in T5."""
    count, length = 20_000, 41
    tokens = np.tile(np.arange(1000, 1000 + length), count)
    _, targets = T5(tokens, np.full(count, length), make_keys(1, np.arange(count)))
    often = np.bincount(targets[targets > FIRST_SENTINEL] - 1000, minlength=length) / count
    assert often[0] == 0
    assert often[-1] == 1
    # A span of up to five tokens has the ends within reach less often, or more; between them all places are alike.
    middle = often[5:-6]
    np.testing.assert_allclose(middle, middle.mean(), atol=4.5 * np.sqrt(0.09 / count))
    ends = np.flatnonzero(np.append(targets, 0) <= FIRST_SENTINEL)
    sizes = np.bincount(np.diff(ends) - 1)
    # Six tokens in two spans: 1 + 5 to 5 + 1, each of five ways equally likely.
    np.testing.assert_allclose(sizes[1:6] / sizes.sum(), 0.2, atol=4 * np.sqrt(0.16 / sizes.sum()))


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


def test_an_example_is_corrupted_alike_whatever_lies_beside_it():
    tokens, lengths, keys = documents(50)
    inputs, targets = T5(tokens, lengths, keys)
    sizes = T5.sizes(lengths)
    starts = np.cumsum(lengths) - lengths
    for index in (0, 7, 49):
        text = tokens[starts[index] : starts[index] + lengths[index]]
        alone = T5(text, lengths[index : index + 1], keys[index : index + 1])
        assert alone[0].tolist() == split(inputs, sizes[0])[index]
        assert alone[1].tolist() == split(targets, sizes[1])[index]
    other, _ = T5(tokens, lengths, make_keys(1, np.arange(50)))
    assert (other != inputs).any()


def test_choices_are_uniform():
    counts, chosen = np.full(5000, 6), np.full(5000, 2)
    marked = choose(make_keys(3, np.arange(5000)), counts, chosen, use=0).reshape(5000, 6)
    assert (marked.sum(axis=1) == 2).all()
    pairs = np.bincount((marked * 2 ** np.arange(6)).sum(axis=1), minlength=64)
    found = pairs[pairs > 0]
    assert len(found) == 15
    np.testing.assert_allclose(found / 5000, 1 / 15, atol=4 * np.sqrt(1 / 15 / 5000))


def test_random_numbers_are_uniform_and_independent():
    keys, counts = make_keys(0, np.arange(300)), np.full(300, 200)
    numbers = uniform(keys, counts, use=1)
    assert 0 <= numbers.min() <= numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 20)[0] / len(numbers), 0.05, atol=0.004)
    grid = numbers.reshape(300, 200) - 0.5
    for one, other in ((grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        assert abs((one * other).mean() * 12) * np.sqrt(one.size) < 4
    assert (ranks(np.array([2, 0, 3])) == [0, 1, 0, 1, 2]).all()
