"""Inverted dropout: zeroes a share of the entries and scales up the rest.

The mask is a hash of the key and the index of an entry, a few integer operations. On a CPU, random bits from
`jax.random` cost five times as much as the attention that they are applied to. The hash is elementwise, so each device
computes the mask of its own shard, and the mask does not depend on the sharding.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp


def drop_plain(rate: float, array: jax.Array, keep: jax.Array) -> jax.Array:
    """Returns x / (1 - rate) where `keep` is True, else 0."""
    return jnp.where(keep, array / (1 - rate), 0).astype(array.dtype)


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Dropout with a rate and a random key."""

    rate: float
    key: jax.Array

    def __call__(self, array: jax.Array) -> jax.Array:
        return _dropped(self.rate, array, self.key)


def make_dropout(rate: float, key: jax.Array | None, *folds: jax.Array | int) -> Dropout | None:
    """Returns a `Dropout` whose key has `folds` folded in; None where the rate is 0 or there is no key."""
    if key is None or rate == 0:
        return None
    for fold in folds:
        key = jax.random.fold_in(key, fold)
    return Dropout(rate, key)


def drop(array: jax.Array, dropout: Dropout | None) -> jax.Array:
    """Returns the array after dropout; the array itself where `dropout` is None."""
    return array if dropout is None else dropout(array)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dropped(rate: float, array: jax.Array, key: jax.Array) -> jax.Array:
    return drop_plain(rate, array, keep_mask(rate, array.shape, key))


# The gradient computes the mask again. Keeping it would write and read as many entries as the array has.
_dropped.defvjp(
    lambda rate, array, key: (_dropped(rate, array, key), key),
    lambda rate, key, gradient: (_dropped(rate, gradient, key), None),
)


def keep_mask(rate: float, shape: tuple[int, ...], key: jax.Array) -> jax.Array:
    """Returns a bool array of that shape, each entry True with probability 1 - rate."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):  # the index wraps around after 2^32 entries
        places = places * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return keep_places(rate, places, *key_words(key))


def key_words(key: jax.Array) -> jax.Array:
    """Returns the two words of a key that the hash takes, uint32 [2]."""
    return jax.random.key_data(key).reshape(-1)[-2:]


def keep_places(rate: float, places: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Returns `keep_mask` of the entries with these indices, uint32, for the two words of a key."""
    return _mix(_mix(places + low) ^ high) >= jnp.uint32(round(rate * 2**32))


def _mix(bits: jax.Array) -> jax.Array:
    """Returns C. Wellons' hash lowbias32, a bijection of uint32. One changed bit changes half of the output's bits."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)
