"""Fits examples into rows, from their lengths alone."""

import bisect
import collections

import numpy as np

from lm.data import two_sided


def pack(
    sizes: np.ndarray,
    capacities: tuple[int, ...],
    max_per_row: int,
    rng: np.random.Generator,
    *,
    together: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Fits examples of one or two sides into rows. Examples of equal size, and the rows, are in random order.

    Args:
        sizes: int [N, sides], each from 1 to the capacity of its side.
        capacities: tokens in a row of each side.
        max_per_row: the largest number of examples in a row.
        rng: decides the random order.
        together: fill many rows at a time, which packs two sides tighter. The default keeps the rows that corpora of
            one window have always had. More than half a million examples are always packed so.

    Returns:
        order: int64 [N], the examples row by row.
        row_offsets: int64 [R+1]; row r holds `order[row_offsets[r]:row_offsets[r+1]]`.
    """
    if not len(sizes):
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    if len(capacities) == 1:
        return _pack_one(sizes[:, 0], capacities[0], max_per_row, rng)
    members, row_sizes = two_sided.pack(sizes, capacities, max_per_row, rng, together)
    return _shuffle_rows(members, row_sizes, rng)


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
