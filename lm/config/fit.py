"""Whether a run fits a number of devices: the sizes of its mesh, and what each axis must divide.

It needs no device and no jax, so a launcher can refuse a run before it rents a machine.
"""

import dataclasses
import math
from collections.abc import Mapping

from lm.config.mesh import MeshConfig
from lm.config.run import Config
from lm.errors import InputError

_BATCH = ("data", "fsdp")


def mesh_sizes(config: MeshConfig, devices: int, slices: int = 1) -> dict[str, int]:
    """Returns the devices along each axis. An axis of size -1 takes all that the others leave.

    Args:
        config: sizes along each axis.
        devices: of all slices.
        slices: TPU slices, which `data` spans.

    Raises:
        InputError: the product of the sizes is not the number of devices, or the slices do not divide `data`.
    """
    sizes: dict[str, int] = dataclasses.asdict(config)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    derived = [name for name, size in sizes.items() if size == -1]
    if devices % fixed or (not derived and fixed != devices):
        divisors = [n for n in range(1, devices + 1) if devices % n == 0]
        rest = "those that are given must divide it" if derived else "or one may be -1"
        raise InputError(
            f"mesh is {sizes}, {fixed} devices of {devices}; the sizes must multiply to {devices}, {rest}. Accepted: "
            f"sizes among {', '.join(map(str, divisors))}."
        )
    for name in derived:
        sizes[name] = devices // fixed
    if sizes["data"] % slices:
        raise InputError(
            f"mesh.data is {sizes['data']}, which the {slices} slices of these devices do not divide; accepted: a "
            f"multiple such as {-(-sizes['data'] // slices) * slices} (with fewer along the other axes), or -1."
        )
    return sizes


def check_divisible(sizes: Mapping[str, int], config: Config) -> None:
    """Refuses a config with a dimension that the mesh does not divide.

    Args:
        sizes: axis -> devices along it.
        config: of the run.

    Raises:
        InputError: names the field, the mesh axes that do not divide it, and the nearest values that they divide.
    """
    rows = config.data.batch_size // config.train.accumulation
    needs = [
        ("data.batch_size / train.accumulation", rows, _BATCH),
        ("model.d_model", config.model.d_model, ("fsdp",)),
        ("model.embedding_width", config.model.embedding_width, ("fsdp",)),
        ("model.num_heads", config.model.num_heads, ("tensor",)),
        ("model.d_ff", config.model.d_ff, ("fsdp", "tensor")),
        ("model.vocab_size", config.model.vocab_size, ("tensor",)),
        ("data.seq_length", config.data.seq_length, ("context",)),
    ]
    if config.model.architecture == "encoder-decoder":
        needs.append(("data.target_length", config.data.target_length, ("context",)))
    for name, value, axes in needs:
        ways = math.prod(sizes[axis] for axis in axes)
        if value % ways:
            raise InputError(
                f"{name} is {value}, which mesh {' x '.join(axes)} = {ways} does not divide; "
                f"nearest: {nearest(value, ways)}."
            )


def nearest(value: int, step: int) -> str:
    """Returns the multiples of `step` next to a value, as text for a message."""
    below = value // step * step
    return f"{below} or {below + step}" if below else str(step)
