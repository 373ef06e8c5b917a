"""Rows of encoder-decoders and decoders hold whole examples, with the same segment number on both sides."""

from typing import Any

import numpy as np
import pytest

from lm.config import DataConfig, ObjectiveConfig
from lm.data.batches import Batches, count_tokens
from lm.data.store import Split
from lm.errors import InputError
from lm.tasks import create_row_format
from lm.tokenizers.special_ids import SpecialIds

SPECIAL = SpecialIds()
OBJECTIVES = {
    "span_corruption": ObjectiveConfig(name="span_corruption"),
    "infilling": ObjectiveConfig(name="infilling", mask_rate=0.3, permute_sentences=True),
    "pairs": ObjectiveConfig(name="pairs"),
    "causal_lm": ObjectiveConfig(name="causal_lm"),
}


def make_split(seed: int = 0, pairs: bool = False) -> Split:
    """Random lengths; token i is 105 + i, so that a token names its place."""
    rng = np.random.default_rng(seed)
    document_lengths = np.full(300, 2) if pairs else rng.integers(1, 20, 80)
    sentence_lengths = rng.integers(1, 20, document_lengths.sum())
    return Split(105 + np.arange(sentence_lengths.sum()), sentence_lengths, document_lengths)


def make(name: str, seed: int = 0, **data) -> tuple[Split, Batches]:
    split = make_split(pairs=name == "pairs")
    settings: dict[str, Any] = {
        "seq_length": 96,
        "target_length": 24 if name == "span_corruption" else 96,
        "batch_size": 8,
    } | data
    if name == "pairs":
        settings["source"] = "dates"
    data_config = DataConfig(**settings)
    return split, Batches(split, create_row_format(data_config, OBJECTIVES[name], SPECIAL), data_config, seed)


def examples(batch: dict[str, np.ndarray], side: str) -> list[list[int]]:
    """The tokens of each example of one side, row by row."""
    tokens, segments = (
        (batch["tokens"], batch["segments"])
        if side == "source"
        else (
            batch["targets"],
            batch["target_segments"],
        )
    )
    return [
        tokens[row, segments[row] == number].tolist()
        for row in range(len(tokens))
        for number in range(1, segments[row].max() + 1)
    ]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_is_a_function_of_seed_and_step(name):
    _, one = make(name)
    _, other = make(name)
    _, another = make(name, seed=1)
    other(0)
    for step in (3, 40):
        first, second = one(step), other(step)
        assert first.keys() == second.keys()
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])
            assert first[key].dtype == np.int32
    assert any((one(3)[key] != another(3)[key]).any() for key in one(3))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_processes_get_their_rows_of_the_same_batch(name):
    _, batches = make(name)
    whole = batches(5)
    for rows in (slice(0, 3), slice(3, 8)):
        part = batches(5, rows)
        for key in whole:
            np.testing.assert_array_equal(part[key], whole[key][rows])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_segments_and_positions_tell_whole_examples(name):
    _, batches = make(name)
    batch = batches(2)
    sides = [("segments", "positions", "tokens"), ("target_segments", "target_positions", "targets")]
    for segments, positions, tokens in sides:
        if segments not in batch:
            assert name == "causal_lm"
            continue
        for row in range(8):
            numbers = batch[segments][row]
            real = numbers[numbers > 0]
            assert (np.diff(real) >= 0).all()
            assert (np.diff(real) <= 1).all()
            assert (batch[tokens][row][numbers == 0] == SPECIAL.pad).all()
            for number in range(1, real.max() + 1):
                places = np.flatnonzero(numbers == number)
                np.testing.assert_array_equal(batch[positions][row, places], np.arange(len(places)))
                assert batch[tokens][row, places[-1]] == SPECIAL.sep
    if "segments" in batch:
        np.testing.assert_array_equal(batch["segments"].max(axis=1), batch["target_segments"].max(axis=1))


def test_a_pair_keeps_its_source_and_its_target_together():
    split, batches = make("pairs")
    offsets = split.sentence_offsets
    expected = {
        (*range(105 + offsets[i], 105 + offsets[i + 1]),): [*range(105 + offsets[i + 1], 105 + offsets[i + 2])]
        for i in range(0, len(offsets) - 2, 2)
    }
    seen = set()
    for step in range(int(np.ceil(batches.steps_per_epoch))):
        batch = batches(step)
        for source, target in zip(examples(batch, "source"), examples(batch, "target"), strict=True):
            assert (source[-1], target[-1]) == (SPECIAL.sep, SPECIAL.sep)
            assert expected[(*source[:-1],)] == target[:-1]
            seen.add((*source[:-1],))
    assert seen == expected.keys()


def test_a_pair_that_is_too_long_is_cut_and_counted():
    split, batches = make("pairs", seq_length=12, target_length=9, begin_with_cls=True)
    lengths = np.diff(split.sentence_offsets).reshape(-1, 2)
    assert batches.truncated == ((lengths[:, 0] > 10) | (lengths[:, 1] > 7)).sum() > 0
    batch = batches(0)
    for source, target in zip(examples(batch, "source"), examples(batch, "target"), strict=True):
        assert (source[0], source[-1], target[0], target[-1]) == (2, 3, 2, 3)
        assert len(source) <= 12
        assert len(target) <= 9
    assert make("pairs")[1].truncated == 0


