"""Packs requests into arrays of a few fixed shapes. Nothing here needs jax.

A place is a position of a row whose output is wanted, such as a [MASK]. Array names carry their shape: B rows of a
batch, L length, P places of a row.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

_LENGTHS, _FINE_LENGTHS = (64, 256), (64, 128, 192, 256)  # of packed rows; longer ones are doubles of the last
# What a batch costs on CPUs, measured with MiniLM: reading the weights takes the time of so many tokens, and in rows of
# so many tokens attention takes as long as everything else.
_WEIGHTS, _EVEN = 40, 768
_SHORTEST = 16  # the shortest length of padded rows, whose lengths are powers of two


@dataclasses.dataclass(frozen=True)
class Row:
    """The model's input for one request.

    Attributes:
        tokens: int32 [n].
        types: int32 [n], token types.
        places: int32 [p], the positions whose outputs are wanted; empty where the model writes.
        truncated: whether text was cut off.
        prompt: int32, the first tokens of an encoder-decoder's decoder, after the start token.
        adapter: which of the model's adapters computes it, from 1 on; 0 is the base.
    """

    tokens: np.ndarray
    types: np.ndarray
    places: np.ndarray
    truncated: bool
    prompt: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    adapter: int = 0


@dataclasses.dataclass(frozen=True)
class Packed:
    """A batch of rows that each hold several requests, packed as in training.

    Attributes:
        tokens_BL, types_BL: int32.
        segments_BL: int32, 1 for the first request of a row, 2 for the second, ...; 0 is padding.
        positions_BL: int32; they restart with every request.
        places_BP: int32, columns of a row whose outputs are wanted, in the order of the requests. The rest is 0.
        where: for every request its number and the index of its outputs: a row, and a slice of P.
        adapters_BL: int32, the adapter of each token's request.
    """

    tokens_BL: np.ndarray
    types_BL: np.ndarray
    segments_BL: np.ndarray
    positions_BL: np.ndarray
    places_BP: np.ndarray
    where: Sequence[tuple[int, tuple[int, slice]]]
    adapters_BL: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that every model reads, in the order of the attributes."""
        return self.tokens_BL, self.types_BL, self.segments_BL, self.positions_BL, self.places_BP


def pack(
    rows: Sequence[Row], *, budget: int, tokens_a_place: int, pad_id: int, multiple: int = 1, fine: bool = False
) -> Iterator[Packed]:
    """Packs requests into batches of few shapes, so that few programs are compiled.

    A row is 64, 256, 512, 1024, ... tokens long. Requests are placed from the longest to the shortest. Each goes into a
    row with room, or else opens the shortest row that holds it. The shortest, because attention costs each token the
    length of its row. For the numbers of rows see `counts`. With `fine`, rows may also have 128 and 192 tokens, a lone
    row is cut to one of its `lone_lengths`, and the shortest rows are as long as makes the batches cheapest.

    Args:
        rows: the requests, of at least one token each. Request i is `rows[i]`.
        budget: tokens of a full batch on each of `multiple` devices.
        tokens_a_place: a row of L tokens holds L / tokens_a_place places, or one request with more places.
        pad_id: the id of padding.
        multiple: the number of rows is a multiple of this.
        fine: whether there are more shapes, for less padding.
    """
    longest = max((len(row.tokens) for row in rows), default=1)
    lengths = _row_lengths(longest, budget, fine)
    ways = [lengths[first:] for first in range(len(lengths))] if fine else [lengths]
    arranged = [_arranged(rows, way, (budget, tokens_a_place, multiple, fine)) for way in ways]
    for shape_BL, part in min(arranged, key=_cost):
        yield _batch([[(i, rows[i]) for i in each] for each in part], shape_BL, tokens_a_place, pad_id)


_Arranged = list[tuple[tuple[int, int], list[list[int]]]]  # the shape of every batch, and the requests of its rows


