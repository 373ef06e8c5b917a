"""Splits the parameters of a run into those that it trains and those that `optim.frozen` freezes."""

import re

from lm import parameters
from lm.errors import InputError
from lm.parameters import Leaf, Tree


def partition(params: Tree[Leaf], frozen: str) -> tuple[Tree[Leaf], Tree[Leaf]]:
    """Splits parameters into trained and frozen ones. `parameters.merge` joins them again.

    Args:
        params: arrays, or their shapes.
        frozen: the value of `optim.frozen`, regular expressions separated by commas. A parameter is frozen if one of
            them matches its whole path, such as `encoder/layers/mlp/up/kernel`.

    Returns:
        The trained parameters and the frozen ones. If `frozen` is empty, these are `params` itself and `{}`.

    Raises:
        InputError: an expression matches no parameter, or no parameter is left to train.
    """
    if not frozen:
        return params, {}
    leaves = parameters.flatten(params)
    fixed: set[str] = set()
    for pattern in frozen.split(","):
        found = {path for path in leaves if re.fullmatch(pattern.strip(), path)}
        if not found:
            raise InputError(
                f"optim.frozen has {pattern.strip()!r}, which matches no parameter; accepted: regular expressions of "
                f"whole paths, such as {min(leaves)}; they begin with {', '.join(parameters.abridge(leaves, leaves))}."
            )
        fixed |= found
    if len(fixed) == len(leaves):
        raise InputError(f"optim.frozen={frozen} leaves no parameter to train; freeze fewer.")
    trained = parameters.unflatten({path: leaf for path, leaf in leaves.items() if path not in fixed})
    return trained, parameters.unflatten({path: leaf for path, leaf in leaves.items() if path in fixed})
