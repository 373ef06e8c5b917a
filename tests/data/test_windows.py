"""An epoch in windows: each document once, the same rows for any number of processes, read window by window."""

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.config import Config, DataConfig, ObjectiveConfig
from lm.data import arrays, mixture, prepare, store
from lm.data.batches import Batches, Plan, loader, padding_fraction
from lm.data.split import TOKENS, Split
from lm.data.store import Store, Text
from lm.data.windows import fill
from lm.errors import InputError
from lm.tasks import create_row_format
from lm.tasks.members import make_members, mixed
from lm.tokenizers.special_ids import SpecialIds

SPECIAL = SpecialIds()
FIRST_TOKEN = 105
OBJECTIVES = {
    "text": ObjectiveConfig(nsp=False),
    "nsp": ObjectiveConfig(nsp=True),
    "span_corruption": ObjectiveConfig(name="span_corruption"),
    "infilling": ObjectiveConfig(name="infilling", mask_rate=0.3, permute_sentences=True),
    "pairs": ObjectiveConfig(name="pairs"),
    "causal_lm": ObjectiveConfig(name="causal_lm"),
}
# Of `digest` before there were windows.
SMALL = {
    "text": "5a243d5ca6504a25",
    "nsp": "1a02f2230c8838df",
    "span_corruption": "937bb06bdb2d5176",
    "infilling": "2aa6cf4521e5dc5a",
    "pairs": "b6d9cf67a79537a7",
    "causal_lm": "e4924c9245b6d9a2",
}


def make_split(documents: int, blocks: int, pairs: bool = False, seed: int = 0, longest: int = 20) -> Split:
    """Random lengths in blocks of equally many documents; token i is 105 + i, so that a token names its place."""
    rng = np.random.default_rng(seed)
    document_lengths = np.full(documents, 2) if pairs else rng.integers(1, 20, documents)
    sentence_lengths = rng.integers(1, longest, document_lengths.sum())
    text = Text(np.arange(sentence_lengths.sum()) + FIRST_TOKEN, sentence_lengths, document_lengths)
    first = np.arange(blocks) * documents // blocks
    counts = np.ones_like(document_lengths), document_lengths, text.document_tokens()
    sums = np.stack([np.add.reduceat(values, first) for values in counts], axis=1)
    return Split(text.tokens, sentence_lengths, document_lengths, blocks=sums)


@functools.cache
def large_split() -> Split:
    """20 million tokens of log-normal documents in 96 blocks."""
    rng = np.random.default_rng(0)
    sentence_lengths = np.clip(rng.lognormal(3, 0.6, 900_000), 1, 200).astype(np.int64)
    document_lengths = np.clip(rng.lognormal(2.5, 1, 100_000), 1, 500).astype(np.int64)
    document_lengths = document_lengths[np.cumsum(document_lengths) <= len(sentence_lengths)]
    text = Text(np.zeros(0, int), sentence_lengths[: document_lengths.sum()], document_lengths)
    first = np.arange(96) * len(document_lengths) // 96
    counts = np.ones_like(document_lengths), document_lengths, text.document_tokens()
    sums = np.stack([np.add.reduceat(values, first) for values in counts], axis=1)
    tokens = np.full(text.sentence_lengths.sum(), FIRST_TOKEN, np.uint16)
    return Split(tokens, text.sentence_lengths, document_lengths, blocks=sums)


