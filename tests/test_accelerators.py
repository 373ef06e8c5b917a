"""The table of accelerators, and the names of TPU slices that the planner and the launchers share."""

import os
from pathlib import Path

import pytest

from lm.accelerators import GPUS, TPUS, Topology, peak_flops, skip_absent_tpus
from lm.errors import InputError


@pytest.mark.parametrize(
    ("name", "chips"), [("v5e:4x4", 16), ("v5p:2x2x4", 16), ("tpu7x:2x2x1", 4), ("2*v5e:2x2", 8), ("v4:2x2x1", 4)]
)
def test_a_name_says_how_many_chips(name: str, chips: int):
    topology = Topology.parse(name)
    assert topology.name == name
    assert topology.chips == chips


@pytest.mark.parametrize(
    ("text", "name"),
    [(" v5e:4x4 ", "v5e:4x4"), ("1*v5e:4x4", "v5e:4x4"), ("v5e:4x4x1", "v5e:4x4"), ("v4:2x2", "v4:2x2x1")],
)
def test_a_slice_has_one_name(text: str, name: str):
    assert Topology.parse(text) == Topology.parse(name)
    assert Topology.parse(text).name == name


@pytest.mark.parametrize(
    "text", ["", "v5e", "v5e:16", "v5e:4x4x4", "v5e:4x4x1x1", "v9:2x2", "h100:8x8", "0*v5e:2x2", "v5e:0x4", "*v5e:2x2"]
)
def test_other_texts_are_refused(text: str):
    with pytest.raises(InputError, match="accepted: KIND:SHAPE with a kind among v4, v5e, v5p, v6e, tpu7x"):
        Topology.parse(text)


@pytest.mark.parametrize(
    ("text", "accelerator", "hosts"),
    [
        ("v4:2x2x4", "v4-32", 4),
        ("v5e:16x16", "v5litepod-256", 64),
        ("v5e:2x4", "v5litepod-8", 1),
        ("v5e:1x1", "v5litepod-1", 1),
        ("v5p:4x4x4", "v5p-128", 16),
        ("v6e:8x8", "v6e-64", 16),
        ("2*v6e:8x8", "v6e-64", 16),
    ],
)
def test_a_slice_is_named_as_tpu_vms_are(text: str, accelerator: str, hosts: int):
    topology = Topology.parse(text)
    assert (topology.accelerator_type, topology.hosts_per_slice) == (accelerator, hosts)


def test_what_cannot_be_rented_is_refused():
    with pytest.raises(InputError, match=r"TPU VMs are v4, v5e, v5p, v6e\. Rent tpu7x with launch/cluster/gke\.py"):
        Topology.parse("tpu7x:4x4x4").accelerator_type  # noqa: B018


def test_the_peak_is_that_of_a_device():
    assert peak_flops("TPU v5 lite") == TPUS["v5e"].peak_flops
    assert peak_flops("TPU7x") == 2307e12 / 2  # a chip is two devices
    assert peak_flops("NVIDIA H100 80GB HBM3") == GPUS["h100"].peak_flops
    assert peak_flops("cpu") is None


def test_no_two_chips_share_a_device_kind():
    kinds = [kind for chip in [*TPUS.values(), *GPUS.values()] for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize(("device", "platforms"), [("null", "cpu"), ("accel0", None), ("nvidia0", None)])
def test_a_tpu_that_is_not_here_is_not_looked_for(
    device: str, platforms: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """libtpu is installed here, for the tests of plans."""
    monkeypatch.delenv("JAX_PLATFORMS")
    (tmp_path / device).touch()
    skip_absent_tpus(tmp_path)
    assert os.environ.get("JAX_PLATFORMS") == platforms
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    skip_absent_tpus(tmp_path)
    assert os.environ["JAX_PLATFORMS"] == "tpu"
