"""A batch is a pure function of (seed, step).

Three stages that know little of each other: `examples` plans an epoch as spans of the corpus, `packing`
fits them into rows, and `Batches` reads the tokens of the rows that a step asks for. Nothing depends on
which batches came before or on the number of processes, so resuming needs a step number and no more.

B rows, L tokens in a row, P segments in a row at most.
"""

import collections
import dataclasses
import sys
import threading
from collections.abc import Iterator

import numpy as np

from lm.config import DataConfig, InputError, ObjectiveConfig
from lm.data import examples, packing
from lm.data.store import Split
from lm.data.tokenizer import SpecialIds

_PLANS_KEPT = 2  # a batch may lie across the end of an epoch


@dataclasses.dataclass
class Plan:
    """One epoch: its examples in the order of the rows, row r being `row_offsets[r]:row_offsets[r+1]`."""

    examples: examples.Examples
    row_offsets: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1


class Batches:
    """Batches of packed rows by step; safe to call from several threads.

    Attributes:
        rows_per_epoch: rows of epoch 0. Every other epoch has its own pairs, packing and order, and is
            cut, or refilled from its own beginning, to as many, so that a step's rows are known at once.
    """

    def __init__(self, split: Split, special: SpecialIds, data: DataConfig, objective: ObjectiveConfig, seed: int):
        """Plans the first epoch.

        Args:
            split: where the tokens are.
            special: ids of [PAD], [CLS] and [SEP].
            data: row length, batch size, segments a row and the share of short pairs.
            objective: `nsp` decides between sentence pairs and running text.
            seed: decides pairs, packing and order.

        Raises:
            InputError: the split is empty.
        """
        self._split, self._special, self._data, self._nsp, self._seed = split, special, data, objective.nsp, seed
        self._plans: collections.OrderedDict[int, Plan] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.rows_per_epoch = self._plan(0).num_rows
        if not self.rows_per_epoch:
            raise InputError(
                "this split of the token store has no document; prepare a larger corpus, or set data.heldout_fraction "
                "above 0 if it is the held-out one."
            )

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every row of an epoch is seen once."""
        return self.rows_per_epoch / self._data.batch_size

    def __call__(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """The batch of a step.

        Args:
            step: 0 or more.
            rows: this process's part of the `data.batch_size` rows; by default all of them.

        Returns:
            int32 arrays. [B, L]: `tokens`; `segments` (0 for padding, then 1..P); `positions`, which
            begin again at 0 in every segment; `token_types` (1 in the second sentence of a pair and its
            [SEP]). With NSP also [B, P]: `cls_positions`, the place of each pair's [CLS] in its row, and
            `nsp_labels`, 0 for next, 1 for random, -1 for no pair there.
        """
        size = self._data.batch_size
        row = step * size + np.arange(size)[rows or slice(None)]
        epoch, row = np.divmod(row, self.rows_per_epoch)
        parts = []
        for number in np.unique(epoch):
            plan = self._plan(int(number))
            parts.append(self._materialise(plan, row[epoch == number] % plan.num_rows))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _plan(self, epoch: int) -> Plan:
        with self._lock:
            if epoch not in self._plans:
                self._plans[epoch] = self._make_plan(epoch)
                while len(self._plans) > _PLANS_KEPT:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(epoch)
            return self._plans[epoch]

    def _make_plan(self, epoch: int) -> Plan:
        rng = np.random.default_rng((self._seed, epoch))
        length = self._data.seq_length
        if self._nsp:
            found = examples.sentence_pairs(self._split, length, self._data.short_seq_prob, rng)
        else:
            found = examples.running_text(self._split, length, rng)
        order, row_offsets = packing.pack(found.row_lengths, length, self._data.max_segments, rng)
        return Plan(found[order], row_offsets)

    def _materialise(self, plan: Plan, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Reads and lays out some rows of a plan."""
        size = np.diff(plan.row_offsets)[rows]
        first = np.cumsum(size) - size
        row = np.repeat(np.arange(len(rows)), size)
        nth = np.arange(len(row)) - first[row]
        found = plan.examples[plan.row_offsets[rows][row] + nth]
        total = found.row_lengths
        before = np.cumsum(total) - total
        offset = before - before[first][row]
        batch = self._lay_out(found, row * self._data.seq_length + offset, nth, len(rows))
        if self._nsp:
            shape = (len(rows), self._data.max_segments)
            batch["cls_positions"] = np.zeros(shape, np.int32)
            batch["nsp_labels"] = np.full(shape, -1, np.int32)
            batch["cls_positions"][row, nth] = offset
            batch["nsp_labels"][row, nth] = found.labels
        return batch

    def _lay_out(self, found: examples.Examples, at: np.ndarray, nth: np.ndarray, rows: int) -> dict[str, np.ndarray]:
        """The [B, L] arrays of N examples.

        Args:
            found: the examples.
            at: int [N], where each begins in the flattened batch.
            nth: int [N], its number in its row.
            rows: B.
        """
        size = rows * self._data.seq_length
        tokens = np.full(size, self._special.pad, np.int32)
        segments, positions, token_types = (np.zeros(size, np.int32) for _ in range(3))

        total = found.row_lengths
        within = examples.ranks(total)
        places = np.repeat(at, total) + within
        segments[places] = np.repeat(nth + 1, total)
        positions[places] = within
        num_examples, num_spans = found.lengths.shape
        runs = found.lengths + 1  # a span and its [SEP] ...
        runs[:, 0] += 1  # ... and [CLS] before the first
        token_types[places] = np.repeat(np.tile(np.arange(num_spans), num_examples), runs.ravel())

        separators = at[:, None] + np.cumsum(runs, axis=1) - 1
        tokens[at] = self._special.cls
        tokens[separators] = self._special.sep
        span_places = (separators - found.lengths).ravel()
        lengths = found.lengths.ravel()
        tokens[np.repeat(span_places, lengths) + examples.ranks(lengths)] = self._split.read(
            found.starts.ravel(), lengths
        )

        flat = {"tokens": tokens, "segments": segments, "positions": positions, "token_types": token_types}
        return {name: array.reshape(rows, -1) for name, array in flat.items()}


def padding_fraction(batch: dict[str, np.ndarray]) -> float:
    """The share of a batch's places that hold no token."""
    return float(np.mean(batch["segments"] == 0))


class _Steps:
    """The batches as a sequence that grain can index."""

    def __init__(self, batches: Batches, rows: slice | None):
        self._batches, self._rows = batches, rows

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._batches(int(index), self._rows)


def loader(
    batches: Batches, start_step: int = 0, rows: slice | None = None, *, num_threads: int = 2, prefetch: int = 4
) -> Iterator[dict[str, np.ndarray]]:
    """Batches from `start_step` on, without end, made ahead of time by threads.

    Args:
        batches: what to read.
        start_step: the first step; any is as quick as 0.
        rows: as in `Batches.__call__`.
        num_threads: threads that make batches.
        prefetch: batches that may wait.
    """
    import grain  # here, since grain imports jax

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(_Steps(batches, rows))[start_step:].to_iter_dataset(options))