def _arranged(rows: Sequence[Row], lengths: Sequence[int], how: tuple[int, int, int, bool]) -> _Arranged:
    """Returns batches whose rows have some lengths; for `how` see the arguments of `pack`."""
    budget, tokens_a_place, multiple, fine = how
    members: dict[int, list[list[int]]] = {}
    for length, requests in _fit(rows, lengths, tokens_a_place):
        members.setdefault(length, []).append(requests)
    found: _Arranged = []
    for length, together in members.items():
        full = max(1, budget // length) * multiple
        for start in range(0, len(together), full):
            part = together[start : start + full]
            size = next(count * multiple for count in counts(budget // length, fine) if count * multiple >= len(part))
            cut = length
            if fine and len(part) == 1:
                requests = [rows[i] for i in part[0]]
                cut = next((each for each in lone_lengths(length) if _fits(requests, each, tokens_a_place)), length)
            found.append(((size, cut), part))
    return found


def _cost(arranged: _Arranged) -> float:
    """Returns what batches cost on CPUs, in tokens without attention."""
    return sum(_WEIGHTS + count * length * (1 + length / _EVEN) for (count, length), _ in arranged)


def _fits(requests: Sequence[Row], length: int, tokens_a_place: int) -> bool:
    """Returns whether a row of some length holds the requests."""
    tokens, places = sum(len(row.tokens) for row in requests), sum(len(row.places) for row in requests)
    return tokens <= length and places <= length // tokens_a_place


def _fit(rows: Sequence[Row], lengths: Sequence[int], tokens_a_place: int) -> list[tuple[int, list[int]]]:
    """Returns the length of every packed row and the requests in it, by best-fit decreasing."""
    found: list[tuple[int, list[int]]] = []
    room: list[int] = []  # free tokens of each row of `found`
    places: list[int] = []  # free places of each row
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens)):
        size, asked = len(rows[i].tokens), len(rows[i].places)
        fitting = [k for k in range(len(found)) if room[k] >= size and places[k] >= asked]
        if fitting:
            best = min(fitting, key=room.__getitem__)
        else:
            best, length = len(found), next(length for length in lengths if length >= size)
            found.append((length, []))
            room.append(length)
            places.append(length // tokens_a_place)
        found[best][1].append(i)
        room[best] -= size
        places[best] -= asked
    return found


def packed_length(size: int, fine: bool = False) -> int:
    """Returns the length of the shortest packed row that holds a request of `size` tokens."""
    return _row_lengths(size, 0, fine)[-1]


def _row_lengths(longest: int, budget: int, fine: bool) -> list[int]:
    """Returns the lengths of packed rows for requests of up to `longest` tokens.

    With `fine`, requests may share a row that is longer than each of them needs, if a batch has so many tokens.
    """
    found = list(_FINE_LENGTHS if fine else _LENGTHS)
    while found[-1] < longest:
        found.append(2 * found[-1])
    needed = next(length for length in found if length >= longest)
    return [length for length in found if length <= (max(needed, budget) if fine else needed)]


def lone_lengths(length: int) -> list[int]:
    """Returns the lengths that a lone row may be cut to: 16, 32, 48, 64, then 96, 128, ..., 256, then 320, ..."""
    found = list(range(_SHORTEST, _LENGTHS[0] + 1, _SHORTEST))
    whole = _LENGTHS[1]
    while found[-1] < length:
        found += range(found[-1] + whole // 8, whole + 1, whole // 8)
        whole *= 2
    return [each for each in found if each <= length]


def counts(full: int, fine: bool) -> list[int]:
    """Returns the numbers of rows that a batch of at most `full` rows may have, ascending.

    Args:
        full: 0 is taken as 1.
        fine: 1, 2, 3, 4, 6, 8, 12, ... instead of 1, 4, 16, ...: more programs, less padding.
    """
    powers = [2**k for k in range(full.bit_length())]
    candidates = [*powers, *(3 * power for power in powers)] if fine else powers[::2]
    return [*sorted(count for count in candidates if count < full), max(1, full)]


def shapes(longest: int, budget: int, multiple: int = 1, fine: bool = False) -> list[tuple[int, int]]:
    """Returns the shapes [B, L] of all batches that `pack` makes of requests of up to `longest` tokens."""
    lengths = _row_lengths(longest, budget, fine)
    found = [(count * multiple, length) for length in lengths for count in counts(budget // length, fine)]
    if fine:
        found += [(multiple, cut) for cut in lone_lengths(lengths[-1])]
    return list(dict.fromkeys(found))


def blank(shape_BL: tuple[int, int], tokens_a_place: int, pad_id: int) -> Packed:
    """Returns a batch of padding alone."""
    return _batch([], shape_BL, tokens_a_place, pad_id)


def _batch(
    packed: Sequence[Sequence[tuple[int, Row]]], shape_BL: tuple[int, int], tokens_a_place: int, pad_id: int
) -> Packed:
    tokens_BL = np.full(shape_BL, pad_id, np.int32)
    types_BL, segments_BL, positions_BL, adapters_BL = (np.zeros(shape_BL, np.int32) for _ in range(4))
    most = max((sum(len(row.places) for _, row in requests) for requests in packed), default=1)
    width = shape_BL[1] // tokens_a_place
    places_BP = np.zeros((shape_BL[0], width if most <= width else power(most, 2)), np.int32)
    where = []
    for b, requests in enumerate(packed):
        begin = place = 0
        for segment, (i, row) in enumerate(requests, 1):
            part = slice(begin, begin + len(row.tokens))
            tokens_BL[b, part], types_BL[b, part], segments_BL[b, part] = row.tokens, row.types, segment
            positions_BL[b, part] = np.arange(len(row.tokens))
            adapters_BL[b, part] = row.adapter
            asked = slice(place, place + len(row.places))
            places_BP[b, asked] = begin + row.places
            where.append((i, (b, asked)))
            begin, place = part.stop, asked.stop
    return Packed(tokens_BL, types_BL, segments_BL, positions_BL, places_BP, where, adapters_BL)


def pad(rows: Sequence[Row], longest: int, pad_id: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and segments, int32 [B, L], with one request in a row: segment 1 is text, 0 is padding.

    L and B / `multiple` are rounded up to powers of two, so that few programs are compiled. The added rows are padding.
    """
    length = min(power(max(len(row.tokens) for row in rows), 2, least=_SHORTEST), longest)
    shape_BL = (power(-(-len(rows) // multiple), 2) * multiple, length)
    tokens_BL, segments_BL = np.full(shape_BL, pad_id, np.int32), np.zeros(shape_BL, np.int32)
    for b, row in enumerate(rows):
        tokens_BL[b, : len(row.tokens)] = row.tokens
        segments_BL[b, : len(row.tokens)] = 1
    return tokens_BL, segments_BL


def power(value: int, base: int, *, least: int = 1) -> int:
    """Returns the smallest `least` x `base`^k that is at least `value`."""
    found = least
    while found < value:
        found *= base
    return found
