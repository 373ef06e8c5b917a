"""One Transformer: the embedding, a layer, and the stack of layers that every family shares.

Array names carry their shape: B batch, L length, D model, K head dim, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.attention import Attention
from lm.models.layers import (
    Execution,
    FeedForward,
    Norm,
    drop,
    make_dropout,
    rotary_angles,
    truncated_normal,
)
from lm.sharding import constrain, gather_weights

# What tells one use of dropout from another within a step.
EMBEDDING, ATTENTION_WEIGHTS, ATTENTION_OUT, MLP_OUT = range(4)


class Embedding(nnx.Module):
    """Tokens, learned positions and token types, summed, normalised and dropped out, as the config says."""

    def __init__(self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.token = truncated_normal(rngs, (config.vocab_size, config.d_model), config.init_std)
        learned = config.position == "learned"
        table = lambda rows: truncated_normal(rngs, (rows, config.d_model), config.init_std)  # noqa: E731
        self.position = table(config.max_length) if learned else None
        self.token_type = table(config.token_types) if config.token_types else None
        self.norm = Norm(config) if config.embedding_norm else None
        self.dtype = execution.dtype
        self.dropout = config.dropout

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array,
        token_types_BL: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        embedding = gather_weights({"embedding": self})["embedding"]
        hidden_BLD = embedding.token[...].astype(self.dtype)[tokens_BL]
        if embedding.position is not None:
            hidden_BLD += embedding.position[...].astype(self.dtype)[positions_BL]
        if embedding.token_type is not None:
            hidden_BLD += embedding.token_type[...].astype(self.dtype)[token_types_BL]
        hidden_BLD = constrain(hidden_BLD, "BLD")
        if embedding.norm is not None:
            hidden_BLD = embedding.norm(hidden_BLD)
        return drop(hidden_BLD, make_dropout(self.dropout, dropout_key, EMBEDDING))


class Layer(nnx.Module):
    """Self-attention and feed-forward, each with a residual and a norm.

    Post-norm is LayerNorm(x + Sublayer(x)) (Vaswani et al., 2017, section 3.1); pre-norm is
    x + Sublayer(Norm(x)) (Xiong et al., 2020).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = Norm(config)
        self.mlp = FeedForward(config, rngs=rngs)
        self.mlp_norm = Norm(config)
        self.config = config

    def __call__(
        self,
        hidden_BLD: jax.Array,
        index: jax.Array,
        *,
        segments_BL: jax.Array,
        angles: Callable[[jax.Array], jax.Array | None],
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        """Computes layer number `index` (a traced scalar: the layers of a stack share one program)."""
        config = self.config
        pre_norm = config.norm_position == "pre"
        is_global = index % config.global_every == 0
        make = lambda rate, use: make_dropout(rate, dropout_key, index, use)  # noqa: E731

        inputs_BLD = hidden_BLD
        if pre_norm:
            inputs_BLD = self.attention_norm(hidden_BLD)
            if not config.first_attention_norm:
                inputs_BLD = jnp.where(index == 0, hidden_BLD, inputs_BLD)
        attended_BLD = self.attention(
            inputs_BLD,
            segments_BL=segments_BL,
            window=None if config.global_every == 1 else jnp.where(is_global, segments_BL.shape[1], config.window),
            angles_BLK=angles(is_global),
            dropout=make(config.attention_dropout, ATTENTION_WEIGHTS),
        )
        hidden_BLD = hidden_BLD + drop(attended_BLD, make(config.dropout, ATTENTION_OUT))
        if not pre_norm:
            hidden_BLD = self.attention_norm(hidden_BLD)
        mapped_BLD = self.mlp(self.mlp_norm(hidden_BLD) if pre_norm else hidden_BLD)
        hidden_BLD = hidden_BLD + drop(mapped_BLD, make(config.dropout, MLP_OUT))
        return hidden_BLD if pre_norm else self.mlp_norm(hidden_BLD)


def make_stack(build: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs) -> Any:
    """Builds `num_layers` modules as one whose parameters carry a leading layer axis."""
    keys = jax.random.split(rngs.params(), num_layers)
    return jax.vmap(lambda key: build(nnx.Rngs(params=key)))(keys)


def run_stack(
    layers: Any,
    hidden: jax.Array,
    num_layers: int,
    execution: Execution,
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Carries `hidden` through the stacked layers by `apply(layer, hidden, index)`.

    The scan's `unroll` trades compile time and memory against overlap; `remat` decides what the
    backward pass recomputes.
    """

    def body(hidden: jax.Array, layer_and_index: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
        layer, index = layer_and_index
        return apply(gather_weights(layer), hidden, index), None

    if execution.remat != "none":
        policies = jax.checkpoint_policies
        policy = policies.dots_with_no_batch_dims_saveable if execution.remat == "dots" else None
        body = jax.checkpoint(body, policy=policy, prevent_cse=execution.unroll != 1)
    unroll = execution.unroll or num_layers
    hidden, _ = jax.lax.scan(body, hidden, (layers, jnp.arange(num_layers)), unroll=min(unroll, num_layers))
    return hidden


def layer_angles(config: ModelConfig, positions_BL: jax.Array) -> Callable[[jax.Array], jax.Array | None]:
    """Rotary angles by kind of layer: global ones turn with `rope_theta`, local ones with `rope_theta_local`."""
    if config.position != "rotary":
        return lambda is_global: None
    global_BLK = rotary_angles(positions_BL, config.rope_theta, config.width_per_head)
    if config.global_every == 1:
        return lambda is_global: global_BLK
    local_BLK = rotary_angles(positions_BL, config.rope_theta_local, config.width_per_head)
    return lambda is_global: jnp.where(is_global, global_BLK, local_BLK)
