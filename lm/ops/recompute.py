"""What the backward pass computes again instead of keeping: functions that return the same values and gradients."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

Elementwise = Callable[..., jax.Array]
P = ParamSpec("P")
T = TypeVar("T")


def checkpointed(function: Callable[P, T], remat: str, *, in_scan: bool) -> Callable[P, T]:
    """The function of one layer, which keeps for its gradient what `train.remat` says.

    Args:
        remat: `none` keeps all, `dots` the products with weights, `full` the arguments.
        in_scan: the function is the whole body of a scan. Elsewhere a barrier keeps the compiler from sharing what it
            computes twice, which would keep it after all.
    """
    if remat == "none":
        return function
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(function, policy=policy, prevent_cse=not in_scan)


def recomputed(function: Elementwise) -> Elementwise:
    """The same function, whose gradient computes it again from the arguments.

    Writing the intermediate arrays of an elementwise chain to memory and reading them back takes longer than computing
    them twice. GELU alone would keep six arrays of the feed-forward width in every layer.
    """
    kept = jax.custom_vjp(function)
    kept.defvjp(lambda *args: (function(*args), args), lambda args, gradient: jax.vjp(function, *args)[1](gradient))
    return kept
