"""Slices of Cloud TPU: how a topology is written, and what Google's interfaces call it.

Names and sizes: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and, for Kubernetes,
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
"""

import dataclasses
import math
import re

from lm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a generation of TPU is called.

    Attributes:
        dimensions: of a topology.
        gke: the value of the node label `cloud.google.com/gke-tpu-accelerator`.
        accelerator: prefix of the accelerator type of a TPU VM; empty where there is none.
        units: what the number of an accelerator type counts, for each chip: cores up to v5p, then chips.
        runtime: the software of a TPU VM.
    """

    dimensions: int
    gke: str
    accelerator: str
    units: int
    runtime: str


GENERATIONS = {
    "v4": Generation(3, "tpu-v4-podslice", "v4", 2, "tpu-ubuntu2204-base"),
    "v5e": Generation(2, "tpu-v5-lite-podslice", "v5litepod", 1, "v2-alpha-tpuv5-lite"),
    "v5p": Generation(3, "tpu-v5p-slice", "v5p", 2, "v2-alpha-tpuv5"),
    "v6e": Generation(2, "tpu-v6e-slice", "v6e", 1, "v2-alpha-tpuv6e"),
    "tpu7x": Generation(3, "tpu7x", "", 0, ""),
}
CHIPS_PER_HOST = 4
ONE_HOST = {"1x1": 1, "2x4": 8}  # v5e and v6e: the slices whose only host has another number of chips


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: `v5e:16x16` is 256 chips of v5e."""

    generation: str
    shape: str

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Reads `GENERATION:AxB` or `GENERATION:AxBxC`.

        Raises:
            InputError: when it is neither.
        """
        generation, _, shape = text.partition(":")
        known = GENERATIONS.get(generation)
        if known is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{known.dimensions - 1}}}", shape):
            raise InputError(
                f"--topology is {text!r}; accepted: {', '.join(GENERATIONS)}, a colon, and chips along each dimension: "
                "v5e:16x16, v6e:8x8, v5p:4x4x4."
            )
        return cls(generation, shape)

    @property
    def known(self) -> Generation:
        return GENERATIONS[self.generation]

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.shape.split("x")))

    @property
    def chips_per_host(self) -> int:
        return ONE_HOST.get(self.shape, CHIPS_PER_HOST)

    @property
    def hosts(self) -> int:
        """Raises InputError when the chips do not fill whole hosts."""
        if self.chips % self.chips_per_host:
            raise InputError(
                f"--topology is {self.generation}:{self.shape}, {self.chips} chips; a host has {self.chips_per_host}: "
                "choose a shape that fills whole hosts."
            )
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """What the TPU VM interface calls it; raises InputError for a generation that it does not serve."""
        if not self.known.accelerator:
            served = [name for name, generation in GENERATIONS.items() if generation.accelerator]
            raise InputError(f"--topology is {self.generation}, for which there is GKE; here: {', '.join(served)}.")
        return f"{self.known.accelerator}-{self.chips * self.known.units}"
