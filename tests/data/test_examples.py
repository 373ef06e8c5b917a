"""The vectorised planner follows BERT's rule, checked against the rule written out."""

import itertools
import random

import numpy as np
import pytest

from lm.data.examples import Examples, _truncated, running_text, sentence_pairs
from lm.data.store import Split


def make_split(seed: int, num_documents: int = 40, longest_sentence: int = 20, longest_document: int = 30) -> Split:
    """Random lengths; token i is i, so that a span names its tokens."""
    rng = np.random.default_rng(seed)
    document_lengths = rng.integers(1, longest_document + 1, num_documents)
    sentence_lengths = rng.integers(1, longest_sentence + 1, document_lengths.sum())
    return Split(np.arange(sentence_lengths.sum()), sentence_lengths, document_lengths)


def document_bounds(split: Split) -> np.ndarray:
    return split.sentence_offsets[split.document_offsets]


def documents_of(split: Split, examples: Examples) -> np.ndarray:
    """int [N, 2]: the document of each span; asserts that no span crosses an end."""
    bounds = document_bounds(split)
    first = np.searchsorted(bounds, examples.starts, side="right") - 1
    last = np.searchsorted(bounds, examples.starts + examples.lengths - 1, side="right") - 1
    np.testing.assert_array_equal(first, last)
    return first


def bert_pairs(split: Split, seq_length: int, short_seq_prob: float, seed: int) -> list[tuple[int, int, bool]]:
    """google-research/bert, create_instances_from_document: (tokens of a, tokens of b, is random)."""
    rng = random.Random(seed)
    lengths = np.diff(split.sentence_offsets).tolist()
    offsets = split.document_offsets.tolist()
    documents = [lengths[start:end] for start, end in itertools.pairwise(offsets)]
    most = seq_length - 3
    pairs = []
    for index, document in enumerate(documents):
        target = rng.randint(2, most) if rng.random() < short_seq_prob else most
        chunk: list[int] = []
        i = 0
        while i < len(document):
            chunk.append(document[i])
            if i == len(document) - 1 or sum(chunk) >= target:
                a_end = rng.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                a = sum(chunk[:a_end])
                is_random = len(chunk) == 1 or rng.random() < 0.5
                if is_random:
                    b = 0
                    for _ in range(10):
                        other = rng.randint(0, len(documents) - 1)
                        if other != index:
                            break
                    for length in documents[other][rng.randint(0, len(documents[other]) - 1) :]:
                        b += length
                        if b >= target - a:
                            break
                    i -= len(chunk) - a_end
                else:
                    b = sum(chunk[a_end:])
                while a + b > most:
                    a, b = (a - 1, b) if a > b else (a, b - 1)
                pairs.append((a, b, is_random))
                chunk = []
            i += 1
    return pairs


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("seq_length", [16, 64, 400])
def test_pairs_are_what_their_label_says(seed: int, seq_length: int):
    split = make_split(seed)
    pairs = sentence_pairs(split, seq_length, 0.1, np.random.default_rng(seed))
    documents = documents_of(split, pairs)
    assert pairs.lengths.min() >= 1
    assert pairs.row_lengths.max() <= seq_length
    assert pairs.labels is not None
    assert set(pairs.labels.tolist()) == {0, 1}
    is_next = pairs.labels == 0
    assert (documents[is_next, 0] == documents[is_next, 1]).all()
    assert (documents[~is_next, 0] != documents[~is_next, 1]).all()
    # A next pair is one run of tokens, but for what truncation took where the two meet.
    gap = pairs.starts[is_next, 1] - (pairs.starts[is_next, 0] + pairs.lengths[is_next, 0])
    assert (gap >= 0).all()
    assert (gap[pairs.row_lengths[is_next] < seq_length] == 0).all()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("longest_document", [30, 3000])
