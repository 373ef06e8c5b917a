"""Fits examples with a source and a target into rows: best-fit decreasing on both sides.

A row begins with the largest example that is left, then takes the best of the rest. The best example leaves both sides
equally full; among several such it is the largest. Balance comes first, because the ratio of source and target differs
between short and long examples: if early rows use up one kind, later rows cannot be filled. Examples whose sizes are in
one cell of a grid count as equal.

Many rows are filled together. There one or two examples that fill both sides of a row exactly go before the best one.
With lengths that are independent of each other this leaves 0.1 to 0.4% of the places empty, and 1.1 to 2.1% without.
"""

import array

import numpy as np

_GRID = 128  # cells of a side where rows are filled one by one
_EXACT, _COARSE = 128, 64  # where they are filled together: a cell for each length up to 128, and 64 beyond
_BALANCE = 8  # weight of the penalty for sides that are unequally full
_ONE_BY_ONE = 1 << 19  # examples; more are always packed many rows at a time
_SHARE = 16  # the rows that are packed together are this fraction of those that are left

Packing = tuple[np.ndarray, np.ndarray]  # the examples row by row, and how many each row holds


def pack(
    sizes: np.ndarray, capacities: tuple[int, ...], max_per_row: int, rng: np.random.Generator, together: bool
) -> Packing:
    """Returns a packing of examples of sizes int [N, 2]; the other arguments are those of `packing.pack`."""
    if together or len(sizes) > _ONE_BY_ONE:
        return _together(_Cells(sizes, [_exact(capacity) for capacity in capacities], rng), sizes, max_per_row)
    return _one_by_one(_Cells(sizes, [_even(capacity) for capacity in capacities], rng), sizes, max_per_row)


def _even(capacity: int) -> np.ndarray:
    """Returns the largest size of each cell, from 0 to the capacity, where all cells are equally wide."""
    cells = min(capacity, _GRID)
    return np.arange(cells + 1) * (capacity / cells)


def _exact(capacity: int) -> np.ndarray:
    """The same where short examples have a cell for each length, so that what fills a row exactly can be found."""
    exact = min(capacity, _EXACT)
    beyond = min(capacity - exact, _COARSE)
    wider = np.floor(np.arange(1, beyond + 1) * ((capacity - exact) / max(1, beyond)))
    return np.append(np.arange(exact + 1.0), exact + wider)


class _Cells:
    """The examples by the cell of their sizes, in random order within a cell.

    Attributes:
        capacities: of both sides, int64 [2].
        width: cells of a flat index to the next cell of the source.
        within: for each side the largest cell that fits into each room, list of capacity + 1.
        by_cell: int64 [N], the examples sorted by cell.
        ends: int64 [cells], the end of each cell in `by_cell`.
        left: int64 [cells], how many examples of each cell there are.
        filled, skew: float32 [source, target], the sum and the difference of the shares of a row that a cell fills.
        largest: the cells with examples, those with the largest side first.
    """

    def __init__(self, sizes: np.ndarray, bounds: list[np.ndarray], rng: np.random.Generator):
        """Sorts the examples. `bounds` has the largest size of each cell for each side, ascending from 0."""
        self.capacities = np.array([ends[-1] for ends in bounds]).astype(np.int64)
        self.width = len(bounds[1])
        self.within = [
            (np.searchsorted(ends, np.arange(capacity + 1), side="right") - 1).tolist()
            for ends, capacity in zip(bounds, self.capacities.tolist(), strict=True)
        ]
        first, second = (np.searchsorted(ends, column) for ends, column in zip(bounds, sizes.T, strict=True))
        flat = first * self.width + second
        shuffled = rng.permutation(len(sizes))
        self.by_cell = shuffled[np.argsort(flat[shuffled], kind="stable")]
        self.left = np.bincount(flat, minlength=len(bounds[0]) * self.width)
        self.ends = np.cumsum(self.left)
        share = [ends / ends[-1] for ends in bounds]
        self.filled = (share[0][:, None] + share[1][None, :]).astype(np.float32)
        self.skew = (share[0][:, None] - share[1][None, :]).astype(np.float32)
        order = np.argsort(-np.maximum.outer(share[0], share[1]).ravel(), kind="stable")
        self.largest: list[int] = order[self.left[order] > 0].tolist()


def _one_by_one(cells: _Cells, sizes: np.ndarray, max_per_row: int) -> Packing:
    """About 8 microseconds and 40 bytes an example."""
    capacities, within = cells.capacities.tolist(), cells.within
    width, filled, skew = cells.width, cells.filled, cells.skew
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
            high, wide = (within[side][room[side]] for side in (0, 1))
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


