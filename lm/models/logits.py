"""The vocabulary projection.

Array names carry their shape: B batch, L length, D model, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.layers import Dense
from lm.ops.linear import Linear, add_bias, linear
from lm.sharding import constrain


@dataclasses.dataclass(frozen=True)
class Projection:
    """The logits of hidden states before they are computed: a loss may compute them part by part.

    Attributes:
        hidden_BLD, weights_DV, bias_V: h, W and b; b may be None.
        scale: a factor of h.
    """

    hidden_BLD: jax.Array
    weights_DV: jax.Array
    bias_V: jax.Array | None
    scale: float

    def logits(self) -> jax.Array:
        """Returns float32 logits [B, L, V]."""
        return project(self.scale, (self.weights_DV, self.bias_V), self.hidden_BLD)


class Logits(nnx.Module):
    """Computes the logits W h + b in float32: the vocabulary projection.

    W is the token embedding where embeddings are tied, else a kernel of its own.
    """

    path = "logits/kernel"  # the path of W in `sharding.PARAMETERS`

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        shape = (config.embedding_width or config.d_model, config.vocab_size)
        self.kernel = None if config.tie_embeddings else Dense(config, "logits", shape, bias=False, rngs=rngs).kernel
        self.bias = nnx.Param(jnp.zeros(config.vocab_size)) if config.logits_bias else None
        self.scale = config.d_model**-0.5 if config.scale_logits else 1.0

    def weights_DV(self, token_VD: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
        """Returns W [D, V] in a dtype. `token_VD` is the token embedding."""
        return (token_VD.T if self.kernel is None else self.kernel[...]).astype(dtype)

    def __call__(self, hidden_BLD: jax.Array, weights_DV: jax.Array) -> Projection:
        """Returns the logits, not yet computed. The method `weights_DV` returns the W to pass."""
        return Projection(hidden_BLD, weights_DV, None if self.bias is None else self.bias[...], self.scale)

    def biased(self, logits_BLV: jax.Array) -> jax.Array:
        """Returns the logits W h + b, given W h."""
        return _biased(logits_BLV, None if self.bias is None else self.bias[...])


def project(scale: float, operands: tuple[jax.Array, jax.Array | None], hidden_BLD: jax.Array) -> jax.Array:
    """Returns float32 logits W (h * scale) + b, [B, L, V]. `operands` are W and b."""
    weights_DV, bias_V = operands
    return _biased(linear(Linear(path=Logits.path, dtype=jnp.float32), hidden_BLD * scale, weights_DV), bias_V)


def _biased(logits_BLV: jax.Array, bias_V: jax.Array | None) -> jax.Array:
    return constrain(logits_BLV if bias_V is None else add_bias(logits_BLV, bias_V), "BLV")
