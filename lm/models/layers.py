"""The parts of a model: linear maps, norms, dropout, the feed-forward network, the output projection.

Array names carry their shape: B batch, L length, D model, F feed-forward, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.sharding import constrain, gathered, scattered

# In a block of those operands of products with a few rows that XLA's CPU compiler reads as they lie.
COLUMNS = 64


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed, as opposed to what it is.

    Attributes:
        dtype: of activations and of the weights while they are used; norms and softmax stay float32.
        remat: `none`, `dots` or `full`; see `TrainConfig`.
        unroll: layers in one iteration of the scan over layers; 0 writes all out; see `TrainConfig`.
        attention: `auto`, `plain` or `flash`; see `TrainConfig`.
    """

    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Inverted dropout with its key: zeroes a share `rate` of the entries and scales up the rest.

    Masks are a hash of the key and the entry's place: a few integer operations, where the bits of `jax.random` cost
    more than the attention that they thin out (on a CPU five times as much). Being elementwise, it gives
    the same mask however the array is sharded, and is computed where it is used.
    """

    rate: float
    key: jax.Array

    def __call__(self, array: jax.Array) -> jax.Array:
        return _dropped(self.rate, array, self.key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dropped(rate: float, array: jax.Array, key: jax.Array) -> jax.Array:
    places = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):  # 32 bits wrap around in arrays of over 4 billion entries
        places = places * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    low, high = jax.random.key_data(key).reshape(-1)[-2:]
    bits = _mix(_mix(places + low) ^ high)
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, array / (1 - rate), 0).astype(array.dtype)


# The gradient goes through the same mask, which is computed again rather than kept.
_dropped.defvjp(
    lambda rate, array, key: (_dropped(rate, array, key), key),
    lambda rate, key, gradient: (_dropped(rate, gradient, key), None),
)


def _mix(bits: jax.Array) -> jax.Array:
    """A bijection of uint32 that changes half of the bits for each bit changed (C. Wellons' lowbias32)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def make_dropout(rate: float, key: jax.Array | None, *folds: jax.Array | int) -> Dropout | None:
    """A `Dropout` whose key is folded with what tells its use apart; None where there is nothing to drop."""
    if key is None or rate == 0:
        return None
    for fold in folds:
        key = jax.random.fold_in(key, fold)
    return Dropout(rate, key)


def drop(array: jax.Array, dropout: Dropout | None) -> jax.Array:
    """Applies a dropout that may be absent."""
    return array if dropout is None else dropout(array)


def initial(config: ModelConfig, rngs: nnx.Rngs, shape: tuple[int, ...], fan_in_std: float) -> nnx.Param:
    """Initial weights: BERT's normal of `init_std`, cut at two standard deviations and not rescaled, or T5's.

    Args:
        fan_in_std: the standard deviation where `config.init` is `fan_in`.
    """
    if config.init == "fan_in":
        return nnx.Param(fan_in_std * jax.random.normal(rngs.params(), shape, jnp.float32))
    return nnx.Param(config.init_std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32))


