"""Checksums of arrays, computed on the devices that hold them.

Storage formats guard their own indices but not the arrays: a flipped bit in an array raises no error.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

Sums = dict[str, int]  # name of an array -> its checksum


def compute(tree: object) -> Sums:
    """Returns the checksum of every array. It depends on the content alone, not on the sharding.

    All processes that hold shards of the arrays must call this together.
    """
    sums = np.asarray(_sums(jax.tree.leaves(tree)))
    return {name: int(value) for name, value in zip(names(tree), sums, strict=True)}


def names(tree: object) -> list[str]:
    """Returns the names of the arrays of a tree in `Sums`."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


@jax.jit
def _sums(arrays: list[jax.Array]) -> jax.Array:
    """Returns for each array the sum of word * (2 * index + 1) modulo 2^32.

    The factors are odd, so a change of any one word changes the sum.
    """

    def sum_of(array: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
        index = jnp.zeros(array.shape, jnp.uint32)
        for axis in range(array.ndim):
            stride = math.prod(array.shape[axis + 1 :]) % (1 << 32)
            index += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride)
        return jnp.sum(words * (2 * index + 1), dtype=jnp.uint32)

    return jnp.stack([sum_of(jnp.asarray(array)) for array in arrays])


def difference(saved: Sums | None, tree: object) -> str:
    """Returns a text that names an array whose checksum differs from the saved one; empty if none does.

    It is empty, too, if no checksums were saved.
    """
    wrong = [] if saved is None else [name for name, value in compute(tree).items() if saved.get(name) != value]
    return f"{len(wrong)} arrays are not what was saved, such as {wrong[0]}" if wrong else ""


def elsewhere(saved: Sums | None, tree: object) -> Sums:
    """Returns the saved checksums of arrays that the tree does not hold, such as frozen parameters."""
    here = set(names(tree))
    return {name: value for name, value in (saved or {}).items() if name not in here}
