"""The accelerators that the project knows, and the slices in which TPUs are rented.

Training reads the peak of a chip for its MFU. The planner reads memory and links. The launchers read the names that
Google's interfaces use. Sources: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and, for Kubernetes,
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus; for GPUs, NVIDIA's data sheets.
"""

import dataclasses
import importlib.util
import math
import os
import re
from pathlib import Path

from lm.errors import InputError

_GIB = 2**30
_CHIPS_PER_HOST = 4
# The shapes of slices that are sold: all of two dimensions, and the small ones of three. In larger ones of three
# dimensions each size is a multiple of 4, and sizes ascend.
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_LARGEST = 9216  # chips
_SOLID = "2x2x1, 2x2x2, 2x2x4, 2x4x4, or multiples of 4 in ascending order such as 4x4x4 and 8x8x12"
_ONE_HOST: dict[tuple[int, ...], int] = {(1, 1): 1, (2, 4): 8}  # v5e and v6e: hosts of other sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator. JAX shows a chip as one device; a tpu7x as two.

    Attributes:
        device_kinds: the names that JAX gives its devices (`jax.Device.device_kind`).
        peak_flops: dense bfloat16 FLOP/s of a device.
    """

    device_kinds: tuple[str, ...]
    peak_flops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Chip):
    """One kind of TPU chip.

    Attributes:
        hbm: bytes of a device that a program may use. libtpu's compiler states the number when a program needs more.
        clock: Hz; converts the compiler's estimated cycles to seconds. For v4, v5e and v5p it follows from the peak
            and the number of 128 x 128 systolic arrays, each cell of which does one multiply-add a cycle. For v6e and
            tpu7x it is not published; we choose the clock at which a product of 4,096 x 4,096 matrices reaches 97% of
            the peak by the compiler's cycles, as it does on a v5e.
        link: bytes/s between a device and its neighbours, all links and both directions together.
        network: bytes/s of a device over the data-centre network.
        devices: JAX devices of a chip.
        megacore: whether the compiler joins a chip's two cores into one device.
        dimensions: dimensions of a slice's shape.
        gke: the value of the node label `cloud.google.com/gke-tpu-accelerator`.
        vm: the prefix of the accelerator type of TPU VMs (`v5litepod` in `v5litepod-256`); empty where none are rented.
        vm_units: how much each chip adds to the number in an accelerator type: 2 where it counts cores, 1 where chips.
        vm_runtime: the default software version of TPU VMs.
    """

    hbm: float
    clock: float
    link: float
    network: float = 6.25e9
    devices: int = 1
    megacore: bool = False
    dimensions: int
    gke: str
    vm: str = ""
    vm_units: int = 1
    vm_runtime: str = ""


TPUS = {
    "v4": Tpu(
        device_kinds=("TPU v4",),
        peak_flops=275e12,
        hbm=30.75 * _GIB,
        clock=275e12 / (8 * 128**2 * 2),
        link=300e9,
        megacore=True,
        dimensions=3,
        gke="tpu-v4-podslice",
        vm="v4",
        vm_units=2,
        vm_runtime="tpu-ubuntu2204-base",
    ),
    "v5e": Tpu(
        device_kinds=("TPU v5 lite",),
        peak_flops=197e12,
        hbm=15.75 * _GIB,
        clock=197e12 / (4 * 128**2 * 2),
        link=200e9,
        dimensions=2,
        gke="tpu-v5-lite-podslice",
        vm="v5litepod",
        vm_runtime="v2-alpha-tpuv5-lite",
    ),
    "v5p": Tpu(
        device_kinds=("TPU v5",),
        peak_flops=459e12,
        hbm=95.73 * _GIB,
        clock=459e12 / (8 * 128**2 * 2),
        link=600e9,
        dimensions=3,
        gke="tpu-v5p-slice",
        vm="v5p",
        vm_units=2,
        vm_runtime="v2-alpha-tpuv5",
    ),
    "v6e": Tpu(
        device_kinds=("TPU v6 lite",),
        peak_flops=918e12,
        hbm=31.24 * _GIB,
        clock=1.95e9,
        link=448e9,
        dimensions=2,
        gke="tpu-v6e-slice",
        vm="v6e",
        vm_runtime="v2-alpha-tpuv6e",
    ),
    "tpu7x": Tpu(
        device_kinds=("TPU7x",),
        peak_flops=2307e12 / 2,
        hbm=94.74 * _GIB,
        clock=2.64e9,
        link=600e9,
        devices=2,
        dimensions=3,
        gke="tpu7x",
    ),
}
GPUS = {
    "a100": Chip(device_kinds=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), peak_flops=312e12),
    "h100": Chip(device_kinds=("NVIDIA H100 80GB HBM3",), peak_flops=989e12),
    "h200": Chip(device_kinds=("NVIDIA H200",), peak_flops=989e12),
}


def _is_sold(shape: tuple[int, ...]) -> bool:
    """Returns whether Google sells slices of this shape."""
    if len(shape) == 2 or shape in _SMALL:
        return shape in _FLAT or shape in _SMALL
    return not any(size % 4 for size in shape) and shape == tuple(sorted(shape)) and math.prod(shape) <= _LARGEST


def peak_flops(device_kind: str) -> float | None:
    """Returns the bfloat16 peak (FLOP/s) of a device by the name that JAX gives it; None for an unknown device."""
    chips = [*TPUS.values(), *GPUS.values()]
    return next((chip.peak_flops for chip in chips if device_kind in chip.device_kinds), None)


def skip_absent_tpus(devices: Path = Path("/dev")) -> None:
    """Tells JAX to use the CPU where libtpu is installed, say for planning, but there is no accelerator.

    JAX would load libtpu, which prints errors about the TPU that it does not find. Call it before jax is imported.

    Args:
        devices: the folder of this machine's devices.
    """
    if "JAX_PLATFORMS" in os.environ or importlib.util.find_spec("libtpu") is None:
        return
    if not any(any(devices.glob(pattern)) for pattern in ("accel*", "vfio/[0-9]*", "nvidia[0-9]*", "kfd")):
        os.environ["JAX_PLATFORMS"] = "cpu"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind of TPU: `v5e:16x16` is 256 chips, `2*v5e:16x16` two such slices.

    Attributes:
        kind: a key of `TPUS`.
        shape: chips along each dimension of a slice.
        slices: the number of slices, joined over the data-centre network.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, text: str, flag: str = "--topology") -> "Topology":
        """Reads `KIND:SHAPE` or `SLICES*KIND:SHAPE`. A third dimension of 1 may be written or left out.

        Args:
            text: to read.
            flag: that gave it, for the message.

        Raises:
            InputError: the text has another form, or no chip has that shape.
        """
        match = re.fullmatch(r"(?:([1-9]\d*)\*)?(\w+):([1-9]\d*(?:x[1-9]\d*){1,2})", text.strip())
        chip = TPUS.get(match[2]) if match else None
        if match and chip:
            shape = tuple(map(int, match[3].split("x")))
            if shape[2:] in ((), (1,)):
                shape = (*shape[:2], 1)[: chip.dimensions]
            if len(shape) == chip.dimensions:
                if not _is_sold(shape):
                    flat = ", ".join("x".join(map(str, each)) for each in _FLAT)
                    raise InputError(
                        f"{flag} is {text!r}, but no {match[2]} slice has the shape {match[3]}; accepted: "
                        f"{flat if chip.dimensions == 2 else _SOLID}."
                    )
                return cls(match[2], shape, int(match[1] or 1))
        raise InputError(
            f"{flag} is {repr(text) if text else 'missing'}; accepted: KIND:SHAPE with a kind among "
            f"{', '.join(TPUS)} and the chips along each dimension, such as v5e:16x16, v6e:8x8 or v5p:4x4x4; "
            "several slices are written 2*v5e:16x16."
        )

    @property
    def name(self) -> str:
        """The text that `parse` reads."""
        return f"{self.slices}*{self.slice_name}" if self.slices > 1 else self.slice_name

    @property
    def slice_name(self) -> str:
        """The name of one slice, such as `v5e:16x16`."""
        return f"{self.kind}:{self.shape_name}"

    @property
    def shape_name(self) -> str:
        """The shape of one slice, such as `16x16`."""
        return "x".join(map(str, self.shape))

    @property
    def chip(self) -> Tpu:
        return TPUS[self.kind]

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def devices(self) -> int:
        """JAX devices of all slices."""
        return self.chips * self.chip.devices

    @property
    def chips_per_host(self) -> int:
        return _ONE_HOST.get(self.shape, _CHIPS_PER_HOST)

    @property
    def hosts_per_slice(self) -> int:
        """Hosts of one slice."""
        return math.prod(self.shape) // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """The accelerator type of one slice for TPU VMs, such as `v5litepod-256`.

        Raises:
            InputError: this kind of TPU is not rented as TPU VMs.
        """
        if not self.chip.vm:
            rented = [kind for kind, chip in TPUS.items() if chip.vm]
            raise InputError(
                f"--topology is {self.slice_name}; TPU VMs are {', '.join(rented)}. Rent {self.kind} with "
                "launch/cluster/gke.py."
            )
        return f"{self.chip.vm}-{math.prod(self.shape) * self.chip.vm_units}"
