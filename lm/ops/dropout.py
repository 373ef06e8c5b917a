"""Inverted dropout: zeroes a share of the entries and scales up the rest.

The mask is a hash of the key and the entry's place: a few integer operations. The bits of `jax.random` cost five times
as much on a CPU as the attention that they thin out. The hash is elementwise, so the mask is the same however the
array is sharded, and is computed where it is used.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp


def drop_plain(rate: float, array: jax.Array, keep: jax.Array) -> jax.Array:
    """x / (1 - rate) where `keep`, else 0."""
    return jnp.where(keep, array / (1 - rate), 0).astype(array.dtype)


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Dropout of a rate with its key."""

    rate: float
    key: jax.Array

    def __call__(self, array: jax.Array) -> jax.Array:
        return _dropped(self.rate, array, self.key)


def make_dropout(rate: float, key: jax.Array | None, *folds: jax.Array | int) -> Dropout | None:
    """A `Dropout` whose key is folded with what tells its use apart; None where there is nothing to drop."""
    if key is None or rate == 0:
        return None
    for fold in folds:
        key = jax.random.fold_in(key, fold)
    return Dropout(rate, key)


def drop(array: jax.Array, dropout: Dropout | None) -> jax.Array:
    """Applies a dropout that may be absent."""
    return array if dropout is None else dropout(array)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dropped(rate: float, array: jax.Array, key: jax.Array) -> jax.Array:
    return drop_plain(rate, array, keep_mask(rate, array.shape, key))


# The gradient computes the mask again: keeping it would write and read as many entries as the array has.
_dropped.defvjp(
    lambda rate, array, key: (_dropped(rate, array, key), key),
    lambda rate, key, gradient: (_dropped(rate, gradient, key), None),
)


def keep_mask(rate: float, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """Bool of that shape, True with probability 1 - rate."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):  # 32 bits wrap around in arrays of over 4 billion entries
        places = places * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    low, high = jax.random.key_data(key).reshape(-1)[-2:]
    return _mix(_mix(places + low) ^ high) >= jnp.uint32(round(rate * 2**32))


def _mix(bits: jax.Array) -> jax.Array:
    """A bijection of uint32 that changes half of the bits for each bit changed (C. Wellons' lowbias32)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
