"""Packed rows hold every request once and whole, with its own positions, and have few shapes."""

import numpy as np
import pytest

from lm.inference.packed import Row, counts, pack, packed_length, pad, shapes

PAD = 9


def row(size: int, places: tuple[int, ...] = (0,)) -> Row:
    rng = np.random.default_rng(size)
    tokens, types = rng.integers(100, 200, size).astype(np.int32), rng.integers(0, 2, size).astype(np.int32)
    return Row(tokens, types, np.array(places, np.int32), False)


def packed(rows, *, budget=1024, tokens_a_place=8, multiple=1):
    return list(pack(rows, budget=budget, tokens_a_place=tokens_a_place, pad_id=PAD, multiple=multiple))


@pytest.mark.parametrize("multiple", [1, 4])
def test_every_request_is_in_one_place_with_its_own_positions(multiple):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 600, 80).tolist()
    rows = [row(size, tuple(rng.choice(size, min(size, 1 + size % 3), replace=False))) for size in sizes]
    seen = []
    for batch in packed(rows, multiple=multiple):
        assert len(batch.tokens_BL) % multiple == 0
        covered = np.zeros(batch.tokens_BL.shape, bool)
        for i, (b, asked) in batch.where:
            seen.append(i)
            places = batch.places_BP[b, asked]
            segment = batch.segments_BL[b, places[0]]
            (at,) = np.nonzero(batch.segments_BL[b] == segment)
            np.testing.assert_array_equal(at, np.arange(at[0], at[0] + sizes[i]))  # in one piece
            np.testing.assert_array_equal(batch.tokens_BL[b, at], rows[i].tokens)
            np.testing.assert_array_equal(batch.types_BL[b, at], rows[i].types)
            np.testing.assert_array_equal(batch.positions_BL[b, at], np.arange(sizes[i]))
            np.testing.assert_array_equal(places - at[0], rows[i].places)
            covered[b, at] = True
        np.testing.assert_array_equal(covered, batch.segments_BL > 0)
        assert (batch.tokens_BL[~covered] == PAD).all()
    assert sorted(seen) == list(range(len(rows)))


def test_the_place_of_a_text_is_numbered_as_its_segment():
    """Pooling relies on it: place p is that of segment p + 1."""
    for batch in packed([row(size) for size in np.random.default_rng(1).integers(3, 300, 60).tolist()]):
        for _, (b, asked) in batch.where:
            assert batch.segments_BL[b, batch.places_BP[b, asked.start]] == asked.start + 1


def test_shapes_are_few_and_rows_are_full():
    """Whatever the number of requests, up to their longest."""
    shapes, tokens, room = set(), 0, 0
    rng = np.random.default_rng(2)
    for count in (1, 2, 3, 7, 20, 75, 256):
        sizes = rng.integers(3, 257, count).tolist()
        batches = packed([row(size) for size in sizes])
        shapes |= {(batch.tokens_BL.shape, batch.places_BP.shape) for batch in batches}
        if count == 256:
            tokens, room = sum(sizes), sum(batch.tokens_BL.size for batch in batches)
    assert {shape for shape, _ in shapes} <= {(1, 64), (4, 64), (16, 64), (1, 256), (4, 256)}
    assert len(shapes) <= 5
    assert tokens > 0.9 * room


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("longest", [20, 100, 600])
def test_every_batch_has_one_of_the_shapes(fine, multiple, longest):
    """A server compiles them all before it is ready."""
    rng, computed, real = np.random.default_rng(3), 0, 0
    for budget in (64, 100, 300, 1024):
        known = shapes(longest, budget, multiple, fine)
        for count in (1, 2, 3, 7, 20, 75):
            sizes = rng.integers(1, longest + 1, count).tolist()
            for batch in pack(
                [row(size) for size in sizes], budget=budget, tokens_a_place=8, pad_id=PAD, multiple=multiple, fine=fine
            ):
                assert batch.tokens_BL.shape in known
                assert batch.places_BP.shape[1] == batch.tokens_BL.shape[1] // 8
                computed += batch.tokens_BL.size
            real += sum(sizes)
    if longest == 600:
        assert real > (0.75 if fine and multiple == 1 else 0.4) * computed


def test_few_requests_are_one_row_that_is_cut_to_them():
    def shape(*rows: Row, fine: bool = True) -> tuple[int, ...]:
        (batch,) = pack(rows, budget=1024, tokens_a_place=8, pad_id=PAD, fine=fine)
        return batch.tokens_BL.shape

    lone = {9: 16, 16: 16, 17: 32, 33: 48, 65: 96, 129: 160, 256: 256, 257: 320, 450: 512}
    assert {size: shape(row(size)) for size in lone} == {size: (1, length) for size, length in lone.items()}
    assert shape(row(9), fine=False) == (1, 64)
    assert shape(*[row(3)] * 4) == (1, 32)  # four places, and a row of 16 has two
    assert shape(*[row(40)] * 2) == (1, 96)
    assert shape(row(200), row(40), row(10)) == (1, 256)
    assert shape(row(100), row(90), row(80)) == (3, 128)
    assert shape(row(150), row(150)) == (2, 192)
    assert shape(*[row(40)] * 8) == (3, 128)
    assert shape(*[row(60)] * 8) == (8, 64)


def test_numbers_of_rows():
    assert counts(16, fine=True) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert counts(16, fine=False) == [1, 4, 16]
    assert counts(5, fine=False) == [1, 4, 5]
    assert counts(0, fine=True) == counts(1, fine=False) == [1]


def test_a_row_is_as_long_as_its_longest_request_needs():
    assert [packed_length(size) for size in (1, 64, 65, 256, 257, 1024, 1025)] == [64, 64, 256, 256, 512, 1024, 2048]
    assert [packed_length(size, fine=True) for size in (1, 65, 129, 193, 257)] == [64, 128, 192, 256, 512]


def test_a_request_with_more_places_than_a_row_has_gets_them():
    many = row(60, tuple(range(0, 60, 2)))
    (batch,) = packed([row(3), many, row(3)], tokens_a_place=16)
    found = {i: batch.places_BP[b, asked] for i, (b, asked) in batch.where}
    assert len(found[1]) == 30
    assert batch.places_BP.shape[1] == 32


def test_padded_rows_are_one_request_each_in_powers_of_two():
    rows = [row(5), row(17), row(9)]
    tokens_BL, segments_BL = pad(rows, 40, PAD)
    assert tokens_BL.shape == (4, 32)
    for b, each in enumerate(rows):
        np.testing.assert_array_equal(tokens_BL[b][segments_BL[b] == 1], each.tokens)
    assert not segments_BL[3].any()
    assert (tokens_BL[segments_BL == 0] == PAD).all()
    assert pad(rows, 24, PAD)[0].shape == (4, 24)
    assert pad([row(3)], 24, PAD, multiple=8)[0].shape == (8, 16)
