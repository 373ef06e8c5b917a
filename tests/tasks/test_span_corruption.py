"""Input and target together restore the text, and as many tokens are hidden as the paper says."""

import numpy as np
import pytest

from lm.data.flat import make_keys
from lm.tasks.span_corruption import SpanCorruption

from .documents import documents, split

FIRST_SENTINEL, SENTINELS = 104, 100
T5 = SpanCorruption(0.15, 3.0, FIRST_SENTINEL, SENTINELS)


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
