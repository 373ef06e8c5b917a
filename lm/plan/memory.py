"""The memory of a device: bytes of arrays, bytes of programs, and the message when there is too little."""

import math
import re
from collections.abc import Sequence

import jax

# The TPU compiler's messages: when the program exceeds the memory, and when its temporaries alone do.
_ASKED = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_ASKED_FOR_TEMPORARIES = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)")
_GIB = {"K": 2.0**-20, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}


def bytes_per_device(tree: object) -> float:
    """Returns the bytes that a tree of abstract arrays with shardings takes on a device."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves))


def peak_bytes(program: jax.stages.Compiled) -> float:
    """Returns the bytes of a program, its arguments and its results. Those that share memory count once."""
    found = program.memory_analysis()
    assert found is not None
    arrays = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return float(arrays + found.temp_size_in_bytes)


def temporary_bytes(program: jax.stages.Compiled) -> int:
    """Returns the bytes of what a program allocates besides its arguments and results."""
    found = program.memory_analysis()
    assert found is not None
    return found.temp_size_in_bytes


def shortage(error: Exception, changes: Sequence[str]) -> str:
    """Returns a message: how many bytes a program is over, and what to change.

    Raises:
        Exception: `error` itself, unless it is about memory.
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
