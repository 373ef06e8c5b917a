"""Rematerialisation: functions whose backward pass recomputes values instead of keeping them."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

Elementwise = Callable[..., jax.Array]
P = ParamSpec("P")
T = TypeVar("T")


def checkpointed(function: Callable[P, T], remat: str, *, in_scan: bool) -> Callable[P, T]:
    """Returns the function of one layer, keeping for its gradient what `train.remat` says.

    Args:
        remat: `none` keeps everything, `dots` the products with weights, `full` the arguments.
        in_scan: whether the function is the whole body of a scan. Elsewhere the compiler would merge the recomputation
            with the first computation, and so keep the values; a barrier prevents that.
    """
    if remat == "none":
        return function
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(function, policy=policy, prevent_cse=not in_scan)


def recomputed(function: Elementwise) -> Elementwise:
    """Returns the same function with a gradient that recomputes it from the arguments.

    For a chain of elementwise operations, writing and reading the intermediate arrays takes longer than computing them
    twice. GELU alone would keep six arrays of the feed-forward width in every layer.
    """
    kept = jax.custom_vjp(function)
    kept.defvjp(lambda *args: (function(*args), args), lambda args, gradient: jax.vjp(function, *args)[1](gradient))
    return kept