def recomputed(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function, which keeps its arguments for the gradient and nothing that it computes on the way.

    For elementwise chains: writing what is between their ends to memory and reading it back takes longer than
    computing it twice. GELU alone would keep six arrays of the feed-forward width in every layer.
    """
    kept = jax.custom_vjp(function)
    kept.defvjp(lambda *args: (function(*args), args), lambda args, gradient: jax.vjp(function, *args)[1](gradient))
    return kept


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


def activate(name: str, array: jax.Array) -> jax.Array:
    """The activation function of that name, in float32; `gelu` is the erf form, `gelu_tanh` its approximation."""
    function = ACTIVATIONS[name]
    return recomputed(lambda array: function(array.astype(jnp.float32)).astype(array.dtype))(array)


class Dense(nnx.Module):
    """A linear map of the last axes. The kernel's first `inputs` axes are contracted with the input's last."""

    def __init__(
        self,
        config: ModelConfig,
        name: str,
        shape: tuple[int, ...],
        *,
        inputs: int = 1,
        bias: bool,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        """`name` is how `sharding.PARAMETERS` knows it; `gain` scales the initial weights of `fan_in`."""
        self.kernel = initial(config, rngs, shape, gain * math.prod(shape[:inputs]) ** -0.5)
        self.bias = nnx.Param(jnp.zeros(shape[inputs:])) if bias else None
        self.inputs, self.name = inputs, name

    def __call__(self, array: jax.Array, scale: float = 1.0) -> jax.Array:
        """The map, times `scale`, which its gradient puts on the weights: they are smaller than the result."""
        out: Any = _mapped(_Map(self.inputs, scale, f"{self.name}/kernel"), array, self.kernel[...])
        return out if self.bias is None else _added(out, self.bias[...] * scale)


class FewRows(nnx.Module):
    """A `Dense` without a gradient for a few rows, its kernel laid out `in_columns`."""

    def __init__(self, dense: Dense, dtype: Any):
        kernel = dense.kernel[...].astype(dtype)
        self.columns = kernel.shape[dense.inputs :]
        self.blocks = nnx.Param(in_columns(kernel.reshape(-1, math.prod(self.columns))))
        self.bias, self.inputs = dense.bias, dense.inputs

    def __call__(self, array: jax.Array, scale: float = 1.0) -> jax.Array:
        """As `Dense`."""
        leading = array.shape[: array.ndim - self.inputs]
        out = by_columns(array.reshape(*leading, -1), self.blocks[...], array.dtype)
        out = out.reshape(*leading, *self.columns) * scale
        return out if self.bias is None else _added(out, self.bias[...] * scale)


def in_columns(kernel_IO: jax.Array) -> jax.Array:
    """A kernel in blocks of its columns, [G, I, C]; as it is, [I, O], where its columns do not divide into blocks.

    XLA's CPU compiler copies a kernel into such blocks each time before it multiplies it with a few rows. Behind a
    barrier, or it would make them anew in each iteration of a loop.
    """
    if kernel_IO.shape[1] % COLUMNS == 0:
        kernel_IO = kernel_IO.reshape(len(kernel_IO), -1, COLUMNS).swapaxes(0, 1)
    return jax.lax.optimization_barrier(kernel_IO)


def by_columns(array: jax.Array, blocks: jax.Array, dtype: Any) -> jax.Array:
    """The product of an array [..., I] and a kernel that is laid out `in_columns`: [..., O]."""
    if blocks.ndim == 2:
        return jnp.tensordot(array, blocks, axes=1, preferred_element_type=dtype)
    array_RI = array.reshape(-1, array.shape[-1])
    # A batch of products: every block with the same rows.
    array_GRI = jnp.broadcast_to(array_RI[None], (len(blocks), *array_RI.shape))
    out_GRC = jnp.einsum("GRI,GIC->GRC", array_GRI, blocks, preferred_element_type=dtype)
    return out_GRC.swapaxes(0, 1).reshape(*array.shape[:-1], -1)


@jax.custom_vjp
def _added(array: jax.Array, bias: jax.Array) -> jax.Array:
    return array + bias.astype(array.dtype).reshape((1,) * (array.ndim - bias.ndim) + bias.shape)


def _added_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A bias's gradient is a sum; as a product with ones a TPU computes it in half the time.

    With eight equal rows of ones, and behind a barrier, or the compiler would make a sum of the product.
    """
    leading = gradient.shape[: gradient.ndim - bias.ndim]
    ones = jax.lax.optimization_barrier(jnp.ones((8, *leading), gradient.dtype))
    axes = tuple(range(len(leading)))
    sums = jnp.tensordot(ones, gradient.reshape(*leading, -1), axes=(tuple(axis + 1 for axis in axes), axes))
    return gradient, jax.lax.optimization_barrier(sums)[0].reshape(bias.shape).astype(bias.dtype)


_added.defvjp(lambda array, bias: (_added(array, bias), bias), _added_backward)


@dataclasses.dataclass(frozen=True)
class _Map:
    """What a product with a kernel depends on, besides arrays.

    Attributes:
        inputs: axes of the kernel that are summed over, its first ones.
        scale: what the product is multiplied by.
        path: of the kernel in `sharding.PARAMETERS`; empty where it is whole already.
        dtype: of the product; None for the array's.
    """

    inputs: int = 1
    scale: float = 1.0
    path: str = ""
    dtype: Any = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mapped(how: _Map, array: jax.Array, kernel: jax.Array) -> jax.Array:
    """The product of an array and a kernel.

    A kernel that is split over devices is gathered for it, and again for its gradient: a scan over layers keeps the
    parts alone. Without a scan the compiler sees that both are the same, and keeps the whole.
    """
    whole = gathered(how.path, kernel.astype(array.dtype))
    return jnp.tensordot(array, whole, axes=how.inputs, preferred_element_type=how.dtype or array.dtype) * how.scale


def _mapped_backward(how: _Map, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, ...]:
    # JAX's own rule computes the kernel's gradient transposed: on a CPU copies and slow products come of turning it.
    array, kernel = kept
    gradient = gradient.astype(array.dtype)
    whole = gathered(how.path, kernel.astype(array.dtype)) * how.scale
    axes = tuple(range(how.inputs - kernel.ndim, 0))
    of_array = jnp.tensordot(gradient, whole, axes=(axes, axes))

    leading = tuple(range(array.ndim - how.inputs))
    rows = lambda array: array.reshape(*array.shape[: len(leading)], -1)  # noqa: E731
    of_kernel = jnp.tensordot(rows(array), rows(gradient), axes=(leading, leading)) * how.scale
    if kernel.ndim > 2:
        # Behind a barrier, or the compiler makes heads an axis of the product: 64 wide, they fill half a TPU's arrays.
        of_kernel = jax.lax.optimization_barrier(of_kernel).reshape(kernel.shape)
    return of_array, scattered(how.path, of_kernel).astype(kernel.dtype)


_mapped.defvjp(lambda how, *operands: (_mapped(how, *operands), operands), _mapped_backward)


class Norm(nnx.Module):
    """Layer norm (Ba et al., 2016) or RMS norm (Zhang and Sennrich, 2019) over D, statistics in float32."""

    def __init__(self, config: ModelConfig):
        self.scale = nnx.Param(jnp.ones(config.d_model))
        with_bias = config.norm == "layernorm" and config.norm_bias
        self.bias = nnx.Param(jnp.zeros(config.d_model)) if with_bias else None
        self.centred = config.norm == "layernorm"
        self.eps = config.norm_eps

    def __call__(self, array: jax.Array) -> jax.Array:
        return _normalized(
            self.centred, self.eps, array, self.scale[...], None if self.bias is None else self.bias[...]
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalized(centred: bool, eps: float, array: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None) -> jax.Array:
    return _normalized_forward(centred, eps, array, scale_D, bias_D)[0]


def _normalized_forward(
    centred: bool, eps: float, array: jax.Array, scale_D: jax.Array, bias_D: jax.Array | None
) -> tuple[jax.Array, Any]:
    """Keeps for the gradient, beside the input, two numbers a token: reading all to compute them anew takes longer."""
    wide = array.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True) if centred else None
    square = jnp.square(wide).mean(axis=-1, keepdims=True)
    if mean is not None:
        wide = wide - mean
        # In one pass where the input has been rounded, which costs more than the difference of two squares does.
        in_one_pass = array.dtype != jnp.float32
        square = jnp.maximum(square - mean**2, 0.0) if in_one_pass else jnp.square(wide).mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(square + eps)
    out = wide * inverse * _broadcast(scale_D, wide.ndim)
    if bias_D is not None:
        out = out + _broadcast(bias_D, wide.ndim)
    return out.astype(array.dtype), (array, scale_D, bias_D, mean, inverse)


def _normalized_backward(centred: bool, eps: float, kept: Any, gradient: jax.Array) -> tuple[jax.Array | None, ...]:
    del eps
    array, scale_D, bias_D, mean, inverse = kept
    wide, gradient = array.astype(jnp.float32), gradient.astype(jnp.float32)
    normal = (wide - mean if centred else wide) * inverse
    leading = tuple(range(array.ndim - 1))
    of_scale_D = (gradient * normal).sum(leading)
    of_bias_D = None if bias_D is None else gradient.sum(leading)
    of_normal = gradient * _broadcast(scale_D, array.ndim)
    of_array = of_normal - normal * (of_normal * normal).mean(axis=-1, keepdims=True)
    if centred:
        of_array = of_array - of_normal.mean(axis=-1, keepdims=True)
    return (of_array * inverse).astype(array.dtype), of_scale_D, of_bias_D


_normalized.defvjp(_normalized_forward, _normalized_backward)


def _broadcast(vector_D: jax.Array, ndim: int) -> jax.Array:
    return vector_D.astype(jnp.float32).reshape((1,) * (ndim - 1) + vector_D.shape)


class FeedForward(nnx.Module):
    """FFN(x) = f(x W1 + b1) W2 + b2 (Vaswani et al., 2017, equation 2); gated: f(x W1) * (x W3), then W2."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width, hidden = config.d_model, config.d_ff
        make = lambda name, *shape: Dense(config, f"mlp/{name}", shape, bias=config.mlp_bias, rngs=rngs)  # noqa: E731
        self.up = make("up", width, hidden)
        self.gate = make("gate", width, hidden) if config.gated else None
        self.down = make("down", hidden, width)
        self.activation = config.activation

    def __call__(self, inputs_BLD: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        hidden_BLF = activate(self.activation, constrain(self.up(inputs_BLD), "BLF"))
        if self.gate is not None:
            hidden_BLF = hidden_BLF * constrain(self.gate(inputs_BLD), "BLF")
        return constrain(self.down(drop(hidden_BLF, dropout)), "BLD")


class Logits(nnx.Module):
    """softmax(W h + b) before the softmax: W is the tied token embedding or a kernel of its own. Float32."""

    path = "logits/kernel"  # how `sharding.PARAMETERS` knows W

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        shape = (config.d_model, config.vocab_size)
        self.kernel = None if config.tie_embeddings else Dense(config, "logits", shape, bias=False, rngs=rngs).kernel
        self.bias = nnx.Param(jnp.zeros(config.vocab_size)) if config.logits_bias else None
        self.scale = config.d_model**-0.5 if config.scale_logits else 1.0

    def weights_DV(self, token_VD: jax.Array, dtype: Any) -> jax.Array:
        """W in the compute dtype, the token embedding where they are tied."""
        return (token_VD.T if self.kernel is None else self.kernel[...]).astype(dtype)

    def __call__(self, hidden_BLD: jax.Array, weights_DV: jax.Array) -> jax.Array:
        """Logits [B, L, V]; in decoding, weights may be laid out `in_columns`."""
        hidden_BLD = hidden_BLD * self.scale
        if weights_DV.ndim == 2:
            logits_BLV: Any = _mapped(_Map(path=self.path, dtype=jnp.float32), hidden_BLD, weights_DV)
        else:
            logits_BLV = by_columns(hidden_BLD, weights_DV, jnp.float32)
        if self.bias is not None:
            logits_BLV = _added(logits_BLV, self.bias[...])
        return constrain(logits_BLV, "BLV")


def argmax(logits: jax.Array) -> jax.Array:
    """The index of the largest along the last axis, int32: two reductions, which fuse with others, in place of one.

    XLA's own argmax takes ten times as long on CPUs.
    """
    indices = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    is_largest = logits == logits.max(axis=-1, keepdims=True)
    return jnp.where(is_largest, indices.reshape((1,) * (logits.ndim - 1) + (-1,)), indices[-1]).min(axis=-1)


def rotary_angles(positions_BL: jax.Array, theta: float, head_dim: int) -> jax.Array:
    """Angles p * theta^(-2k / K) of rotary positions, float32 [B, L, K / 2]."""
    frequencies = jnp.exp(-math.log(theta) * jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions_BL[:, :, None].astype(jnp.float32) * frequencies[None, None]
