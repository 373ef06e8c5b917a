"""Padding of rows over windows, and the time of packing, by kind of rows and their length. From lengths alone.

    python -m tests.benchmarks.padding [--millions=400] [--window=100] [--kinds=nsp,text] [--lengths=128,512,1024]

Documents have 20 sentences of 20 tokens on average, log-normal both, in blocks of a fiftieth of a window. A pair has
two sentences; a target of `translations` has 0.7 to 1.4 tokens for one of its source, one of `pairs` is independent.
The two sides of a row are as long as sources and targets are in the mean.
A row has room for as many examples as `data.max_segments` advises, pairs for one every 8 tokens.

Each line has the padding of the first two windows of an epoch: the least that two sides of equal room allow, as they
are packed, and with the margin that windows have. It also has how many of the two fit their rows with their first plan,
and the CPU microseconds that packing takes an example.
"""

import json
import time

import numpy as np
from absl import flags

from lm import cli, tasks
from lm.config import DataConfig, ObjectiveConfig
from lm.data import packing
from lm.data.batches import Batches, RowFormat
from lm.data.split import Split
from lm.data.store import Text
from lm.tokenizers.special_ids import SpecialIds

_millions = flags.DEFINE_integer("millions", 400, "Tokens of the corpus.", lower_bound=2)
_window = flags.DEFINE_integer("window", 100, "Millions of tokens in a window.", lower_bound=1)
_kinds = flags.DEFINE_list("kinds", ["nsp", "text", "spans", "pairs", "translations"], "Kinds of rows.")
_lengths = flags.DEFINE_list("lengths", ["128", "512", "1024"], "Tokens in a row.")

_OBJECTIVES = {
    "nsp": ObjectiveConfig(nsp=True),
    "text": ObjectiveConfig(nsp=False),
    "spans": ObjectiveConfig(name="span_corruption"),
    "pairs": ObjectiveConfig(name="pairs"),
    "translations": ObjectiveConfig(name="pairs"),
}
_WINDOWS = 2  # that are planned


def make_split(kind: str, tokens: int, window: int) -> Split:
    """A corpus without tokens."""
    rng = np.random.default_rng(0)
    is_pairs = _OBJECTIVES[kind].name == "pairs"
    documents = np.clip(rng.lognormal(np.log(20) - 0.5, 1, tokens // 400), 1, 2_000).astype(np.int64)
    if is_pairs:
        documents = np.full(tokens // 40, 2)
    sentences = np.clip(rng.lognormal(np.log(20) - 0.18, 0.6, documents.sum()), 1, 400).astype(np.int64)
    if kind == "translations":
        ratios = rng.uniform(0.7, 1.4, len(documents))
        sentences[1::2] = np.maximum(1, sentences[::2] * ratios)
    none = np.broadcast_to(np.uint16(0), sentences.sum())
    sizes = Text(none, sentences, documents).document_tokens()
    first = np.unique((np.cumsum(sizes) - sizes) // (window // 50), return_index=True)[1]
    blocks = [np.add.reduceat(values, first) for values in (np.ones_like(sizes), documents, sizes)]
    return Split(none, sentences, documents, blocks=np.stack(blocks, axis=1))


def measure(kind: str, split: Split, length: int, window: int) -> dict[str, object]:
    """Plans and packs windows as `Batches` does."""
    is_pairs = _OBJECTIVES[kind].name == "pairs"
    halves = np.diff(split.sentence_offsets).reshape(-1, 2).sum(axis=0) if is_pairs else np.ones(2)
    data = DataConfig(
        source="dates" if is_pairs else "installed-docs",
        seq_length=length,
        target_length=-(-length * 114 // 512) if kind == "spans" else round(length * halves[1] / halves[0]),
        max_segments=length // 8 if is_pairs else max(8, length // 32),
        window_tokens=window,
    )
    row_format: RowFormat = tasks.create_row_format(data, _OBJECTIVES[kind], SpecialIds())
    batches = Batches(split, row_format, data, 0)
    blocks, bounds = batches._windows.of_epoch(0)
    sides, examples, rows, fits, seconds = np.zeros(len(row_format.capacities)), 0, 0, 0, 0.0
    for number in range(_WINDOWS):
        rng = np.random.default_rng((0, 0, number + 1, 0))
        sizes = row_format.sizes(row_format.plan(split.window(blocks[number]), rng))
        began = time.process_time()
        order = packing.pack(sizes, row_format.capacities, data.max_segments, rng, together=True)[1]
        packed = len(order) - 1
        seconds += time.process_time() - began
        sides, examples, rows = sides + sizes.sum(axis=0), examples + len(sizes), rows + packed
        fits += packed <= bounds[number + 1] - bounds[number]
    places, least = sum(row_format.capacities), (sides / row_format.capacities).max()
    return {
        "kind": kind,
        "length": length,
        "least": round(float(1 - sides.sum() / least / places), 5),
        "packed": round(float(1 - sides.sum() / rows / places), 5),
        "with_margin": round(float(1 - sides.sum() / int(bounds[_WINDOWS]) / places), 5),
        "windows_that_fit_at_once": int(fits),
        "examples": examples,
        "pack_us_an_example": round(1e6 * seconds / examples, 2),
    }


def main() -> None:
    window = _window.value * 1_000_000
    for kind in _kinds.value:
        split = make_split(kind, _millions.value * 1_000_000, window)
        for length in map(int, _lengths.value):
            print(json.dumps(measure(kind, split, length, window)), flush=True)


if __name__ == "__main__":
    cli.run(main)
