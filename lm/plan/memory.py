"""Memory of a device: what arrays and programs take, and what is said where there is not enough."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax

# What the TPU compiler says, of everything, and of temporaries where they alone are too much.
_ASKED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_ASKED_FOR_TEMPORARIES = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")
_GIB = {"K": 2.0**-20, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}


def bytes_per_device(tree: Any) -> float:
    """Of abstract arrays with shardings."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves))


def peak_bytes(program: Any) -> float:
    """Of a compiled program with its arguments and results; what it writes over its arguments counts once."""
    memory = program.memory_analysis()
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return float(arrays + memory.temp_size_in_bytes)


def shortage(error: Exception, changes: Sequence[str]) -> str:
    """One line: by how much a program does not fit, and what to change.

    Raises:
        Exception: `error` itself, where it says something else.
    """
    said = str(error)
    if "RESOURCE_EXHAUSTED" not in said:
        raise error
    found = _ASKED.search(said) or _ASKED_FOR_TEMPORARIES.search(said)
    what = said.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    if found:
        asked, unit, available, its_unit = found.groups()
        gib, room = float(asked) * _GIB[unit], float(available) * _GIB[its_unit]
        what = f"it takes {gib:.2f} GiB of the {room:.2f} GiB of a device, {gib - room:.2f} GiB too much"
    return f"{what}; try {', '.join(changes)}."
