"""The meshes of topologies that are not here."""

import pytest

from lm.accelerators import Topology
from lm.config import MeshConfig
from lm.errors import InputError
from lm.plan.mesh import described_mesh


@pytest.mark.parametrize("name", ["v5e:4x4", "v5p:2x2x4", "tpu7x:2x2x1", "2*v5e:2x2", "v4:2x2x1"])
def test_a_topology_has_the_devices_of_its_chips(name: str):
    topology = Topology.parse(name)
    devices = described_mesh(MeshConfig(), topology).devices
    assert devices.size == topology.chips * topology.chip.devices
    assert {device.device_kind for device in devices.flat} <= set(topology.chip.device_kinds)


def test_slices_are_told_apart():
    devices = described_mesh(MeshConfig(), Topology.parse("2*v5e:2x2")).devices
    assert {device.slice_index for device in devices.flat} == {0, 1}


def test_sizes_that_are_not_made_are_refused():
    with pytest.raises(InputError, match=r"'v5e:3x5', which libtpu does not know .* accepted: sizes that are sold"):
        described_mesh(MeshConfig(), Topology("v5e", (3, 5)))
