"""A batch is a pure function of (seed, step).

Stages that know little of each other: `examples` plans an epoch as spans of the corpus, `packing` fits them into
rows, a layout writes the rows that a step asks for. Nothing depends on which batches came before or on the number
of processes, so resuming needs a step number and no more.
"""

import collections
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lm.config import DataConfig, ObjectiveConfig
from lm.data import corruption, examples, layouts, packing
from lm.data.special_ids import SpecialIds
from lm.data.store import Split
from lm.errors import InputError

# A process's part of a batch: the numbers of its rows, ascending, or what selects them.
Rows = np.ndarray | slice

# From a step and a process's part of the batch (None: all of it) to arrays.
Source = Callable[[int, Rows | None], layouts.Arrays]

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
        truncated: examples of epoch 0 that lost tokens, because a supervised pair did not fit into a row.
    """

    def __init__(
        self,
        split: Split,
        special: SpecialIds,
        data: DataConfig,
        objective: ObjectiveConfig,
        seed: int,
        prefix: Sequence[int] | np.ndarray = (),
    ):
        """Plans the first epoch.

        Args:
            split: where the tokens are.
            special: ids with a meaning of their own.
            data: row lengths, batch size and segments a row.
            objective: what the rows are for.
            seed: decides examples, packing, order and what is hidden on the host.
            prefix: ids put before every source that an encoder-decoder reads.

        Raises:
            InputError: the split is empty, or the tokenizer lacks what the objective needs.
        """
        self._split, self._data, self._seed = split, data, seed
        self._layout = layouts.create(data, objective, special, prefix)
        self._plans: collections.OrderedDict[int, Plan] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.truncated = 0
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

    def __call__(self, step: int, rows: Rows | None = None) -> dict[str, np.ndarray]:
        """The batch of a step.

        Args:
            step: 0 or more.
            rows: this process's part of the `data.batch_size` rows; by default all of them.

        Returns:
            int32 arrays of B rows; which, the layout of the objective says.
        """
        return self.take(numbers(step, self._data.batch_size, rows))

    def take(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """Some rows of all epochs, one after the other.

        Args:
            row: int64 [B], 0 or more, ascending.

        Returns:
            As `__call__`.
        """
        epoch, row = np.divmod(row, self.rows_per_epoch)
        parts = []
        for number in np.unique(epoch):
            plan = self._plan(int(number))
            parts.append(self._rows(plan, int(number), row[epoch == number] % plan.num_rows))
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
        found = self._layout.plan(self._split, rng)
        self.truncated = found.truncated
        sizes = self._layout.sizes(found)
        order, row_offsets = packing.pack(sizes, self._layout.capacities, self._data.max_segments, rng)
        return Plan(found[order], row_offsets)

    def _rows(self, plan: Plan, epoch: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Reads and lays out some rows of a plan."""
        per_row = np.diff(plan.row_offsets)[rows]
        first = np.cumsum(per_row) - per_row
        row = np.repeat(np.arange(len(rows)), per_row)
        nth = np.arange(len(row)) - first[row]
        found = plan.examples[plan.row_offsets[rows][row] + nth]
        sizes = self._layout.sizes(found)
        before = np.cumsum(sizes, axis=0) - sizes
        place = layouts.Placement(len(rows), row, nth, before - before[first][row])
        keys = corruption.make_keys(self._seed, epoch, rows[row], nth)
        return self._layout.arrays(self._split, found, place, keys)


def numbers(step: int, batch_size: int, rows: Rows | None) -> np.ndarray:
    """The numbers of a step's rows, counted from the first row of step 0."""
    return step * batch_size + np.arange(batch_size)[slice(None) if rows is None else rows]


def count_tokens(batch: dict[str, np.ndarray]) -> tuple[int, int]:
    """How many places of a batch hold a token, over all its sides, and how many there are."""
    sides = [array for name, array in batch.items() if name in ("segments", "target_segments")]
    return sum(int((array > 0).sum()) for array in sides), sum(array.size for array in sides)


def padding_fraction(batch: dict[str, np.ndarray]) -> float:
    """The share of a batch's places that hold no token."""
    tokens, places = count_tokens(batch)
    return (places - tokens) / places


class _Steps:
    """The batches as a sequence that grain can index."""

    def __init__(self, batches: Source, rows: Rows | None):
        self._batches, self._rows = batches, rows

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._batches(int(index), self._rows)


def loader(
    batches: Source, start_step: int = 0, rows: Rows | None = None, *, num_threads: int = 2, prefetch: int = 4
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