@pytest.mark.parametrize("name", ["span_corruption", "infilling"])
def test_every_token_is_seen_once_in_an_epoch(name):
    """Whether in the source or in the target; the target of infilling is the text itself."""
    split, batches = make(name)
    shown = np.zeros(split.num_tokens, int)
    rows = 0
    for step in range(int(np.ceil(batches.steps_per_epoch))):
        batch = batches(step, slice(0, min(8, batches.rows_per_epoch - rows)))
        rows += 8
        for side in ("source", "target") if name == "span_corruption" else ("target",):
            for tokens in examples(batch, side):
                text = np.array([token for token in tokens if token >= 105]) - 105
                shown[text] += 1
    assert set(np.unique(shown)) <= {0, 1}
    assert (shown == 0).sum() <= len(split.document_offsets)  # a piece of one token has nothing to hide


def test_both_sides_of_corrupted_rows_are_full():
    rng = np.random.default_rng(0)
    sentence_lengths = rng.integers(5, 40, 40_000)
    ends = np.sort(rng.choice(np.arange(1, 40_000), 3999, replace=False))
    documents = np.diff(ends, prepend=0, append=40_000)
    split = Split(105 + np.arange(sentence_lengths.sum()) % 3000, sentence_lengths, documents)
    data = DataConfig(seq_length=512, target_length=114, batch_size=64, max_segments=16)
    batches = Batches(split, create_row_format(data, OBJECTIVES["span_corruption"], SPECIAL), data, 0)
    sides = ("segments", "target_segments")
    made = [batches(step) for step in range(int(batches.steps_per_epoch))]
    for side in sides:
        assert np.mean([(batch[side] > 0).mean() for batch in made]) > 0.975
    tokens, places = count_tokens(made[0])
    assert places == 64 * (512 + 114)
    assert tokens == sum((made[0][side] > 0).sum() for side in sides)


def test_the_next_epoch_hides_other_spans():
    _, batches = make("span_corruption")
    epoch = int(np.ceil(batches.steps_per_epoch))
    sentinels = [
        sum(token < 105 for source in examples(batches(step), "source") for token in source) for step in (0, epoch)
    ]
    assert min(sentinels) > 0
    assert any((batches(0)[key] != batches(epoch)[key]).any() for key in batches(0))


@pytest.mark.parametrize(("name", "lacks"), [("span_corruption", {"num_sentinels": 0}), ("infilling", {"mask": -1})])
def test_a_tokenizer_without_the_special_tokens_is_refused(name, lacks):
    special = SpecialIds(**lacks)
    with pytest.raises(InputError, match="tokenizer"):
        create_row_format(DataConfig(), OBJECTIVES[name], special)


def test_rows_too_short_for_a_span_are_refused():
    with pytest.raises(InputError, match="hold no corrupted text"):
        make("infilling", seq_length=8, target_length=4, begin_with_cls=True)


def test_t5_joins_short_documents_before_it_hides_spans():
    """Documents of 13 tokens: a hidden span ends one as rarely as it hides any token; alone it always ends one."""
    split = Split(105 + np.arange(13 * 4000), np.full(4000, 13), np.ones(4000, np.int64))

    def last_hidden(join: bool) -> tuple[float, list[dict[str, np.ndarray]]]:
        objective = ObjectiveConfig(name="span_corruption", join_documents=join)
        data = DataConfig(seq_length=512, target_length=114, batch_size=16, max_segments=64)
        batches = Batches(split, create_row_format(data, objective, SPECIAL), data, 0)
        made = [batches.once(index) for index in range(batches.batches_per_epoch)]
        hidden = np.concatenate([batch["targets"][batch["targets"] >= 105] for batch in made]) - 105
        return (hidden % 13 == 12).sum() / 4000, made

    joined, made = last_hidden(True)
    assert joined == pytest.approx(0.15, abs=0.03)
    full = [(batch["segments"] == 1).all(axis=1) & (batch["target_segments"] == 1).all(axis=1) for batch in made]
    assert np.concatenate(full).sum() >= 13 * 4000 // 568 - 1  # rows of 512 and 114, but for the two ends
    assert last_hidden(False)[0] == 1.0


def test_random_spans_leave_little_padding():
    """Sources of any length, one after the other; 8% of the places of bart_base's rows hold no token."""
    rng = np.random.default_rng(0)
    sentence_lengths = rng.integers(5, 40, 6000)
    split = Split(105 + np.arange(sentence_lengths.sum()) % 3000, sentence_lengths, np.full(10, 600))
    objective = ObjectiveConfig(name="infilling", mask_rate=0.3)
    data = DataConfig(seq_length=452, target_length=512, batch_size=16, begin_with_cls=True)
    batches = Batches(split, create_row_format(data, objective, SPECIAL), data, 0)
    made = [batches(step) for step in range(int(batches.steps_per_epoch))]
    for batch in made:
        assert (np.diff((batch["segments"] > 0).astype(int), axis=1) <= 0).all()  # padding is at the end alone
    assert np.mean([(batch["segments"] > 0).mean() for batch in made]) > 0.91
    assert np.mean([(batch["target_segments"] > 0).mean() for batch in made]) > 0.98


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_epoch_has_each_row_once_and_ends_with_padding(name):
    _, batches = make(name)
    rows, count = batches.rows_per_epoch, batches.batches_per_epoch
    assert rows % 8
    whole = [batches.once(index) for index in range(count)]
    for key in whole[0]:
        found = np.concatenate([batch[key] for batch in whole])
        assert len(found) == 8 * count
        np.testing.assert_array_equal(found[:rows], batches.take(np.arange(rows))[key])
        assert not found[rows:].any()
        nothing = batches.once(count - 1, slice(rows % 8, 8))  # a process whose part of the batch is padding
        np.testing.assert_array_equal(nothing[key], found[rows:])