def _together(cells: _Cells, sizes: np.ndarray, max_per_row: int) -> Packing:
    """A sixteenth of the rows that are left are filled together: below 2 microseconds an example of half a million.

    Each of them begins with one of the largest examples. Then, round by round, each takes what fills it exactly, or one
    more example.
    """
    pool = _Pool(cells)
    tokens_left = sizes.sum(axis=0, dtype=np.int64)
    members: list[np.ndarray] = []
    rows_of: list[np.ndarray] = []
    num_rows = 0
    while tokens_left.any():
        taken = pool.largest(max(1, int((tokens_left / cells.capacities).max() / _SHARE)))
        row, room = np.arange(len(taken)), np.tile(cells.capacities, (len(taken), 1))
        for nth in range(max_per_row):
            if nth:
                full, filling = pool.exact(row, room, max_per_row - nth)
                members.append(filling)
                rows_of.append(full + num_rows)
                tokens_left -= sizes[filling].sum(axis=0)
                row, taken = pool.best(np.setdiff1d(row, full), room)
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

    def exact(self, row: np.ndarray, room: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Takes one or two examples for each row that they fill exactly: the rows, once or twice, and their examples.

        Of several two it takes those with the largest example. Rooms beyond the exact cells are left for later.

        Args:
            row: int64 [any], the rows to fill.
            room: int64 [rows, 2], tokens left on each side.
            most: examples that each of these rows may take.
        """
        cells, left = self._cells, self._left.reshape(self._cells.filled.shape)
        row = row[((room[row] > 0) & (room[row] <= _EXACT)).all(axis=1)]
        found: list[tuple[np.ndarray, np.ndarray]] = [(row[:0], row[:0])]
        for rows in _alike(row, room[row, 0] * (_EXACT + 1) + room[row, 1]):
            high, wide = room[rows[0]].tolist()
            if left[high, wide]:
                found.append((rows[: left[high, wide]], self._take(high * cells.width + wide, len(rows))))
                rows = rows[len(found[-1][1]) :]
            if not len(rows) or most < 2 or min(high, wide) < 2:
                continue
            # A cell and the one that it leaves room for lie opposite each other.
            part = left[1:high, 1:wide]
            size = np.maximum.outer(np.arange(1, high), np.arange(1, wide))
            size[(part == 0) | (part[::-1, ::-1] == 0)] = 0
            while len(rows) and size.flat[best := int(size.argmax())]:
                at, across = best // (wide - 1) + 1, best % (wide - 1) + 1
                one, other = at * cells.width + across, (high - at) * cells.width + wide - across
                both = int(min(self._left[one], self._left[other])) if one != other else int(self._left[one] // 2)
                count = min(len(rows), both)
                found += [(rows[:count], self._take(cell, count)) for cell in (one, other)]
                rows = rows[count:]
                size[at - 1, across - 1] = size[high - at - 1, wide - across - 1] = 0
        return _concatenated(found)

    def best(self, row: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Takes the best example for each row that has one: the rows and their examples, int64 [any].

        Rows with equal room, in cells, take from the same cells, which are ranked for the mean of their rooms.

        Args:
            row: int64 [any], the rows to fill.
            room: int64 [rows, 2], tokens left on each side.
        """
        cells = self._cells
        high_and_wide = np.stack([np.take(cells.within[side], room[row, side]) for side in (0, 1)], axis=1)
        found: list[tuple[np.ndarray, np.ndarray]] = [(row[:0], row[:0])]
        for rows in _alike(row, high_and_wide[:, 0] * cells.width + high_and_wide[:, 1]):
            high, wide = (cells.within[side][room[rows[0], side]] for side in (0, 1))
            if not (high and wide):
                continue
            part = slice(1, high + 1), slice(1, wide + 1)
            excess = np.float32((room[rows] / cells.capacities).mean(axis=0) @ [1, -1])
            score = self._filled[part] - _BALANCE * np.abs(cells.skew[part] - excess)
            while len(rows) and (best := int(score.argmax())) >= 0 and score.flat[best] > -np.inf:
                taken = self._take((best // wide + 1) * cells.width + best % wide + 1, len(rows))
                if len(taken) < len(rows):
                    score.flat[best] = -np.inf
                found.append((rows[: len(taken)], taken))
                rows = rows[len(taken) :]
        return _concatenated(found)


def _alike(row: np.ndarray, key: np.ndarray) -> list[np.ndarray]:
    """Returns the rows in groups of equal keys, ascending by key."""
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    return np.split(row[order], starts[1:]) if len(row) else []


def _concatenated(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    rows, taken = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(taken)
