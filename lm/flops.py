"""Counts the floating-point operations that a model needs, and those of a traced program.

Both counts include only matrix products. A multiply-add counts as two.
"""

import math
from typing import Any

from jax.core import ShapedArray
from jax.extend.core import JaxprEqn, jaxprs_in_params

from lm.config import Config


def model_flops(config: Config, predicted: int) -> float:
    """Returns the FLOPs of the forward and backward pass over one row. Rematerialisation does not count.

    The backward pass costs twice the forward pass: it computes the gradients of inputs and of weights. In global layers
    attention counts whole rows, causal or not; in local layers it counts the window.

    Args:
        config: the config of the run.
        predicted: the number of positions that reach the vocabulary projection.
    """
    model = config.model
    width, inner = model.d_model, model.num_heads * model.width_per_head
    reads, writes = model.architecture != "decoder", model.architecture != "encoder"
    source = config.data.seq_length
    target = config.data.target_length if reads else source

    def stack(layers: int, length: int) -> float:
        per_token = 4 * width * inner + (3 if model.gated else 2) * width * model.d_ff
        local = min(length, 2 * model.window + 1)
        seen = sum(local if layer % model.global_every else length for layer in range(layers))
        return layers * length * per_token + 2 * length * seen * inner

    total = stack(model.num_layers, source) if reads else 0.0
    total += stack(model.decoder_depth, target) if writes else 0.0
    if reads and writes:
        total += model.decoder_depth * (2 * width * inner * (source + target) + 2 * source * target * inner)
    head = width * model.vocab_size + (0 if writes else width * width)
    return 6.0 * (total + predicted * head)


def program_flops(jaxpr: Any) -> tuple[float, float]:
    """Returns the FLOPs of a program over all devices, and how many of them are in Pallas kernels.

    XLA's own analysis counts the body of a loop once and a kernel not at all. We multiply the body by the number of
    iterations where the program states it. Of the branches of a conditional the most expensive one counts.

    Args:
        jaxpr: closed or not; jax 0.10 and 0.12 have no type for both.
    """
    total = kernels = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            total += _product(equation)
            continue
        times = _executions(equation)
        inner = [program_flops(each) for each in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            inner = [max(inner)] if inner else []
        for flops, in_kernels in inner:
            total += times * flops
            kernels += times * (flops if equation.primitive.name == "pallas_call" else in_kernels)
    return total, kernels


def _product(equation: JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval, equation.outvars[0].aval
    assert isinstance(left, ShapedArray)
    assert isinstance(result, ShapedArray)
    return 2.0 * math.prod(result.shape) * math.prod(left.shape[axis] for axis in contracted)


def _executions(equation: JaxprEqn) -> int:
    """Returns how often the program inside an equation runs, over all devices."""
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
