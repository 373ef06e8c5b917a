"""Devices are arranged in the right mesh, and each process holds the right rows of a batch."""

import dataclasses
import types
from typing import ClassVar

import numpy as np
import pytest

from lm import sharding
from lm.config import MeshConfig
from lm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh asks of a device; this process is number 1."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    client: ClassVar = types.SimpleNamespace(process_index=lambda: 1)


def two_slices(count=8):
    """Devices of two slices, two to a process, which a cluster lists in turns."""
    return [Device(index, index % 2, index // 2) for index in range(count)]


def test_slices_split_the_data_axis_and_no_other():
    mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=2, tensor=2), two_slices(16))
    assert mesh.shape == {"data": 4, "fsdp": 2, "context": 1, "tensor": 2}
    for number, replica in enumerate(mesh.devices):
        assert {device.slice_index for device in replica.flat} == {number // 2}


def test_a_model_that_would_span_slices_is_refused():
    with pytest.raises(
        InputError, match=r"mesh.data is 1, which the 2 slices .* do not divide; accepted: a multiple such as 2"
    ):
        sharding.make_mesh(MeshConfig(data=1, fsdp=8), two_slices())


def test_a_process_holds_the_rows_of_its_devices_wherever_they_lie():
    mesh = sharding.make_mesh(MeshConfig(data=8), two_slices())
    places = [place for place, device in enumerate(mesh.devices.flat) if device.process_index == 1]
    assert places == [1, 5]
    np.testing.assert_array_equal(sharding.process_rows(mesh, 16), [2, 3, 10, 11])


def test_all_processes_along_a_row_hold_it():
    mesh = sharding.make_mesh(MeshConfig(data=2, context=4), two_slices())
    np.testing.assert_array_equal(sharding.process_rows(mesh, 16), np.arange(16))
