"""FLOPs of a traced program: what its matrix products do, whatever the compiler makes of them."""

import math
from typing import Any

from jax.extend.core import jaxprs_in_params


def count(jaxpr: Any) -> tuple[float, float]:
    """FLOPs of the matrix products of a program over all devices, and those of them inside Pallas kernels.

    XLA's own analysis counts the body of a loop once and a kernel not at all. Two a multiply-add. A loop whose
    number of iterations the program does not tell counts once.

    Args:
        jaxpr: of `jax.make_jaxpr`, closed or not.
    """
    total = kernels = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "dot_general":
            total += _dot(equation)
            continue
        times = _times(equation)
        inner = [count(each) for each in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            inner = [max(inner)] if inner else []
        for flops, in_kernels in inner:
            total += times * flops
            kernels += times * (flops if equation.primitive.name == "pallas_call" else in_kernels)
    return total, kernels


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _times(equation: Any) -> int:
    """How often the program inside an equation runs."""
    params = equation.params
    match equation.primitive.name:
        case "scan":
            return params["length"]
        case "shard_map":
            return math.prod(params["mesh"].shape.values())
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid)
        case _:
            return 1
