"""A model with several low-rank adapters, of which each token of a batch uses its own or none.

The adapters of a kernel are one adapter with the columns of all (`lm.lora.side_by_side`). A token uses the columns that
its adapter owns: y = x W + ((x A) * mask) B. So one program computes any mixture, and a token's result does not depend
on the adapters of its neighbours. It costs the columns of all adapters for every token: with 8 adapters of rank 8, 64
columns beside the kernel's own.

Array names carry their shape: B rows, L length, R columns of all adapters, P places of a row, N adapters and the base.
"""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from lm import lora, parameters
from lm.models.layers import Dense
from lm.ops.linear import Linear, linear
from lm.parameters import Params

Part = TypeVar("Part")
_HEADS = f"{lora.HEADS}/"


class AdaptedDense(nnx.Module):
    """Computes a `Dense`, and adds what each token's adapter adds. It has no gradient."""

    def __init__(self, dense: Callable[..., jax.Array], inputs: int, a: jax.Array, b: jax.Array, owner_R: jax.Array):
        """Makes the module; every token uses the base until `choose` says otherwise.

        Args:
            dense: the linear map of the base, a `Dense` or one that computes the same.
            inputs: how many axes of an array it sums over.
            a, b, owner_R: see `lm.lora.side_by_side`. All may have a leading axis of stacked layers.
        """
        self.dense, self.inputs = dense, inputs
        self.a, self.b, self.owner_R = nnx.Param(a), nnx.Param(b), nnx.Param(owner_R)
        self.adapters_BL = nnx.Param(jnp.zeros((*owner_R.shape[:-1], 1, 1), jnp.int32))

    def __call__(self, array: jax.Array, scale: float = 1.0) -> jax.Array:
        """Returns scale * (x W + b), with the adapter in W."""
        small_BLR = linear(Linear(self.inputs), array, self.a[...])
        is_own_BLR = self.adapters_BL[...][:, :, None] == self.owner_R[...][None, None]
        own_BLR = jnp.where(is_own_BLR, small_BLR, jnp.zeros_like(small_BLR))
        return self.dense(array, scale) + linear(Linear(1, scale), own_BLR, self.b[...])

    def choose(self, adapters_BL: jax.Array) -> "AdaptedDense":
        """Returns the module for tokens that use these adapters, int32 [B, L], or [B, 1] for whole rows."""
        other = AdaptedDense(self.dense, self.inputs, self.a[...], self.b[...], self.owner_R[...])
        stacked = jnp.broadcast_to(adapters_BL, (*self.owner_R.shape[:-1], *adapters_BL.shape))
        other.adapters_BL = nnx.Param(stacked)
        return other


class ChosenHead(nnx.Module):
    """A part of a head, which each adapter has trained for itself: computes all, and each place takes its own.

    Heads see the few places of a row that are asked for, so all of them cost less than one layer.
    """

    def __init__(self, each: Callable[[jax.Array], jax.Array], adapters_BP: jax.Array):
        """Takes a module whose parameters have a leading axis N, and the adapter of each place."""
        self.each, self.adapters_BP = each, nnx.Param(adapters_BP)

    def __call__(self, array: jax.Array) -> jax.Array:
        found_NBPD = jax.vmap(lambda head: head(array))(self.each)
        return jnp.take_along_axis(found_NBPD, self.adapters_BP[...][None, :, :, None], axis=0)[0]


def attach(merge: Callable[[Params], nnx.Module], params: Params) -> nnx.Module:
    """Returns the module of parameters from `lm.lora.side_by_side`, whose tokens use the base until `choose` is called.

    Args:
        merge: returns the module of the base's parameters; those of heads may have a leading axis.
        params: the parameters.
    """
    leaves, adapters = lora.split(parameters.flatten(params))
    heads = {path.removeprefix(_HEADS): leaf for path, leaf in leaves.items() if path.startswith(_HEADS)}
    base = {path: leaf for path, leaf in leaves.items() if not path.startswith(_HEADS)}
    module = merge(parameters.unflatten(base | heads))
    for path in [path.removesuffix(f"/{lora.A}") for path in adapters if path.endswith(f"/{lora.A}")]:
        dense = _at(module, path)
        assert isinstance(dense, Dense)
        columns = (adapters[f"{path}/{name}"] for name in (lora.A, lora.B, lora.OWNER))
        _put(module, path, AdaptedDense(dense, dense.inputs, *columns))
    for path in {path.rpartition("/")[0] for path in heads}:
        _put(module, path, ChosenHead(_at(module, path), jnp.zeros((1, 1), jnp.int32)))
    return module


def bare(dense: object) -> object:
    """Returns a linear map without its adapters."""
    return dense.dense if isinstance(dense, AdaptedDense) else dense


def choose(part: Part, adapters_BL: jax.Array, adapters_BP: jax.Array | None = None) -> Part:
    """Returns a module, or a tree of modules, for a batch whose tokens use these adapters.

    Args:
        part: made by `attach`, or a part of it.
        adapters_BL: int32 [B, L], or [B, 1] for whole rows; 0 is the base.
        adapters_BP: those of the places that heads see; None where nothing asks the heads.
    """

    def chosen(node: object) -> object:
        if isinstance(node, AdaptedDense):
            return node.choose(adapters_BL)
        if isinstance(node, ChosenHead) and adapters_BP is not None:
            return ChosenHead(node.each, adapters_BP)
        return node

    return jax.tree.map(chosen, part, is_leaf=lambda node: isinstance(node, AdaptedDense | ChosenHead))


def _at(module: nnx.Module, path: str):
    return functools.reduce(getattr, path.split("/"), module)


def _put(module: nnx.Module, path: str, part: nnx.Module) -> None:
    above, _, name = path.rpartition("/")
    setattr(_at(module, above) if above else module, name, part)
