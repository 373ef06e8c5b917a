"""Fits examples into rows, from their lengths alone."""

import bisect
import collections

import numpy as np

_GRID = 128
_BALANCE = 8  # weight of the penalty for sides that are unequally full


def pack(
    sizes: np.ndarray, capacities: tuple[int, ...], max_per_row: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Fits examples of one or two sides into rows. Examples of equal size, and the rows, are in random order.

    Args:
        sizes: int [N, sides], each from 1 to the capacity of its side.
        capacities: tokens in a row of each side.
        max_per_row: the largest number of examples in a row.
        rng: decides the random order.

    Returns:
        order: int64 [N], the examples row by row.
        row_offsets: int64 [R+1]; row r holds `order[row_offsets[r]:row_offsets[r+1]]`.
    """
    if not len(sizes):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    if len(capacities) == 1:
        return _pack_one(sizes[:, 0], capacities[0], max_per_row, rng)
    return _pack_two(sizes, capacities, max_per_row, rng)


def _pack_one(
    lengths: np.ndarray, capacity: int, max_per_row: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Packs one side: best-fit decreasing on the histogram of lengths (Krell et al., 2021, arXiv:2107.02027).

    Rows that hold the same lengths are one group. So the work grows with the number of lengths and groups, not with the
    number of examples.
    """
    counts = np.bincount(lengths, minlength=capacity + 1)
    groups = _fill(counts.tolist(), capacity, max_per_row)
    # Examples sorted by length, in random order within a length: a group takes the next ones.
    shuffled = rng.permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    taken = np.cumsum(counts) - counts
    sizes = np.array([len(pattern) for pattern, _ in groups], np.int64)
    repeats = np.array([count for _, count in groups], np.int64)
    members = []
    for pattern, count in groups:
        columns = []
        for length in pattern:
            columns.append(by_length[taken[length] : taken[length] + count])
            taken[length] += count
        members.append(np.stack(columns, axis=1).ravel())
    row_sizes = np.repeat(sizes, repeats)
    return _shuffle_rows(np.concatenate(members), row_sizes, rng)


def _fill(counts: list[int], capacity: int, max_per_row: int) -> list[tuple[tuple[int, ...], int]]:
    """Returns (the lengths in a row, the number of such rows) for all rows.

    Args:
        counts: the number of examples of each length.
        capacity: tokens in a row.
        max_per_row: the largest number of examples in a row.
    """
    # Free tokens of a row -> the groups of such rows, each with the lengths in a row and the number of rows.
    open_groups: dict[int, list[tuple[tuple[int, ...], int]]] = collections.defaultdict(list)
    rooms: list[int] = []  # the keys with a group, ascending
    closed: list[tuple[tuple[int, ...], int]] = []

    def put(pattern: tuple[int, ...], count: int, room: int) -> None:
        if not room or len(pattern) == max_per_row:
            closed.append((pattern, count))
            return
        if not open_groups[room]:
            bisect.insort(rooms, room)
        open_groups[room].append((pattern, count))

    for length in range(capacity, 0, -1):
        left = counts[length]
        while left:
            at = bisect.bisect_left(rooms, length)
            if at == len(rooms):
                break
            room = rooms[at]
            pattern, count = open_groups[room].pop()
            if not open_groups[room]:
                rooms.pop(at)
            used = min(left, count)
            if count > used:
                put(pattern, count - used, room)
            put((*pattern, length), used, room - length)
            left -= used
        each = min(capacity // length, max_per_row)
        if left >= each:
            put((length,) * each, left // each, capacity - each * length)
        if left % each:
            put((length,) * (left % each), 1, capacity - left % each * length)
    return closed + [group for room in rooms for group in open_groups[room]]


def _pack_two(
    sizes: np.ndarray, capacities: tuple[int, ...], max_per_row: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Packs two sides: a row begins with the largest example that is left, then takes the best of the rest.

    The best example leaves both sides equally full; among several such it is the largest. Balance comes first, because
    the ratio of source and target differs between short and long examples: if early rows use up one kind, later rows
    cannot be filled. Sizes are rounded up to a grid of at most 128 x 128, and examples of one cell count as equal. So
    an example takes about 8 microseconds, whatever the number of examples.
    """
    limits = np.array(capacities)
    grid = np.minimum(limits, _GRID)
    cells = -(-sizes * grid // limits)  # rounded up: where the cell fits, the example fits
    width = int(grid[1]) + 1
    flat = cells[:, 0] * width + cells[:, 1]
    shuffled = rng.permutation(len(sizes))
    by_cell = shuffled[np.argsort(flat[shuffled], kind="stable")].tolist()
    counts = np.bincount(flat, minlength=(int(grid[0]) + 1) * width)
    ends, left = np.cumsum(counts).tolist(), counts.tolist()

    share = [np.arange(size + 1) / size for size in grid]
    filled = (share[0][:, None] + share[1][None, :]).astype(np.float32)
    skew = (share[0][:, None] - share[1][None, :]).astype(np.float32)
    closed = np.where(counts > 0, 0.0, -np.inf).astype(np.float32).reshape(filled.shape)
    largest = np.argsort(-np.maximum.outer(share[0], share[1]).ravel(), kind="stable")
    largest = iter(largest[counts[largest] > 0].tolist())
    lengths = sizes.tolist()
    members: list[int] = []
    row_sizes: list[int] = []

    def take(cell: int) -> tuple[int, int]:
        left[cell] -= 1
        if not left[cell]:
            closed.flat[cell] = -np.inf
        members.append(by_cell[ends[cell] - 1 - left[cell]])
        return lengths[members[-1]]

    cell = next(largest)
    while len(members) < len(lengths):
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
    return _shuffle_rows(np.array(members), np.array(row_sizes), rng)


def _shuffle_rows(
    members: np.ndarray, row_sizes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum(row_sizes) - row_sizes
    rows = rng.permutation(len(row_sizes))
    sizes = row_sizes[rows]
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    index = np.repeat(starts[rows] - offsets[:-1], sizes) + np.arange(len(members))
    return members[index], offsets
