"""The activation functions of `lm.ops.activation` on a GPU, with a gate: one kernel, and one for the gradient.

By XLA's formulas of tanh and erf, GELU takes twice as long as reading and writing its arrays. Here each function and
its slope are made of one exponential.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lm import sharding

BLOCK = 4096  # entries that a program computes
# The coefficients of GELU's approximation: tanh(ROOT * (x + CUBE * x^3)).
ROOT, CUBE = 0.7978845608028654, 0.044715


def takes(name: str, array: jax.Array) -> bool:
    """Returns whether the kernels take the array: bfloat16 [B, L, F] on a GPU, whole blocks on every device."""
    if sharding.platform() != "gpu" or array.dtype != jnp.bfloat16 or array.ndim != 3 or name not in FUNCTIONS:
        return False
    shard = sharding.shard_shape("BLF", array.shape)
    return shard is not None and math.prod(shard) % BLOCK == 0


def activate(name: str, array_BLF: jax.Array, gate_BLF: jax.Array | None, *, interpret: bool = False) -> jax.Array:
    """Computes `lm.ops.activation.activate_plain` on each device's shards, for an array that `takes` admits."""
    operands = (array_BLF,) if gate_BLF is None else (array_BLF, gate_BLF)

    def on_shard(*operands: jax.Array) -> jax.Array:
        flat = (array.reshape(-1) for array in operands)
        return _activate(name, interpret, *flat).reshape(operands[0].shape)

    return sharding.map_shards(on_shard, ["BLF"] * len(operands), "BLF")(*operands)


def _compute(name: str, interpret: bool, *operands: jax.Array) -> jax.Array:
    return _call(functools.partial(_forward_kernel, name), "activate", 1, operands, interpret)[0]


def _forward(name: str, interpret: bool, *operands: jax.Array):
    return _compute(name, interpret, *operands), operands


def _backward(name: str, interpret: bool, operands: tuple[jax.Array, ...], gradient: jax.Array):
    kernel = functools.partial(_backward_kernel, name)
    return tuple(_call(kernel, "of_activate", len(operands), (*operands, gradient), interpret))


_activate = jax.custom_vjp(_compute, nondiff_argnums=(0, 1))
_activate.defvjp(_forward, _backward)


def _forward_kernel(name: str, *refs) -> None:
    array, *gate, out = refs
    value = FUNCTIONS[name](array[...].astype(jnp.float32))[0]
    # The value is rounded before the product, as the plain form does.
    rounded = value.astype(out.dtype)
    out[...] = (rounded.astype(jnp.float32) * gate[0][...].astype(jnp.float32)).astype(out.dtype) if gate else rounded


def _backward_kernel(name: str, *refs) -> None:
    *operands, gradient, of_array = refs if len(refs) == 3 else refs[:-1]
    value, slope = FUNCTIONS[name](operands[0][...].astype(jnp.float32))
    given = gradient[...].astype(jnp.float32)
    if len(operands) == 2:
        refs[-1][...] = (given * value).astype(of_array.dtype)
        given *= operands[1][...].astype(jnp.float32)
    of_array[...] = (given * slope).astype(of_array.dtype)


def _call(kernel: Callable[..., None], name: str, outputs: int, operands: tuple[jax.Array, ...], interpret: bool):
    block = pl.BlockSpec((BLOCK,), lambda i: (i,))
    return pl.pallas_call(
        kernel,
        grid=(operands[0].size // BLOCK,),
        in_specs=[block] * len(operands),
        out_specs=[block] * outputs,
        out_shape=[jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)] * outputs,
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
        name=name,
    )(*operands)


def _gelu_tanh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """0.5 (1 + tanh(u)) is the logistic function of 2 u."""
    square = x * x
    half = 1 / (1 + jnp.exp(-2 * ROOT * x * (1 + CUBE * square)))
    return x * half, half + x * half * (1 - half) * (2 * ROOT) * (1 + 3 * CUBE * square)


def _gelu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The distribution of the normal law by Abramowitz and Stegun (1964), formula 7.1.26: off by 1e-7 at most."""
    density = jnp.exp(-0.5 * x * x)
    t = 1 / (1 + 0.3275911 * 0.7071067811865476 * jnp.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * density
    below = jnp.where(x < 0, tail, 1 - tail)
    return x * below, below + x * density * 0.3989422804014327


def _silu(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    logistic = 1 / (1 + jnp.exp(-x))
    return x * logistic, logistic * (1 + x * (1 - logistic))


# Name -> x -> (f(x), f'(x)), float32.
FUNCTIONS = {"gelu_tanh": _gelu_tanh, "gelu": _gelu, "silu": _silu}
