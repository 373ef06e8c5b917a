"""A batch is a function of (seed, step): the same whoever asks, whenever, for whichever rows."""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lm.config import DataConfig, ObjectiveConfig
from lm.data.batches import Batches, loader, padding_fraction
from lm.data.store import Split, Store
from lm.errors import InputError
from lm.tasks import create_row_format
from lm.tokenizers.special_ids import SpecialIds

SPECIAL = SpecialIds()
FIRST_TOKEN = 10  # ids of the synthetic corpus are unique, and no special id


def make_split(seed: int = 0, num_documents: int = 60) -> Split:
    rng = np.random.default_rng(seed)
    document_lengths = rng.integers(1, 12, num_documents)
    sentence_lengths = rng.integers(1, 15, document_lengths.sum())
    tokens = np.arange(sentence_lengths.sum(), dtype=np.uint32) + FIRST_TOKEN
    return Split(tokens, sentence_lengths, document_lengths)


def make_batches(nsp: bool = True, seed: int = 0, split: Split | None = None, **fields) -> Batches:
    data = DataConfig(**{"seq_length": 48, "batch_size": 8, **fields})
    row_format = create_row_format(data, ObjectiveConfig(nsp=nsp), SPECIAL)
    return Batches(split or make_split(), row_format, data, seed)


def assert_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("nsp", [True, False])
def test_layout_of_every_segment(nsp: bool, seed: int):
    """Read back one by one: [CLS] a [SEP] b [SEP], each span a run of the corpus, positions from 0."""
    batch = make_batches(nsp, seed)(seed)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    assert batch["tokens"].shape == (8, 48)
    for row in range(8):
        segments = batch["segments"][row]
        number = segments.max()
        np.testing.assert_array_equal(segments, sorted(segments, key=lambda s: s or 99))
        assert set(segments.tolist()) - {0} == set(range(1, number + 1))
        for segment in range(1, number + 1):
            at = np.flatnonzero(segments == segment)
            tokens, types = batch["tokens"][row, at], batch["token_types"][row, at]
            np.testing.assert_array_equal(batch["positions"][row, at], np.arange(len(at)))
            assert tokens[0] == SPECIAL.cls
            separators = np.flatnonzero(tokens == SPECIAL.sep)
            assert len(separators) == (2 if nsp else 1)
            assert separators[-1] == len(tokens) - 1
            np.testing.assert_array_equal(types, np.arange(len(at)) > separators[0])
            for span in np.split(tokens, separators)[: len(separators)]:
                assert len(span) > 1
                np.testing.assert_array_equal(np.diff(span[1:]), 1)
                assert span[1:].min() >= FIRST_TOKEN
        padding = segments == 0
        for name in ("tokens", "positions", "token_types"):
            assert not batch[name][row, padding].any()


def test_pairs_point_at_their_cls():
    batches = make_batches(max_segments=4)
    for step in range(5):
        batch = batches(step)
        assert batch["cls_positions"].shape == batch["nsp_labels"].shape == (8, 4)
        for row, pair in np.ndindex(8, 4):
            at = batch["cls_positions"][row, pair]
            if batch["nsp_labels"][row, pair] == -1:
                assert at == 0
                assert batch["segments"][row].max() <= pair
                continue
            assert batch["tokens"][row, at] == SPECIAL.cls
            assert batch["segments"][row, at] == pair + 1
            inside = batch["tokens"][row, batch["segments"][row] == pair + 1]
            first, second = np.split(inside, np.flatnonzero(inside == SPECIAL.sep)[:1])
            follows = second[1] == first[-1] + 1
            assert follows or batch["nsp_labels"][row, pair] == 1 or len(inside) == 48
    assert "nsp_labels" not in make_batches(nsp=False)(0)


@pytest.mark.parametrize("nsp", [True, False])
def test_any_number_of_processes_sees_the_same_batch(nsp: bool):
    batches = make_batches(nsp)
    for step in (0, 3, 1000):
        whole = batches(step)
        parts = [make_batches(nsp)(step, slice(i, i + 2)) for i in range(0, 8, 2)]
        assert_equal(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})


