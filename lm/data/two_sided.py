"""Fits examples with a source and a target into rows: best-fit decreasing on both sides.

A row begins with the largest example that is left, then takes the best of the rest. The best example leaves both sides
equally full; among several such it is the largest. Balance comes first, because the ratio of source and target differs
between short and long examples: if early rows use up one kind, later rows cannot be filled. Sizes are rounded up to a
grid of at most 128 x 128, and examples of one cell count as equal.
"""

import array

import numpy as np

_GRID = 128
_BALANCE = 8  # weight of the penalty for sides that are unequally full
_ONE_BY_ONE = 1 << 19  # examples; more are packed many rows at a time
_SHARE = 16  # the rows that are packed together are this fraction of those that are left

Packing = tuple[np.ndarray, np.ndarray]  # the examples row by row, and how many each row holds


def pack(sizes: np.ndarray, capacities: tuple[int, ...], max_per_row: int, rng: np.random.Generator) -> Packing:
    """Returns a packing of examples of sizes int [N, 2]; the other arguments are those of `packing.pack`.

    Up to half a million examples are packed one row at a time. More are packed many rows at a time, as tightly.
    """
    cells = _Cells(sizes, capacities, rng)
    return (_one_by_one if len(sizes) <= _ONE_BY_ONE else _together)(cells, sizes, capacities, max_per_row)