def test_unused_sentences_are_put_back(seed: int, longest_document: int):
    """With sentences of one token nothing is truncated, and each sentence is shown once as running text."""
    split = make_split(seed, 20, longest_sentence=1, longest_document=longest_document)
    pairs = sentence_pairs(split, 32, 0.1, np.random.default_rng(seed))
    shown = np.zeros(split.num_tokens, int)
    assert pairs.labels is not None
    for start, length, label in zip(pairs.starts, pairs.lengths, pairs.labels, strict=True):
        shown[start[0] : start[0] + length[0]] += 1
        if label == 0:
            shown[start[1] : start[1] + length[1]] += 1
    assert (shown == 1).all()


@pytest.mark.parametrize(("seq_length", "short_seq_prob"), [(32, 0.0), (64, 0.1), (256, 0.1), (64, 1.0)])
def test_statistics_equal_the_reference(seq_length: int, short_seq_prob: float):
    split = make_split(0, num_documents=4000)
    ours = sentence_pairs(split, seq_length, short_seq_prob, np.random.default_rng(0))
    theirs = np.array(bert_pairs(split, seq_length, short_seq_prob, seed=0))
    assert ours.labels is not None
    assert len(ours) == pytest.approx(len(theirs), rel=0.02)
    assert ours.labels.mean() == pytest.approx(theirs[:, 2].mean(), abs=0.02)
    for is_random in (0, 1):
        lengths, expected = ours.lengths[ours.labels == is_random], theirs[theirs[:, 2] == is_random, :2]
        np.testing.assert_allclose(lengths.mean(0), expected.mean(0), rtol=0.03)
        np.testing.assert_allclose(lengths.std(0), expected.std(0), rtol=0.05)
        quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
        totals, expected_totals = (np.quantile(x.sum(1), quantiles) for x in (lengths, expected))
        np.testing.assert_allclose(totals, expected_totals, rtol=0.05, atol=1)


def test_truncation_equals_one_token_at_a_time():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 80, (2000, 2))
    begin = np.zeros(len(lengths), np.int64)
    starts, kept = _truncated(begin, lengths[:, 0], begin, lengths[:, 1], 61, rng)
    for (a, b), found in zip(lengths.tolist(), kept.tolist(), strict=True):
        while a + b > 61:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        assert found == [a, b]
    lost = lengths - kept
    assert ((starts >= 0) & (starts <= lost)).all()
    assert starts.sum() / lost.sum() == pytest.approx(0.5, abs=0.02)


def test_the_only_document_gives_random_pairs_from_itself():
    split = make_split(0, num_documents=1)
    pairs = sentence_pairs(split, 32, 0.1, np.random.default_rng(0))
    assert (documents_of(split, pairs) == 0).all()


def test_random_places_are_uniform_over_the_other_documents():
    split = make_split(0, num_documents=5, longest_sentence=1, longest_document=200)
    found = [sentence_pairs(split, 16, 0.1, np.random.default_rng(seed)) for seed in range(100)]
    others = np.concatenate([documents_of(split, pairs)[pairs.labels == 1] for pairs in found])
    from_first = np.bincount(others[others[:, 0] == 0, 1], minlength=5) / (others[:, 0] == 0).sum()
    np.testing.assert_allclose(from_first, [0, 0.25, 0.25, 0.25, 0.25], atol=0.05)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("seq_length", [8, 32, 512])
def test_running_text_holds_every_token_once(seed: int, seq_length: int):
    split = make_split(seed)
    pieces = running_text(split, seq_length - 2, 2, np.random.default_rng(seed))
    documents_of(split, pieces)
    tokens = split.read(pieces.starts.ravel(), pieces.lengths.ravel())
    np.testing.assert_array_equal(np.sort(tokens), np.arange(split.num_tokens))
    assert pieces.row_lengths.max() <= seq_length
    assert pieces.labels is None
    short = np.diff(document_bounds(split)) <= seq_length - 2
    assert np.isin(document_bounds(split)[:-1][short], pieces.starts[:, 0]).all()


def test_an_empty_split_gives_no_example():
    empty = Split(np.zeros(0, np.uint16), np.zeros(0, int), np.zeros(0, int))
    assert len(sentence_pairs(empty, 32, 0.1, np.random.default_rng(0))) == 0
    assert len(running_text(empty, 30, 2, np.random.default_rng(0))) == 0
