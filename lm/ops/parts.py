"""Sums over many rows, computed part by part, so that what a row needs in between never exists for all rows at once.

Array names carry their shape: B batch, N rows of each, D width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# (operands that all rows share, hidden [B, N, D], further arrays [B, N, ...]) -> sums by name; one is the `loss`.
Summed = Callable[..., dict[str, jax.Array]]


def sums_plain(function: Summed, shared: Any, hidden_BND: jax.Array, *arrays: jax.Array) -> dict[str, jax.Array]:
    """Returns the sums over all rows."""
    return function(shared, hidden_BND, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sums(function: Summed, parts: int, shared: Any, hidden_BND: jax.Array, *arrays: jax.Array) -> dict[str, jax.Array]:
    """Computes `sums_plain` in so many parts of N, one after another.

    A row of zeros in every array must add nothing: the last part is padded with them. Only `loss` has a gradient, and
    only for `shared` and the hidden states. It is computed with the loss itself: computing it later would take the
    function a second time.
    """

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(shared, *part)), None

    split = _split(parts, (hidden_BND, *arrays))
    return jax.lax.scan(add, _zeros(function, shared, split), split)[0]


def _forward(function: Summed, parts: int, shared: Any, hidden_BND: jax.Array, *arrays: jax.Array):
    def add(carry, part):
        def loss(shared, hidden_BND):
            found = function(shared, hidden_BND, *part[1:])
            return found["loss"], found

        (of_shared, of_hidden), found = jax.grad(loss, (0, 1), has_aux=True)(shared, part[0])
        wide = jax.tree.map(lambda grad: grad.astype(jnp.float32), of_shared)
        return jax.tree.map(jnp.add, carry, (found, wide)), of_hidden

    split = _split(parts, (hidden_BND, *arrays))
    zeros = jax.tree.map(lambda array: jnp.zeros(array.shape, jnp.float32), shared)
    (found, of_shared), of_hidden = jax.lax.scan(add, (_zeros(function, shared, split), zeros), split)
    of_shared = jax.tree.map(lambda grad, array: grad.astype(array.dtype), of_shared, shared)
    of_hidden = jnp.moveaxis(of_hidden, 0, 1).reshape(len(hidden_BND), -1, hidden_BND.shape[2])
    return found, (of_shared, of_hidden[:, : hidden_BND.shape[1]], [None] * len(arrays))


def _backward(function: Summed, parts: int, kept: Any, gradient: dict[str, jax.Array]) -> tuple[Any, ...]:
    del function, parts
    of_shared, of_hidden, none = kept
    scaled = lambda array: (array * gradient["loss"]).astype(array.dtype)  # noqa: E731
    return jax.tree.map(scaled, of_shared), scaled(of_hidden), *none


sums.defvjp(_forward, _backward)


def _split(parts: int, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Returns arrays [parts, B, N / parts, ...], padded with zeros."""

    def split(array: jax.Array) -> jax.Array:
        B, N, *rest = array.shape
        array = jnp.pad(array, [(0, 0), (0, -N % parts), *[(0, 0)] * len(rest)])
        return jnp.moveaxis(array.reshape(B, parts, -1, *rest), 1, 0)

    return tuple(map(split, arrays))


def _zeros(function: Summed, shared: Any, split: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
    shapes = jax.eval_shape(function, shared, *(array[0] for array in split))
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
