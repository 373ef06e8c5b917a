"""A batch is a pure function of (seed, step).

Three stages make it: a row format plans the examples of an epoch as spans of the corpus, `packing` fits them into rows,
and the row format writes the rows that a step asks for. An epoch of a large corpus is planned window by window, ahead
of time (`lm.data.windows`). Nothing depends on which batches came before or on the number of processes, so resuming
needs a step number and no more.

B rows, N examples.
"""

import collections
import concurrent.futures
import dataclasses
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from lm.config import DataConfig
from lm.data import packing
from lm.data.examples import Examples
from lm.data.flat import make_keys, ranks
from lm.data.split import Split
from lm.data.windows import Windows, fill
from lm.errors import InputError

# The arrays of a batch, or of some of its rows, by name.
Arrays = dict[str, np.ndarray]

# A process's part of a batch: the numbers of its rows, ascending, or a slice of them.
Rows = np.ndarray | slice

# (step, a process's part of the batch; None for the whole batch) -> arrays.
Source = Callable[[int, Rows | None], Arrays]

_ATTEMPTS = 8  # at packing a window into its rows
_PLANS_KEPT = 2  # a batch may lie across the end of a window


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where N examples lie in B rows.

    Attributes:
        rows: B.
        row: int [N], the row of each example.
        nth: int [N], the number of each example in its row, from 0.
        offsets: int [N, sides], the column in which each example begins.
    """

    rows: int
    row: np.ndarray
    nth: np.ndarray
    offsets: np.ndarray

    def moved(self, sizes: np.ndarray) -> "Placement":
        """Returns the placement of the same examples with these sizes, int64 [N, sides], without gaps between them."""
        before = np.cumsum(sizes, axis=0) - sizes
        first = np.arange(len(self.row)) - self.nth
        return dataclasses.replace(self, offsets=before - before[first])


class RowFormat(Protocol):
    """What a row of a task holds: the examples of an epoch, and how they are written into rows.

    A row has one side for an encoder or a decoder, and two for an encoder-decoder: the source and the target.

    Attributes:
        capacities: tokens in a row of each side.
    """

    capacities: tuple[int, ...]

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        """Returns the examples of an epoch, planned from lengths alone."""
        ...

    def sizes(self, examples: Examples) -> np.ndarray:
        """Returns the number of tokens that each example takes, int64 [N, sides]."""
        ...

    def arrays(self, split: Split, examples: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        """Returns the arrays of the rows that hold these examples. `keys` [N] seed what is random in each."""
        ...


@dataclasses.dataclass
class Plan:
    """One window of an epoch: its examples in the order of the rows, row r being `row_offsets[r]:row_offsets[r+1]`.

    Attributes:
        split: the window, in which the examples are spans.
        truncated: how many examples lost tokens.
        first_row: the number of its first row in the epoch.
    """

    split: Split
    examples: Examples
    row_offsets: np.ndarray
    truncated: int
    first_row: int = 0

    @property
    def num_rows(self) -> int:
        return len(self.row_offsets) - 1


class Batches:
    """Batches of packed rows by step. Several threads may call it.

    Attributes:
        rows_per_epoch: rows of an epoch. Each epoch has its own pairs, packing and order. Where the split is one
            window, epoch 0 decides the number, and every other epoch is cut to it or refilled from its own beginning.
        truncated: examples of epoch 0 that lost tokens, because a supervised pair did not fit into a row.
        is_estimate: whether `truncated` is an estimate, because there are several windows.
    """

    def __init__(self, split: Split, row_format: RowFormat, data: DataConfig, seed: int):
        """Counts the rows of an epoch: plans all of it where it is one window, else a sample.

        Args:
            split: where the tokens are.
            row_format: what a row holds, of the task.
            data: batch size, segments a row and tokens a window.
            seed: decides examples, packing, order and what is hidden on the host.

        Raises:
            InputError: the split is empty, or cannot be read.
        """
        self._split, self._format, self._data, self._seed = split, row_format, data, seed
        self._plans: collections.OrderedDict[tuple[int, int], concurrent.futures.Future[Plan]] = (
            collections.OrderedDict()
        )
        self._planner = concurrent.futures.ThreadPoolExecutor(1, "planner")
        self._lock = threading.Lock()
        self._windows = Windows(split, data.window_tokens, seed, self._count_rows)
        self.rows_per_epoch, self.truncated = self._windows.rows_per_epoch, self._windows.truncated
        self.is_estimate = self._windows.count > 1
        if self._windows.count == 1:
            plan = self._plan(0, 0)
            self.rows_per_epoch, self.truncated = plan.num_rows, plan.truncated
        if not self.rows_per_epoch:
            raise InputError(
                "this split of the token store has no document; prepare a larger corpus, or set data.heldout_fraction "
                "above 0 if it is the held-out one."
            )

    @property
    def steps_per_epoch(self) -> float:
        """The number of steps in which every row of an epoch is seen once."""
        return self.rows_per_epoch / self._data.batch_size

    def __call__(self, step: int, rows: Rows | None = None) -> Arrays:
        """Returns the batch of a step: the arrays that the row format writes, of B rows each.

        Args:
            step: 0 or more.
            rows: this process's part of the `data.batch_size` rows; by default all of them.
        """
        return self.take(numbers(step, self._data.batch_size, rows))

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches of `once`."""
        return -(-self.rows_per_epoch // self._data.batch_size)

    def once(self, index: int, rows: Rows | None = None) -> Arrays:
        """Returns one of the batches that show epoch 0 once. The last one may end with rows of padding.

        Args:
            index: from 0 to `batches_per_epoch` - 1.
            rows: as in `__call__`.
        """
        row = numbers(index, self._data.batch_size, rows)
        return _joined([self._rows(self._plan(0, window), 0, part) for window, part in self._by_window(0, row)])

    def take(self, row: np.ndarray) -> Arrays:
        """Returns rows by their number, counted through all epochs.

        Args:
            row: int64 [B], 0 or more, ascending.
        """
        epochs, row = np.divmod(row, self.rows_per_epoch)
        parts = []
        for epoch in np.unique(epochs).tolist():
            for window, part in self._by_window(epoch, row[epochs == epoch]):
                plan = self._plan(epoch, window)
                if 2 * part.max() >= plan.num_rows:
                    self._plan_ahead(epoch, window)
                parts.append(self._rows(plan, epoch, part % plan.num_rows))
        return _joined(parts)

    def _by_window(self, epoch: int, row: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yields each window that has some of these rows of an epoch, and their numbers in the window."""
        if self._windows.count == 1:
            yield 0, row
            return
        bounds = self._windows.of_epoch(epoch)[1]
        windows = np.searchsorted(bounds[1:-1], row, side="right")
        for window in np.unique(windows).tolist():
            yield window, row[windows == window] - bounds[window]

    # --- plans

    def _plan(self, epoch: int, window: int) -> Plan:
        """Returns the plan of a window. A failure ahead of time does not count: what failed is tried again."""
        with self._lock:
            planned = self._plans.get((epoch, window))
            if planned is None or (planned.done() and planned.exception()):
                planned = self._start(epoch, window)
            self._plans.move_to_end((epoch, window))
        return planned.result()

    def _plan_ahead(self, epoch: int, window: int) -> None:
        """Starts to plan the next window."""
        after = (epoch, window + 1) if window + 1 < self._windows.count else (epoch + 1, 0)
        with self._lock:
            if after not in self._plans:
                self._start(*after)

    def _start(self, epoch: int, window: int) -> concurrent.futures.Future[Plan]:
        planned = self._plans[epoch, window] = self._planner.submit(self._make_plan, epoch, window)
        while len(self._plans) > _PLANS_KEPT:
            self._plans.popitem(last=False)
        return planned

    def _make_plan(self, epoch: int, window: int) -> Plan:
        """Plans a window, and reads its tokens."""
        if self._windows.count == 1:
            plan = self._packed(self._split, np.random.default_rng((self._seed, epoch)), together=False)
        else:
            plan = self._plan_window(epoch, window)
        plan.split.load()
        return plan

    def _plan_window(self, epoch: int, window: int) -> Plan:
        blocks, bounds = self._windows.of_epoch(epoch)
        split = self._split.window(blocks[window])
        first, after = bounds[window : window + 2].tolist()
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng((self._seed, epoch, window + 1, attempt))
            plan = self._packed(split, rng, together=True)
            if plan.num_rows <= after - first:
                break
        else:
            lost = plan.num_rows - (after - first)
            print(
                f"window {window} of epoch {epoch} needs more rows than it has; {lost:,} are left out", file=sys.stderr
            )
        return dataclasses.replace(plan, row_offsets=fill(plan.row_offsets, after - first, rng), first_row=first)

    def _packed(self, split: Split, rng: np.random.Generator, *, together: bool) -> Plan:
        examples = self._format.plan(split, rng)
        sizes = self._format.sizes(examples)
        capacities, most = self._format.capacities, self._data.max_segments
        order, row_offsets = packing.pack(sizes, capacities, most, rng, together=together)
        return Plan(split, examples[order], row_offsets, examples.truncated)

    def _count_rows(self, split: Split, rng: np.random.Generator) -> tuple[int, int]:
        plan = self._packed(split, rng, together=True)
        return plan.num_rows, plan.truncated

    def _rows(self, plan: Plan, epoch: int, rows: np.ndarray) -> Arrays:
        """Reads some rows of a plan and writes their arrays. Rows after the last one are padding."""
        bounds = np.minimum(rows[:, None] + [0, 1], plan.num_rows)
        first, after = plan.row_offsets[bounds].T
        row = np.repeat(np.arange(len(rows)), after - first)
        nth = ranks(after - first)
        examples = plan.examples[first[row] + nth]
        sizes = self._format.sizes(examples)
        place = Placement(len(rows), row, nth, np.zeros_like(sizes)).moved(sizes)
        keys = make_keys(self._seed, epoch, plan.first_row + rows[row], nth)
        return self._format.arrays(plan.split, examples, place, keys)


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def numbers(step: int, batch_size: int, rows: Rows | None) -> np.ndarray:
    """Returns the numbers of a step's rows, counted from the first row of step 0."""
    return step * batch_size + np.arange(batch_size)[slice(None) if rows is None else rows]


def count_tokens(batch: Arrays) -> tuple[int, int]:
    """Returns how many places of a batch hold a token, and how many places there are, over all sides."""
    sides = [array for name, array in batch.items() if name in ("segments", "target_segments")]
    return sum(int((array > 0).sum()) for array in sides), sum(array.size for array in sides)


def example_lengths(batch: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of tokens of each example, int64 [B, P], for the encoder and for the decoder.

    It is 0 where a row has fewer than P examples, and on a side that the batch lacks.
    """
    sides = [batch[name] for name in ("segments", "target_segments") if name in batch]
    number = 1 + max(int(array.max(initial=0)) for array in sides)
    found = {}
    for name in ("segments", "target_segments"):
        segments = batch.get(name, np.zeros((len(sides[0]), 0), np.int32))
        flat = segments + number * np.arange(len(segments))[:, None]
        found[name] = np.bincount(flat.ravel(), minlength=len(segments) * number).reshape(-1, number)[:, 1:]
    return found["segments"], found["target_segments"]


def padding_fraction(batch: Arrays) -> float:
    """Returns the share of a batch's places that hold no token."""
    tokens, places = count_tokens(batch)
    return (places - tokens) / places


class _BatchOfStep:
    """The batches as a sequence that grain can index."""

    def __init__(self, batches: Source, rows: Rows | None):
        self._batches, self._rows = batches, rows

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Arrays:
        return self._batches(int(index), self._rows)


def loader(
    batches: Source, start_step: int = 0, rows: Rows | None = None, *, num_threads: int = 2, prefetch: int = 4
) -> Iterator[Arrays]:
    """Returns the batches from `start_step` on, without end. Threads make them ahead of time.

    Args:
        batches: what to read.
        start_step: the first step. No step takes longer to start from than another.
        rows: as in `Batches.__call__`.
        num_threads: threads that make batches.
        prefetch: how many batches are made ahead.
    """
    import grain  # it imports jax, which other users of this module do not need

    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(_BatchOfStep(batches, rows))[start_step:].to_iter_dataset(options))
