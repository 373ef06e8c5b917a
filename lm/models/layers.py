"""The parts of a model: linear maps, norms, the embedding, the feed-forward network, the vocabulary projection.

Array names carry their shape: B batch, L length, D model, F feed-forward, V vocabulary.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.initial import initial
from lm.models.positions import sinusoids
from lm.ops import float8
from lm.ops.activation import activate
from lm.ops.dropout import Dropout, drop
from lm.ops.linear import Linear, add_bias, linear
from lm.ops.norm import normalize
from lm.sharding import constrain, look_up


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a model is computed. These settings change speed, memory and rounding, but not the model.

    Attributes:
        dtype: the dtype of activations, and of weights in use. Norms and softmax stay float32.
        remat: `none`, `dots` or `full`; see `TrainConfig`.
        unroll: layers in one iteration of the scan over layers; 0 uses no scan; see `TrainConfig`.
        attention: `auto`, `plain` or `flash`; see `TrainConfig`.
        float8: whether the linear maps of the layers multiply 8-bit floats; see `lm.ops.float8`.
    """

    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"
    float8: bool = False


class Dense(nnx.Module):
    """Computes x W + b. The kernel's first `inputs` axes are contracted with the last axes of x."""

    def __init__(
        self,
        config: ModelConfig,
        name: str,
        shape: tuple[int, ...],
        *,
        inputs: int = 1,
        bias: bool,
        gain: float = 1.0,
        residual: bool = False,
        float8: bool = False,
        rngs: nnx.Rngs,
    ):
        """Makes the weights.

        Args:
            name: the path of the parameters in `sharding.PARAMETERS`.
            shape: of the kernel.
            gain: a factor of the initial weights where `config.init` is `fan_in`.
            residual: whether the result is added to the residual stream; see `initial`.
            float8: see `Execution`.
        """
        self.kernel = initial(config, rngs, shape, gain * math.prod(shape[:inputs]) ** -0.5, residual=residual)
        self.bias = nnx.Param(jnp.zeros(shape[inputs:])) if bias else None
        self.inputs, self.name, self.float8 = inputs, name, float8

    def __call__(self, array: jax.Array, scale: float = 1.0) -> jax.Array:
        """Returns scale * (x W + b)."""
        product = float8.linear if self.float8 else linear
        out = product(Linear(self.inputs, scale, f"{self.name}/kernel"), array, self.kernel[...])
        return out if self.bias is None else add_bias(out, self.bias[...] * scale)


class Norm(nnx.Module):
    """Layer norm (Ba et al., 2016) or RMS norm (Zhang and Sennrich, 2019) over D, statistics in float32."""

    def __init__(self, config: ModelConfig, width: int = 0):
        """Makes the parameters. `width` is D where it is not `config.d_model`."""
        self.scale = nnx.Param(jnp.ones(width or config.d_model))
        with_bias = config.norm == "layernorm" and config.norm_bias
        self.bias = nnx.Param(jnp.zeros(width or config.d_model)) if with_bias else None
        self.centred = config.norm == "layernorm"
        self.eps = config.norm_eps

    def __call__(self, array: jax.Array) -> jax.Array:
        bias_D = None if self.bias is None else self.bias[...]
        return normalize(self.centred, self.eps, array, self.scale[...], bias_D)


class Embedding(nnx.Module):
    """Sums the embeddings of tokens, positions and token types; then norm and dropout. The config says which exist.

    With an `embedding_width`, a linear map to the width of the model follows (Lan et al., 2020, section 3.1).
    """

    def __init__(self, config: ModelConfig, execution: Execution, *, shares_tokens: bool, rngs: nnx.Rngs):
        """Makes the tables. With `shares_tokens` another module owns the token table and passes it to every call."""
        width = config.embedding_width or config.d_model

        def table(rows: int, fan_in_std: float) -> nnx.Param:
            return initial(config, rngs, (rows, width), fan_in_std)

        self.token = None if shares_tokens else table(config.vocab_size, 1.0)
        self.position = table(config.max_length, config.d_model**-0.5) if config.has_position_table else None
        self.token_type = table(config.token_types, config.d_model**-0.5) if config.token_types else None
        self.norm = Norm(config, width) if config.embedding_norm else None
        shape = (width, config.d_model)
        mapped = config.embedding_width > 0
        self.projection = Dense(config, "embedding/projection", shape, bias=True, rngs=rngs) if mapped else None
        self.config, self.dtype = config, execution.dtype

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array,
        token_types_BL: jax.Array | None = None,
        dropout: Dropout | None = None,
        shared_VD: jax.Array | None = None,
    ) -> jax.Array:
        token_VD = shared_VD if self.token is None else self.token[...]
        assert token_VD is not None
        hidden_BLD = look_up(token_VD, tokens_BL, self.dtype)
        if self.config.scale_embedding:
            hidden_BLD *= self.config.d_model**0.5
        if self.position is not None:
            hidden_BLD += look_up(self.position[...], positions_BL, self.dtype)
        elif self.config.position.startswith("sinusoidal"):
            hidden_BLD += sinusoids(self.config, positions_BL).astype(self.dtype)
        if self.token_type is not None and token_types_BL is not None:
            # A model with one token type, such as RoBERTa, gives it to both texts of a pair.
            types_BL = token_types_BL if self.config.token_types > 1 else jnp.zeros_like(token_types_BL)
            hidden_BLD += look_up(self.token_type[...], types_BL, self.dtype)
        hidden_BLD = constrain(hidden_BLD, "BLD")
        if self.norm is not None:
            hidden_BLD = self.norm(hidden_BLD)
        hidden_BLD = drop(hidden_BLD, dropout)
        return hidden_BLD if self.projection is None else constrain(self.projection(hidden_BLD), "BLD")


class FeedForward(nnx.Module):
    """Computes f(x W1 + b1) W2 + b2 (Vaswani et al., 2017, equation 2), or gated (f(x W1) * (x W3)) W2."""

    def __init__(self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs):
        width, hidden = config.d_model, config.d_ff
        dense = functools.partial(Dense, config, bias=config.mlp_bias, float8=execution.float8, rngs=rngs)
        self.up = dense("mlp/up", (width, hidden))
        self.gate = dense("mlp/gate", (width, hidden)) if config.gated else None
        self.down = dense("mlp/down", (hidden, width), residual=True)
        self.activation = config.activation

    def __call__(self, inputs_BLD: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        gate_BLF = None if self.gate is None else constrain(self.gate(inputs_BLD), "BLF")
        hidden_BLF = activate(self.activation, constrain(self.up(inputs_BLD), "BLF"), gate_BLF)
        return constrain(self.down(drop(hidden_BLF, dropout)), "BLD")
