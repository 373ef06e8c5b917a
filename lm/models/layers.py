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
from lm.sharding import constrain, gather_weight


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed, as opposed to what it is.

    Attributes:
        dtype: of activations and of the weights while they are used; norms and softmax stay float32.
        remat: `none`, `dots` or `full`; see `TrainConfig`.
        unroll: layers in one iteration of the scan over layers; 0 writes all out, without a scan.
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
        shape: tuple[int, ...],
        *,
        inputs: int = 1,
        bias: bool,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        """`gain` scales the initial weights of `fan_in`."""
        self.kernel = initial(config, rngs, shape, gain * math.prod(shape[:inputs]) ** -0.5)
        self.bias = nnx.Param(jnp.zeros(shape[inputs:])) if bias else None
        self.inputs = inputs

    def __call__(self, array: jax.Array) -> jax.Array:
        out = _mapped(self.inputs, array.dtype, array, self.kernel[...].astype(array.dtype))
        if self.bias is not None:
            bias = self.bias[...].astype(array.dtype)
            out = out + bias.reshape((1,) * (out.ndim - bias.ndim) + bias.shape)
        return out


def _mapped_backward(
    inputs: int, dtype: Any, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, ...]:
    del dtype
    array, kernel = kept
    gradient = gradient.astype(array.dtype)
    leading, outputs = tuple(range(array.ndim - inputs)), gradient.ndim - (array.ndim - inputs)
    axes = tuple(range(-outputs, 0))
    return jnp.tensordot(gradient, kernel, axes=(axes, axes)), jnp.tensordot(array, gradient, axes=(leading, leading))


# JAX's own rule computes the kernel's gradient transposed: on a CPU copies and slow products come of turning it.
_mapped = jax.custom_vjp(
    lambda inputs, dtype, array, kernel: jnp.tensordot(array, kernel, axes=inputs, preferred_element_type=dtype),
    nondiff_argnums=(0, 1),
)
_mapped.defvjp(lambda inputs, dtype, *operands: (_mapped(inputs, dtype, *operands), operands), _mapped_backward)


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
    wide = wide if mean is None else wide - mean
    inverse = jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + eps)
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
        make = lambda shape: Dense(config, shape, bias=config.mlp_bias, rngs=rngs)  # noqa: E731
        self.up = make((width, hidden))
        self.gate = make((width, hidden)) if config.gated else None
        self.down = make((hidden, width))
        self.activation = config.activation

    def __call__(self, inputs_BLD: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        hidden_BLF = activate(self.activation, constrain(self.up(inputs_BLD), "BLF"))
        if self.gate is not None:
            hidden_BLF = hidden_BLF * constrain(self.gate(inputs_BLD), "BLF")
        return constrain(self.down(drop(hidden_BLF, dropout)), "BLD")


class Logits(nnx.Module):
    """softmax(W h + b) before the softmax: W is the tied token embedding or a kernel of its own. Float32."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        shape = (config.d_model, config.vocab_size)
        self.kernel = None if config.tie_embeddings else Dense(config, shape, bias=False, rngs=rngs).kernel
        self.bias = nnx.Param(jnp.zeros(config.vocab_size)) if config.logits_bias else None
        self.scale = config.d_model**-0.5 if config.scale_logits else 1.0

    def weights_DV(self, token_VD: jax.Array, dtype: Any) -> jax.Array:
        """W in the compute dtype, the token embedding where they are tied, whole but for its vocabulary."""
        if self.kernel is not None:
            return gather_weight("logits/kernel", self.kernel[...].astype(dtype))
        return gather_weight("embedding/token", token_VD.astype(dtype)).T

    def __call__(self, hidden_BLD: jax.Array, weights_DV: jax.Array) -> jax.Array:
        logits_BLV = _mapped(1, jnp.float32, hidden_BLD * self.scale, weights_DV)
        if self.bias is not None:
            logits_BLV = logits_BLV + self.bias[...][None, None]
        return constrain(logits_BLV, "BLV")


def rotary_angles(positions_BL: jax.Array, theta: float, head_dim: int) -> jax.Array:
    """Angles p * theta^(-2k / K) of rotary positions, float32 [B, L, K / 2]."""
    frequencies = jnp.exp(-math.log(theta) * jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions_BL[:, :, None].astype(jnp.float32) * frequencies[None, None]
