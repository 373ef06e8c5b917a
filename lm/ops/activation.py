"""Activation functions, computed in float32 for every dtype, and their products with a gate (Shazeer, 2020).

Their gradients compute the function again from its arguments. Keeping what is in between would write and read six
arrays of the feed-forward width in every layer.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.ops import activation_gpu
from lm.ops.recompute import recomputed

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


def activate_plain(name: str, array: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """Returns f(x), times the gate if there is one. `gelu` is the erf form, `gelu_tanh` its approximation."""
    out = ACTIVATIONS[name](array.astype(jnp.float32)).astype(array.dtype)
    return out if gate is None else out * gate


def activate(name: str, array: jax.Array, gate: jax.Array | None = None) -> jax.Array:
    """Computes `activate_plain`."""
    if activation_gpu.takes(name, array):
        return activation_gpu.activate(name, array, gate)
    out = recomputed(functools.partial(activate_plain, name))(array)
    return out if gate is None else out * gate
