"""The accelerators that can be planned for, and the topologies they come in."""

import dataclasses
import math
import os
import re
from typing import Any

from lm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU chip. A chip is one device, but for tpu7x, whose two halves are two.

    Attributes:
        hbm: bytes that a program may use on a device, as libtpu's compiler says when it runs out.
        peak_flops: of a device, in bfloat16, a second (Google's system architecture pages).
        clock: Hz, that turns estimated cycles into seconds. Of v4, v5e and v5p it follows from the peak: so many 128 x
            128 arrays, a multiply-add in each cell and cycle. Of the others it is unknown, and such that a product of
            4,096 x 4,096 matrices takes 97% of the peak by the compiler's cycles, as it does on a v5e.
        link: bytes a second that a device exchanges with its neighbours, all links and both directions together
            (the same pages' inter-chip bandwidth); network: those of a device over the data-centre network.
        devices: of a chip.
        options: what `get_topology_desc` takes besides the name.
    """

    hbm: float
    peak_flops: float
    link: float
    clock: float
    network: float = 6.25e9
    devices: int = 1
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


_GIB = 2**30

CHIPS = {
    "v4": Chip(30.75 * _GIB, 275e12, 300e9, clock=275e12 / (8 * 128**2 * 2), options={"chip_config_name": "megacore"}),
    "v5e": Chip(15.75 * _GIB, 197e12, 200e9, clock=197e12 / (4 * 128**2 * 2)),
    "v5p": Chip(95.73 * _GIB, 459e12, 600e9, clock=459e12 / (8 * 128**2 * 2)),
    "v6e": Chip(31.24 * _GIB, 918e12, 448e9, clock=1.95e9),
    "tpu7x": Chip(94.74 * _GIB, 2307e12 / 2, 600e9, clock=2.64e9, devices=2),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind of chip, written `v5e:4x4`, or `2*v5e:4x4` for two of them."""

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        times = f"{self.slices}*" if self.slices > 1 else ""
        return f"{times}{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * math.prod(self.shape)

    def devices(self) -> list[Any]:
        """Described devices: programs can be compiled for them, not run.

        Raises:
            InputError: libtpu is not installed, or knows no such topology.
        """
        # A described pod is no machine to look for, and another planning process no reason to stop.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # any: it only keeps libtpu from complaining
        from jax.experimental import topologies

        options = dict(self.chip.options)
        if self.slices > 1:
            options["num_slices"] = self.slices
        name = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
        except Exception as error:
            reason = str(error).splitlines()[0]
            if "libtpu" in reason.lower() and "open" in reason.lower():
                raise InputError("planning for TPUs needs their compiler; pip install -e .[plan].") from error
            raise InputError(
                f"--topology is {self.name!r}, which libtpu does not know ({reason[:160]}); accepted: sizes that are "
                "sold, such as v4:2x2x2, v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:8x8, tpu7x:2x2x2."
            ) from error
        return list(found.devices)


def parse(name: str) -> Topology:
    """Reads `v5e:16x16` or `2*v5e:16x16`.

    Raises:
        InputError: it is not of that form.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+){1,2})", name.strip())
    if not match or match[2] not in CHIPS or match[1] == "0":
        raise InputError(
            f"--topology has {name!r}; accepted: KIND:SHAPE with a kind among {', '.join(CHIPS)}, such as v5e:16x16, "
            "or several slices of it, such as 2*v5e:16x16."
        )
    return Topology(match[2], tuple(map(int, match[3].split("x"))), int(match[1] or 1))
