"""What a run trains: all parameters, those that `optim.frozen` leaves, or low-rank adapters and the heads."""

import re

import jax

from lm import lora, parameters
from lm.config import OptimConfig
from lm.errors import InputError
from lm.models import Model, Params
from lm.parameters import Leaf, Tree

_ADAPTERS = 1  # folded into the key of the initial parameters


class Adapted(Model):
    """A model with low-rank adapters (see `lm.lora`), whose base parameters are frozen by `partition`.

    Each step adds the product A B to the kernel before the model is called. So every family and every program is that
    of the model without adapters. It costs a copy of the kernels that have an adapter, and their whole gradients, from
    which those of A and B follow. Two products with A and B of the activations instead would save these gradients, a
    third of the operations of such a kernel.
    """

    def __init__(self, model: Model, config: OptimConfig):
        self._model, self._config = model, config

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters of the model, with the adapters of step 0."""
        leaves = parameters.flatten(self._model.init(key))
        shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
        drawn = lora.initial(jax.random.fold_in(key, _ADAPTERS), shapes, self._config)
        return parameters.unflatten(leaves | drawn)

    def merge(self, params: Params):
        """Returns the module, in whose kernels the adapters are merged."""
        return self._model.merge(
            parameters.unflatten(lora.merged(parameters.flatten(params), lora.scale(self._config)))
        )


def adapted(model: Model, config: OptimConfig) -> Model:
    """Returns the model that a run trains: with adapters if the config asks for them."""
    return Adapted(model, config) if config.lora_rank else model


def partition(params: Tree[Leaf], config: OptimConfig) -> tuple[Tree[Leaf], Tree[Leaf]]:
    """Splits parameters into trained and frozen ones. `parameters.merge` joins them again.

    Args:
        params: arrays, or their shapes.
        config: a parameter is frozen if a regular expression of `frozen` matches its whole path, such as
            `encoder/layers/mlp/up/kernel`, or if there are adapters and it belongs to their base.

    Returns:
        The trained parameters and the frozen ones. If nothing is frozen, these are `params` itself and `{}`.

    Raises:
        InputError: an expression matches no parameter, or no parameter is left to train.
    """
    if not (config.frozen or config.lora_rank):
        return params, {}
    leaves = parameters.flatten(params)
    fixed = {path for path in leaves if config.lora_rank and lora.is_base(path)}
    for pattern in config.frozen.split(",") if config.frozen else ():
        found = {path for path in leaves if re.fullmatch(pattern.strip(), path)}
        if not found:
            raise InputError(
                f"optim.frozen has {pattern.strip()!r}, which matches no parameter; accepted: regular expressions of "
                f"whole paths, such as {min(leaves)}; they begin with {', '.join(parameters.abridge(leaves, leaves))}."
            )
        fixed |= found
    if len(fixed) == len(leaves):
        raise InputError(f"optim.frozen={config.frozen} leaves no parameter to train; freeze fewer.")
    trained = parameters.unflatten({path: leaf for path, leaf in leaves.items() if path not in fixed})
    return trained, parameters.unflatten({path: leaf for path, leaf in leaves.items() if path in fixed})