def test_a_batch_depends_on_seed_and_step_alone():
    batches = make_batches()
    steps = [5, 0, 40, 5, 1]
    forward = {step: make_batches()(step) for step in sorted(set(steps))}
    for step in steps:
        assert_equal(batches(step), forward[step])
    assert (make_batches(seed=1)(0)["tokens"] != forward[0]["tokens"]).any()


def test_threads_may_share_it():
    """Over several epochs, so that plans are made and dropped meanwhile."""
    shared, alone = make_batches(), make_batches()
    with ThreadPoolExecutor(8) as pool:
        for step, batch in enumerate(pool.map(shared, range(60))):
            assert_equal(batch, alone(step))


@pytest.mark.parametrize("nsp", [True, False])
def test_an_epoch_shows_every_row_once_and_the_next_is_another(nsp: bool):
    batches = make_batches(nsp, batch_size=1)
    first, second = (
        [batches(epoch * batches.rows_per_epoch + row)["tokens"][0] for row in range(batches.rows_per_epoch)]
        for epoch in (0, 1)
    )
    if not nsp:  # no truncation and no random sentence: exactly the corpus
        shown = np.concatenate(first)
        assert sorted(shown[shown >= FIRST_TOKEN]) == (np.arange(batches._split.num_tokens) + FIRST_TOKEN).tolist()
    in_both = {row.tobytes() for row in first} & {row.tobytes() for row in second}
    assert len({row.tobytes() for row in first}) == len(first)
    assert len(in_both) < len(first) / 4


def test_a_batch_across_the_end_of_an_epoch_continues_with_the_next():
    batches, single = make_batches(batch_size=7), make_batches(batch_size=1)
    rows = batches.rows_per_epoch
    assert rows % 7
    for step in range(rows // 7 - 1, rows // 7 + 2):
        expected = [single(step * 7 + i) for i in range(7)]
        assert_equal(batches(step), {name: np.concatenate([x[name] for x in expected]) for name in expected[0]})


def test_a_corpus_smaller_than_a_batch_wraps():
    split = Split(np.arange(20) + FIRST_TOKEN, np.full(4, 5), np.array([2, 2]))
    batches = make_batches(split=split, batch_size=32)
    assert batches.rows_per_epoch < 32
    assert batches(0)["tokens"].shape == (32, 48)
    assert (batches(0)["segments"][:, 0] == 1).all()


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match="has no document"):
        make_batches(split=Split(np.zeros(0, np.uint16), np.zeros(0, int), np.zeros(0, int)))


def test_padding_is_what_carries_no_segment():
    for step in range(5):
        batch = make_batches()(step)
        assert 0 < padding_fraction(batch) == np.mean(batch["tokens"] == SPECIAL.pad) < 0.2


@pytest.mark.parametrize("start", [0, 7, 10**9])
def test_loader_starts_at_any_step(start: int):
    batches = make_batches()
    for step, batch in zip(
        range(start, start + 5), itertools.islice(loader(batches, start, slice(2, 5)), 5), strict=True
    ):
        assert_equal(batch, batches(step, slice(2, 5)))


def test_a_prepared_store_feeds_both_splits(made: Store, data_config: DataConfig):
    row_format = create_row_format(data_config, ObjectiveConfig(nsp=True), made.tokenizer.special)
    on_disk = Store.open(made.path, memory_limit=0)
    for name in ("train", "heldout"):
        batches = Batches(getattr(made, name), row_format, data_config, 0)
        assert_equal(batches(2), Batches(getattr(on_disk, name), row_format, data_config, 0)(2))
        assert batches(0)["tokens"].max() < made.tokenizer.vocab_size


def test_batches_need_no_jax():
    code = "import sys; import lm.data.batches, lm.data.prepare; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
