"""Names of topologies, and the devices they stand for."""

import pytest

from lm.errors import InputError
from lm.plan import chips


@pytest.mark.parametrize(
    ("name", "count"), [("v5e:4x4", 16), ("v5p:2x2x4", 16), ("tpu7x:2x2x1", 4), ("2*v5e:2x2", 8), ("v4:2x2x1", 4)]
)
def test_a_name_says_how_many_chips(name: str, count: int):
    topology = chips.parse(name)
    assert topology.name == name
    assert topology.chips == count
    assert len(topology.devices()) == count * topology.chip.devices


def test_slices_are_told_apart():
    assert {device.slice_index for device in chips.parse("2*v5e:2x2").devices()} == {0, 1}


@pytest.mark.parametrize("name", ["v5e", "v5e:16", "v9:2x2", "0*v5e:2x2", "h100:8x8", ""])
def test_other_names_are_refused(name: str):
    with pytest.raises(InputError, match="accepted: KIND:SHAPE with a kind among v4, v5e, v5p, v6e, tpu7x"):
        chips.parse(name)


def test_sizes_that_are_not_made_are_refused():
    with pytest.raises(InputError, match=r"'v5e:3x5', which libtpu does not know .* accepted: sizes that are sold"):
        chips.parse("v5e:3x5").devices()
