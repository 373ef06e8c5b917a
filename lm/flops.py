"""Counts the floating-point operations that a model needs, and those of a traced program.

Both counts include only matrix products. A multiply-add counts as two.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import ShapedArray
from jax.extend.core import JaxprEqn, jaxprs_in_params

from lm.config import Config


def model_flops(config: Config, predicted: float) -> float:
    """Returns the FLOPs of the forward and backward pass over a row that a single example fills.

    Attention counts all pairs of the row in global layers, causal or not, and those of the window in local layers. The
    planner compares programs with this number. A row of several examples needs less: see `needed_flops`.

    Args:
        config: the config of the run.
        predicted: the number of positions that reach the vocabulary projection.
    """
    window = 2 * config.model.window + 1
    sides = config.data.seq_length, _target_length(config)
    pairs = [(length * length, length * min(length, window)) for length in sides]
    return _flops(config, sides, pairs, sides[0] * sides[1], predicted)


def needed_flops(config: Config, sources: np.ndarray, targets: np.ndarray, predicted: float) -> float:
    """Returns the FLOPs of the forward and backward pass over some examples. Padding needs none.

    An example attends to itself alone: to the tokens before where attention is causal, and in a window in local layers.

    Args:
        config: the config of the run.
        sources, targets: int, of one shape: the tokens of each example in the rows of the encoder and in those of the
            decoder; 0 where there is none.
        predicted: the number of positions whose token is predicted.
    """
    sides = sources.astype(np.float64), targets.astype(np.float64)

    def before(length: np.ndarray, most: float) -> float:
        """Returns the number of pairs of a token and one of the `most` tokens before it."""
        near = np.minimum(length, most + 1)
        return float((near * (near - 1) / 2 + (length - near) * most).sum())

    tokens = float(sides[0].sum()), float(sides[1].sum())
    reach = max(side.max(initial=0) for side in sides), config.model.window  # of a global and of a local layer
    encoder, decoder = ([before(side, most) for most in reach] for side in sides)
    pairs = [
        (tokens[0] + 2 * encoder[0], tokens[0] + 2 * encoder[1]),
        (tokens[1] + decoder[0], tokens[1] + decoder[1]),
    ]
    return _flops(config, tokens, pairs, float((sides[0] * sides[1]).sum()), predicted)


def _target_length(config: Config) -> int:
    return config.data.seq_length if config.model.architecture == "decoder" else config.data.target_length


def _flops(
    config: Config,
    tokens: tuple[float, float],
    pairs: Sequence[tuple[float, float]],
    cross_pairs: float,
    predicted: float,
) -> float:
    """Returns FLOPs from counts.

    The backward pass costs twice the forward pass: it computes the gradients of inputs and of weights.
    Rematerialisation does not count.

    Args:
        config: the config of the run.
        tokens: the number of tokens of the encoder, and that of the decoder.
        pairs: for the encoder and for the decoder, the pairs of a query and a key in a global and in a local layer.
        cross_pairs: the pairs of a query of the decoder and a key of the encoder.
        predicted: the number of positions that reach the vocabulary projection.
    """
    model = config.model
    width, inner = model.d_model, model.num_heads * model.width_per_head
    reads, writes = model.architecture != "decoder", model.architecture != "encoder"

    def stack(layers: int, side: int) -> float:
        per_token = 4 * width * inner + (3 if model.gated else 2) * width * model.d_ff
        seen = sum(pairs[side][layer % model.global_every > 0] for layer in range(layers))
        return layers * tokens[side] * per_token + 2 * seen * inner

    total = stack(model.num_layers, 0) if reads else 0.0
    total += stack(model.decoder_depth, 1) if writes else 0.0
    if reads and writes:
        total += model.decoder_depth * (2 * width * inner * sum(tokens) + 2 * cross_pairs * inner)
    embedded = model.embedding_width or width
    total += tokens[0] * embedded * width if model.embedding_width else 0.0
    head = embedded * model.vocab_size + (0 if writes else width * embedded)
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