class _Cells:
    """The examples by the cell of their sizes, in random order within a cell.

    Attributes:
        limits, grid: capacity and number of cells of each side, int64 [2].
        width: cells of a flat index to the next cell of the source.
        by_cell: int64 [N], the examples sorted by cell.
        ends: int64 [cells], the end of each cell in `by_cell`.
        left: int64 [cells], how many examples of each cell are left.
        filled, skew: float32 [source, target], the sum and the difference of the shares of a row that a cell fills.
    """

    def __init__(self, sizes: np.ndarray, capacities: tuple[int, ...], rng: np.random.Generator):
        self.limits = np.array(capacities)
        self.grid = np.minimum(self.limits, _GRID)
        cells = -(-sizes * self.grid // self.limits)  # rounded up: if the cell fits, the example fits
        self.width = int(self.grid[1]) + 1
        flat = cells[:, 0] * self.width + cells[:, 1]
        shuffled = rng.permutation(len(sizes))
        self.by_cell = shuffled[np.argsort(flat[shuffled], kind="stable")]
        self.left = np.bincount(flat, minlength=(int(self.grid[0]) + 1) * self.width)
        self.ends = np.cumsum(self.left)
        share = [np.arange(size + 1) / size for size in self.grid]
        self.filled = (share[0][:, None] + share[1][None, :]).astype(np.float32)
        self.skew = (share[0][:, None] - share[1][None, :]).astype(np.float32)
        order = np.argsort(-np.maximum.outer(share[0], share[1]).ravel(), kind="stable")
        self.largest: list[int] = order[self.left[order] > 0].tolist()


def _one_by_one(cells: _Cells, sizes: np.ndarray, capacities: tuple[int, ...], max_per_row: int) -> Packing:
    """About 8 microseconds and 40 bytes an example."""
    limits, grid, width, filled, skew = cells.limits, cells.grid, cells.width, cells.filled, cells.skew
    # Single elements of Python's arrays are read faster than those of numpy's.
    by_cell, first_sides, second_sides = (
        array.array("q", values.astype(np.int64).tobytes()) for values in (cells.by_cell, sizes[:, 0], sizes[:, 1])
    )
    ends, left = cells.ends.tolist(), cells.left.tolist()
    closed = np.where(cells.left > 0, 0.0, -np.inf).astype(np.float32).reshape(filled.shape)
    largest = iter(cells.largest)
    members, row_sizes = array.array("q"), array.array("q")

    def take(cell: int) -> tuple[int, int]:
        left[cell] -= 1
        if not left[cell]:
            closed.flat[cell] = -np.inf
        member = by_cell[ends[cell] - 1 - left[cell]]
        members.append(member)
        return first_sides[member], second_sides[member]

    cell = next(largest)
    while len(members) < len(sizes):
        while not left[cell]:
            cell = next(largest)
        before = len(members)
        first, second = take(cell)
        room = [capacities[0] - first, capacities[1] - second]
        while len(members) - before < max_per_row:
            high, wide = (int(room[side] * grid[side] // limits[side]) for side in (0, 1))
            if not (high and wide):
                break
            part = slice(1, high + 1), slice(1, wide + 1)
            excess = room[0] / capacities[0] - room[1] / capacities[1]
            score = filled[part] + closed[part] - _BALANCE * np.abs(excess - skew[part])
            row, column = divmod(int(score.argmax()), wide)
            best = (row + 1) * width + column + 1
            if not left[best]:
                break
            first, second = take(best)
            room = [room[0] - first, room[1] - second]
        row_sizes.append(len(members) - before)
    return np.array(members), np.array(row_sizes)


def _together(cells: _Cells, sizes: np.ndarray, capacities: tuple[int, ...], max_per_row: int) -> Packing:
    """A sixteenth of the rows that are left are filled together: below 2 microseconds an example.

    Each of them begins with one of the largest examples. Then, round by round, each takes one more.
    """
    pool = _Pool(cells)
    tokens_left = sizes.sum(axis=0, dtype=np.int64)
    members: list[np.ndarray] = []
    rows_of: list[np.ndarray] = []
    num_rows = 0
    while tokens_left.any():
        taken = pool.largest(max(1, int((tokens_left / cells.limits).max() / _SHARE)))
        row, room = np.arange(len(taken)), np.tile(capacities, (len(taken), 1))
        for nth in range(max_per_row):
            if nth:
                row, taken = pool.best(row, room)
            if not len(taken):
                break
            members.append(taken)
            rows_of.append(row + num_rows)
            tokens_left -= sizes[taken].sum(axis=0)
            room[row] -= sizes[taken]
        num_rows += len(room)
    order = np.argsort(rows := np.concatenate(rows_of), kind="stable")
    return np.concatenate(members)[order], np.bincount(rows)


class _Pool:
    """The examples that are not in a row yet."""

    def __init__(self, cells: _Cells):
        self._cells, self._left = cells, cells.left.copy()
        self._largest = iter(cells.largest)
        self._cell = next(self._largest)
        self._filled = np.where(self._left.reshape(cells.filled.shape) > 0, cells.filled, -np.inf).astype(np.float32)

    def _take(self, cell: int, most: int) -> np.ndarray:
        first = int(self._cells.ends[cell] - self._left[cell])
        count = min(most, int(self._left[cell]))
        self._left[cell] -= count
        if not self._left[cell]:
            self._filled.flat[cell] = -np.inf
        return self._cells.by_cell[first : first + count]

    def largest(self, most: int) -> np.ndarray:
        """Takes the largest examples, int64 [most]; fewer where no more are left."""
        taken = []
        while most:
            taken.append(self._take(self._cell, most))
            most -= len(taken[-1])
            if most and (following := next(self._largest, None)) is None:
                break
            if most:
                self._cell = following
        return np.concatenate(taken)

    def best(self, row: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Takes the best example for each row that has one: the rows and their examples, int64 [any].

        Rows with equal room, in cells, take from the same cells, which are ranked for the mean of their rooms.

        Args:
            row: int64 [any], the rows to fill.
            room: int64 [rows, 2], tokens left on each side.
        """
        cells = self._cells
        high_and_wide = room[row] * cells.grid // cells.limits
        key = high_and_wide[:, 0] * cells.width + high_and_wide[:, 1]
        order = np.argsort(key, kind="stable")
        row, key = row[order], key[order]
        starts = np.flatnonzero(np.diff(key, prepend=-1))
        found: list[tuple[np.ndarray, np.ndarray]] = [(row[:0], row[:0])]
        for rows, (high, wide) in zip(np.split(row, starts[1:]), high_and_wide[order][starts].tolist(), strict=True):
            if not (high and wide):
                continue
            part = slice(1, high + 1), slice(1, wide + 1)
            excess = np.float32((room[rows] / cells.limits).mean(axis=0) @ [1, -1])
            score = self._filled[part] - _BALANCE * np.abs(cells.skew[part] - excess)
            while len(rows) and (best := int(score.argmax())) >= 0 and score.flat[best] > -np.inf:
                taken = self._take((best // wide + 1) * cells.width + best % wide + 1, len(rows))
                if len(taken) < len(rows):
                    score.flat[best] = -np.inf
                found.append((rows[: len(taken)], taken))
                rows = rows[len(taken) :]
        rows_found, taken_found = zip(*found, strict=True)
        return np.concatenate(rows_found), np.concatenate(taken_found)