def make(name: str, split: Split, windows: int = 4, seed: int = 0, **fields: Any) -> Batches:
    settings = {"seq_length": 96, "target_length": 96, "batch_size": 8, **fields}
    if name == "pairs":
        settings["source"] = "dates"
    data = DataConfig(window_tokens=split.num_tokens // windows, **settings)
    return Batches(split, create_row_format(data, OBJECTIVES[name], SPECIAL), data, seed)


def assert_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def shown(batch: dict[str, np.ndarray], names: tuple[str, ...] = ("tokens", "targets")) -> np.ndarray:
    """The places of the tokens of the corpus in a batch, one for each time that a token is there."""
    tokens = np.concatenate([batch[name].ravel() for name in names if name in batch])
    return tokens[tokens >= FIRST_TOKEN] - FIRST_TOKEN


def digest(batches: Batches) -> str:
    """A hash of the first two batches and of one in a later epoch."""
    found = hashlib.sha256()
    for step in (0, 1, int(3 * batches.steps_per_epoch) + 1):
        for name, values in sorted(batches(step).items()):
            found.update(name.encode() + values.tobytes())
    return found.hexdigest()[:16]


# --- an epoch


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_small_corpus_is_one_window_with_the_batches_that_it_always_had(name: str):
    split = make_split(300, 7, pairs=name == "pairs")
    assert digest(make(name, split, windows=1)) == SMALL[name]


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("name", ["text", "span_corruption", "pairs", "causal_lm"])
def test_each_document_is_shown_once_an_epoch(name: str, epoch: int):
    split = make_split(1500, 60, pairs=name == "pairs")
    batches = make(name, split, target_length=96)
    rows = batches.rows_per_epoch
    whole = batches.take(np.arange(epoch * rows, (epoch + 1) * rows))
    times = np.bincount(shown(whole), minlength=split.num_tokens)
    lost = np.flatnonzero(times == 0)
    pieces_of_one = split.num_tokens if name == "span_corruption" else 0  # of one token nothing can be hidden
    assert times.max() == 1
    assert len(lost) <= min(pieces_of_one, len(split.document_bounds))
    assert batches._windows.count == 4


def test_pairs_of_sentences_come_from_one_window():
    split = make_split(1500, 60)
    batches = make("nsp", split)
    window_of_block = np.empty(60, np.int64)
    blocks, bounds = batches._windows.of_epoch(0)
    for window, members in enumerate(blocks):
        window_of_block[members] = window
    ends = np.cumsum(split.blocks[:, TOKENS])
    for window in range(4):
        batch = batches.take(np.arange(bounds[window], bounds[window + 1]))
        assert (batch["nsp_labels"] == 1).any()
        assert set(window_of_block[np.searchsorted(ends, shown(batch), side="right")]) == {window}


def test_epochs_differ_in_windows_and_packing():
    split = make_split(1500, 60)
    batches = make("text", split)
    first, second = (batches._windows.of_epoch(epoch)[0] for epoch in (0, 1))
    assert not any(np.array_equal(a, b) for a, b in itertools.product(first, second))
    np.testing.assert_array_equal(np.sort(np.concatenate(first)), np.arange(60))
    np.testing.assert_array_equal(np.sort(np.concatenate(second)), np.arange(60))
    rows = batches.rows_per_epoch
    one, other = (batches.take(np.arange(start, start + rows))["tokens"] for start in (0, rows))
    assert len({row.tobytes() for row in one} & {row.tobytes() for row in other}) < rows / 10


@pytest.mark.parametrize(
    ("name", "length", "segments"),
    [*itertools.product(["text", "causal_lm"], [128, 1024], [32]), ("text", 512, 16), ("nsp", 512, 16)],
)
def test_at_most_a_hundredth_is_padding(name: str, length: int, segments: int):
    """The margin of a window shrinks with its size; this one has a tenth of the usual tokens."""
    split = large_split()
    batches = make(name, split, windows=2, seq_length=length, max_segments=segments, batch_size=256)
    steps = np.linspace(0, batches.steps_per_epoch - 1, 10).astype(int).tolist()
    assert np.mean([padding_fraction(batches(step)) for step in steps]) < 0.01


def test_neighbours_come_from_far_apart():
    """The correlation of the blocks of neighbouring rows is that of a full shuffle, to 0.05."""
    split = make_split(6000, 240)
    batches = make("text", split, batch_size=1)
    rows = batches.take(np.arange(batches.rows_per_epoch))["tokens"]
    places = np.array([row[row >= FIRST_TOKEN][0] for row in rows if (row >= FIRST_TOKEN).any()]) - FIRST_TOKEN
    block = np.searchsorted(np.cumsum(split.blocks[:, TOKENS]), places, side="right")
    assert abs(np.corrcoef(block[:-1], block[1:])[0, 1]) < 0.05


# --- rows of a step


@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_number_of_processes_sees_the_same_batch(name: str):
    split = make_split(1500, 60, pairs=name == "pairs")
    batches = make(name, split)
    _, bounds = batches._windows.of_epoch(0)
    at_the_end_of_a_window = int(bounds[1]) // 8
    others = [make(name, split) for _ in range(4)]
    for step in (0, at_the_end_of_a_window, int(batches.steps_per_epoch)):
        whole = batches(step)
        for count in (2, 4):
            parts = [other(step, slice(8 * i // count, 8 * (i + 1) // count)) for i, other in enumerate(others[:count])]
            assert_equal(whole, {key: np.concatenate([part[key] for part in parts]) for key in whole})


def test_a_loader_goes_on_at_any_step():
    split = make_split(1500, 60)
    unbroken = make("text", split)
    last = int(unbroken.steps_per_epoch) + 4  # over all windows and into the next epoch
    expected = list(itertools.islice(loader(unbroken), last))
    for start in (1, last // 3, last - 3):
        resumed = itertools.islice(loader(make("text", split), start), last - start)
        for step, batch in zip(range(start, last), resumed, strict=True):
            assert_equal(batch, expected[step])


def test_a_mixture_keeps_its_rates_over_windows(mixture_config: Config):
    config = mixture_config
    stores = mixture.open_stores(config, "")
    config.data.window_tokens = stores["spans"].train.num_tokens // 3
    members = make_members(config, stores)
    source = mixed(members, config.data.batch_size)
    order = np.resize(mixture.schedule(np.array([member.rows for member in members])), 16 * 30)
    taken = [member.train.take(np.arange((order == i).sum())) for i, member in enumerate(members)]
    expected = {key: np.empty((len(order), *values.shape[1:]), values.dtype) for key, values in taken[0].items()}
    for index, of_member in enumerate(taken):
        for key, values in of_member.items():
            expected[key][order == index] = values
    for step in range(30):
        assert_equal(source(step, None), {key: values[16 * step : 16 * (step + 1)] for key, values in expected.items()})


# --- rows of a window


def test_a_packing_is_filled_up_to_its_rows(rng: np.random.Generator):
    offsets = np.array([0, 1, 4, 6, 7])
    more = fill(offsets, 6, rng)
    assert set(offsets.tolist()) < set(more.tolist())
    assert (len(more), np.diff(more).min(), more[-1]) == (7, 1, 7)
    assert fill(offsets, 4, rng).tolist() == offsets.tolist()
    assert fill(offsets, 2, rng).tolist() == [0, 1, 4]
    assert np.diff(fill(offsets, 9, rng)).tolist()[-3:] == [0, 0, 0]  # two rows can be split, three are empty


def test_a_window_that_needs_more_rows_is_planned_again(monkeypatch: pytest.MonkeyPatch):
    batches = make("text", make_split(1500, 60))
    inner, calls = batches._packed, []

    def too_long(split: Split, rng: np.random.Generator, *, together: bool) -> Plan:
        calls.append(split)
        plan = inner(split, rng, together=together)
        if len(calls) > 1:
            return plan
        return dataclasses.replace(plan, row_offsets=np.arange(plan.row_offsets[-1] + 1))

    monkeypatch.setattr(batches, "_packed", too_long)
    batches(0)
    assert len(calls) == 2


def test_rows_left_out_are_told(capsys: pytest.CaptureFixture[str]):
    batches = make("text", make_split(1500, 60))
    batches._windows.rows_per_epoch = batches.rows_per_epoch = batches.rows_per_epoch * 9 // 10
    batches(0)
    assert "window 0 of epoch 0 needs more rows than it has" in capsys.readouterr().err


# --- stores


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BLOCK_TOKENS", 500)


@pytest.fixture
def blocks_on_disk(small_blocks: None, made: Store, data_config: DataConfig, tmp_path: Path) -> Store:
    del small_blocks
    out = str(tmp_path / "blocks")
    prepare.prepare(data_config, out, num_workers=1, progress=False, tokenizer=made.tokenizer)
    return Store.open(out, memory_limit=0)


def test_blocks_are_whole_documents(blocks_on_disk: Store, made: Store):
    blocks = blocks_on_disk.train.blocks
    assert len(blocks) > 30
    assert blocks.sum(axis=0).tolist() == [made.train.num_documents, len(made.train.sentence_offsets) - 1, 26731]
    documents, sentences, tokens = np.cumsum(blocks, axis=0).T
    np.testing.assert_array_equal(made.train.document_offsets[documents], sentences)
    np.testing.assert_array_equal(made.train.document_bounds[documents], tokens)


@pytest.mark.parametrize("name", ["text", "nsp", "infilling"])
def test_windows_of_a_store_are_those_of_its_text_and_read_no_more(
    name: str, blocks_on_disk: Store, made: Store, monkeypatch: pytest.MonkeyPatch
):
    whole = made.train
    whole.load()
    in_memory = Split(
        whole.read(np.zeros(1, int), np.array([whole.num_tokens])),
        np.diff(whole.sentence_offsets),
        np.diff(whole.document_offsets),
        made.tokenizer,
        blocks=blocks_on_disk.train.blocks,
    )
    read: dict[str, int] = {}
    inner = arrays.Column.read

    def counting(column: arrays.Column, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        kind = column._folders[0][-1]
        read[kind] = read.get(kind, 0) + int((stops - starts).sum())
        return inner(column, starts, stops)

    monkeypatch.setattr(arrays.Column, "read", counting)
    expected, found = make(name, in_memory), make(name, blocks_on_disk.train)
    assert "tokens" not in read
    steps = int(found.steps_per_epoch)
    assert_equal(found(steps // 2), expected(steps // 2))
    assert read["tokens"] < 0.6 * whole.num_tokens  # two windows of four, where one was begun late
    assert ("sentence_lengths" in read) == (name != "text")
    for step in (0, steps - 1, 3 * steps):
        assert_equal(found(step), expected(step))


def test_what_failed_ahead_of_time_is_tried_again(blocks_on_disk: Store, monkeypatch: pytest.MonkeyPatch):
    batches, again = (make("text", blocks_on_disk.train) for _ in range(2))
    inner, failures = arrays.Column.read, [1]

    def failing(*arguments: Any) -> np.ndarray:
        if failures.pop() if failures else False:
            raise InputError("the store is away for a moment")
        return inner(*arguments)

    monkeypatch.setattr(arrays.Column, "read", failing)
    batches._plan_ahead(0, 0)
    with pytest.raises(InputError):
        batches._plans[0, 1].result()
    step = int(batches._windows.of_epoch(0)[1][1]) // 8 + 1
    assert_equal(batches(step), again(step))


def test_a_store_of_format_1_gives_the_same_batches(made: Store, tmp_path: Path):
    older = Path(shutil.copytree(made.path, tmp_path / "store"))
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["blocks"]
    manifest |= {"format_version": 1, "shards": [manifest["splits"]]}
    (older / "manifest.json").write_text(json.dumps(manifest))
    for folder in list(older.rglob("document_tokens")):
        shutil.rmtree(folder)
    opened = Store.open(str(older))
    for name in ("text", "nsp"):
        assert_equal(make(name, opened.train, 1)(3), make(name, made.train, 1)(3))


def test_opening_reads_no_shard(made: Store, tmp_path: Path):
    """A manifest of 10,000 shards, none of which is there: only reading one fails. It is small."""
    manifest = json.loads(Path(made.path, "manifest.json").read_text())
    block = [[100, 2_000, 40_000 + index] for index in range(10_000)]
    manifest["blocks"] = {"train": store._packed([[each] for each in block]), "heldout": store._packed([])}
    manifest["shards"] = [each[-1] for each in block]
    text = json.dumps(manifest)
    assert len(text) < 200_000
    (tmp_path / "manifest.json").write_text(text)
    shutil.copy(f"{made.path}/tokenizer.model", tmp_path)
    train = Store.open(str(tmp_path)).train
    assert (len(train.blocks), train.num_documents, train.num_tokens) == (10_000, 1_000_000, 449_995_000)
    with pytest.raises(InputError, match="damaged"):
        train.window(np.array([5])).load()
