"""One Transformer: the embedding, a layer, and the stack of layers that every family shares.

Array names carry their shape: B batch, L length, S memory length, T decoded length, D model, H heads, K head dim,
V vocabulary, R relative position buckets, N distances between columns.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models import flash
from lm.models.attention import Attention, attend, relative_buckets
from lm.models.layers import (
    Execution,
    FeedForward,
    Norm,
    drop,
    initial,
    make_dropout,
    rotary_angles,
)
from lm.sharding import constrain, look_up

# What tells one use of dropout from another within a stack.
EMBEDDING, ATTENTION_WEIGHTS, ATTENTION_OUT, MLP_OUT, MLP_HIDDEN, MEMORY_WEIGHTS, MEMORY_OUT, FINAL = range(8)

# (attention, inputs_BLD, index of the layer, what its weights go through, such as dropout) -> [B, L, D]
Attend = Callable[[Attention, jax.Array, jax.Array | int, Callable[[jax.Array], jax.Array] | None], jax.Array]


class Embedding(nnx.Module):
    """Tokens, learned positions and token types, summed, normalised and dropped out, as the config says."""

    def __init__(self, config: ModelConfig, execution: Execution, *, shares_tokens: bool, rngs: nnx.Rngs):
        """`shares_tokens` leaves the token table to another embedding, which is handed in at every call."""
        table = lambda rows, std: initial(config, rngs, (rows, config.d_model), std)  # noqa: E731
        self.token = None if shares_tokens else table(config.vocab_size, 1.0)
        self.position = table(config.max_length, config.d_model**-0.5) if config.position == "learned" else None
        self.token_type = table(config.token_types, config.d_model**-0.5) if config.token_types else None
        self.norm = Norm(config) if config.embedding_norm else None
        self.dtype = execution.dtype
        self.dropout = config.dropout

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array,
        token_types_BL: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        shared_VD: jax.Array | None = None,
    ) -> jax.Array:
        token_VD = shared_VD if self.token is None else self.token[...]
        assert token_VD is not None
        hidden_BLD = look_up(token_VD, tokens_BL, self.dtype)
        if self.position is not None:
            hidden_BLD += look_up(self.position[...], positions_BL, self.dtype)
        if self.token_type is not None and token_types_BL is not None:
            hidden_BLD += look_up(self.token_type[...], token_types_BL, self.dtype)
        hidden_BLD = constrain(hidden_BLD, "BLD")
        if self.norm is not None:
            hidden_BLD = self.norm(hidden_BLD)
        return drop(hidden_BLD, make_dropout(self.dropout, dropout_key, EMBEDDING))


class Layer(nnx.Module):
    """Self-attention, in a decoder beside an encoder attention to its output, and feed-forward.

    Each has a residual and a norm. Post-norm is LayerNorm(x + Sublayer(x)) (Vaswani et al., 2017, section 3.1);
    pre-norm is x + Sublayer(Norm(x)) (Xiong et al., 2020).
    """

    def __init__(self, config: ModelConfig, *, has_memory: bool, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = Norm(config)
        self.memory_attention = Attention(config, rngs=rngs) if has_memory else None
        self.memory_attention_norm = Norm(config) if has_memory else None
        self.mlp = FeedForward(config, rngs=rngs)
        self.mlp_norm = Norm(config)
        self.config = config

    def __call__(
        self,
        hidden_BLD: jax.Array,
        index: jax.Array | int,
        attend_self: Attend,
        attend_memory: Attend | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Computes layer number `index`, possibly traced: the layers of a stack share one program.

        How it attends, to whole sequences or to a cache, is the stack's affair.
        """
        config = self.config
        pre_norm = config.norm_position == "pre"
        make = lambda rate, use: make_dropout(rate, dropout_key, index, use)  # noqa: E731

        def sublayer(hidden_BLD: jax.Array, norm: Callable, compute: Callable, use: int) -> jax.Array:
            mapped_BLD = compute(norm(hidden_BLD) if pre_norm else hidden_BLD)
            hidden_BLD = hidden_BLD + drop(mapped_BLD, make(config.dropout, use))
            return hidden_BLD if pre_norm else norm(hidden_BLD)

        def attention_norm(hidden_BLD: jax.Array) -> jax.Array:
            normed_BLD = self.attention_norm(hidden_BLD)
            return normed_BLD if config.first_attention_norm else jnp.where(index == 0, hidden_BLD, normed_BLD)

        def attend(attention: Attention, how: Attend, use: int) -> Callable[[jax.Array], jax.Array]:
            return lambda inputs_BLD: how(attention, inputs_BLD, index, make(config.attention_dropout, use))

        compute = attend(self.attention, attend_self, ATTENTION_WEIGHTS)
        hidden_BLD = sublayer(hidden_BLD, attention_norm, compute, ATTENTION_OUT)
        if self.memory_attention is not None:
            assert self.memory_attention_norm is not None
            assert attend_memory is not None
            compute = attend(self.memory_attention, attend_memory, MEMORY_WEIGHTS)
            hidden_BLD = sublayer(hidden_BLD, self.memory_attention_norm, compute, MEMORY_OUT)
        compute = lambda inputs_BLD: self.mlp(inputs_BLD, make(config.mlp_dropout, MLP_HIDDEN))  # noqa: E731
        return sublayer(hidden_BLD, self.mlp_norm, compute, MLP_OUT)


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a decoder reads of its encoder: hidden states [B, S, D] and their int32 segments [B, S]."""

    hidden_BSD: jax.Array
    segments_BS: jax.Array


class Stack(nnx.Module):
    """An embedding and layers, bidirectional (an encoder) or causal (a decoder)."""

    def __init__(
        self,
        config: ModelConfig,
        execution: Execution,
        *,
        num_layers: int,
        causal: bool = False,
        has_memory: bool = False,
        shares_tokens: bool = False,
        rngs: nnx.Rngs,
    ):
        """`has_memory` makes a decoder that attends to an encoder; for `shares_tokens` see `Embedding`."""
        self.embedding = Embedding(config, execution, shares_tokens=shares_tokens, rngs=rngs)
        shape = (config.relative_buckets, config.num_heads)
        relative = config.position == "relative"
        self.relative_bias = initial(config, rngs, shape, config.d_model**-0.5) if relative else None
        self.layers = make_stack(lambda rngs: Layer(config, has_memory=has_memory, rngs=rngs), num_layers, rngs)
        self.final_norm = Norm(config) if config.final_norm else None
        self.config, self.execution = config, execution
        self.num_layers, self.causal = num_layers, causal

    def __call__(
        self,
        tokens_BL: jax.Array,
        segments_BL: jax.Array,
        positions_BL: jax.Array,
        token_types_BL: jax.Array | None = None,
        *,
        memory: Memory | None = None,
        dropout_key: jax.Array | None = None,
        shared_VD: jax.Array | None = None,
    ) -> jax.Array:
        """Contextual representations of every token.

        Args:
            tokens_BL: int32 token ids.
            segments_BL: int32; tokens attend within equal segments, and to equal segments of the memory; 0 is
                padding.
            positions_BL: int32, restarting in every segment.
            token_types_BL: int32; ignored where the config has no token types.
            memory: the encoder's output, for a decoder.
            dropout_key: None computes without dropout.
            shared_VD: the token table, where another stack owns it.

        Returns:
            [B, L, D] in the compute dtype.
        """
        hidden_BLD = self.embedding(tokens_BL, positions_BL, token_types_BL, dropout_key, shared_VD)
        drops = dropout_key is not None and self.config.attention_dropout > 0
        attends = self._attends(segments_BL, positions_BL, memory, needs_weights=drops)

        def apply(layer: Layer, hidden_BLD: jax.Array, index: jax.Array | int) -> jax.Array:
            return layer(hidden_BLD, index, *attends, dropout_key)

        hidden_BLD = run_stack(self.layers, hidden_BLD, self.num_layers, self.execution, apply)
        if self.final_norm is not None:
            hidden_BLD = self.final_norm(hidden_BLD)
        if self.config.final_dropout:
            hidden_BLD = drop(hidden_BLD, make_dropout(self.config.dropout, dropout_key, self.num_layers, FINAL))
        return hidden_BLD

    def attention_weights(
        self,
        tokens_BL: jax.Array,
        segments_BL: jax.Array,
        positions_BL: jax.Array,
        token_types_BL: jax.Array | None = None,
        *,
        memory: Memory | None = None,
        shared_VD: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """What the attentions of a call without dropout multiply the values by; arguments as there.

        The layers run one by one, on a call's own code, and the weights are kept where dropout would act on them.

        Returns:
            float32 [layers, B, H, L, L] of self-attention, and [layers, B, H, L, S] of attention to the memory.
        """
        hidden_BLD = self.embedding(tokens_BL, positions_BL, token_types_BL, shared_VD=shared_VD)

        def keep(how: Attend, kept: list[jax.Array]) -> Attend:
            def look(weights_BHLS: jax.Array) -> jax.Array:
                kept.append(weights_BHLS)
                return weights_BHLS

            return lambda attention, inputs_BLD, index, _: how(attention, inputs_BLD, index, look)

        own, of_memory = [], []
        attend_self, attend_memory = self._attends(segments_BL, positions_BL, memory, needs_weights=True)
        for index, layer in enumerate(unstack(self.layers)):
            attends = keep(attend_self, own), keep(attend_memory, of_memory)
            hidden_BLD = layer(hidden_BLD, index, *attends)
        return jnp.stack(own), jnp.stack(of_memory) if of_memory else None

    def _attends(
        self, segments_BL: jax.Array, positions_BL: jax.Array, memory: Memory | None, *, needs_weights: bool
    ) -> tuple[Attend, Attend]:
        """How the layers attend to whole sequences: to their own, and to the memory."""
        angles = self.angles(positions_BL)
        length = segments_BL.shape[1]
        own, to_memory = (
            flash.choose(
                self.execution.attention,
                lengths=(length, keys),
                head_dim=self.config.width_per_head,
                dtype=self.execution.dtype,
                has_bias=has_bias,
                needs_weights=needs_weights,
            )
            for keys, has_bias in (
                (length, self.relative_bias is not None),
                (memory.segments_BS.shape[1] if memory else length, False),
            )
        )
        if own:
            bias = {"curve_HN": self.curve(length)} if self.relative_bias is not None else {}
        else:
            bias = {"bias_HLS": self.bias(jnp.arange(length), length)}

        def attend_self(attention: Attention, inputs_BLD: jax.Array, index: Any, dropout: Any) -> jax.Array:
            angles_BLK = angles(index)
            return attention(
                inputs_BLD,
                attention.keys_values(inputs_BLD, angles_BLK),
                angles_BLK=angles_BLK,
                backend=own or attend,
                segments_BL=segments_BL,
                memory_segments_BS=segments_BL,
                causal=self.causal,
                window=self.window(index, length),
                dropout=dropout,
                **bias,
            )

        def attend_memory(attention: Attention, inputs_BLD: jax.Array, index: Any, dropout: Any) -> jax.Array:
            del index
            assert memory is not None
            return attention(
                inputs_BLD,
                attention.keys_values(memory.hidden_BSD),
                backend=to_memory or attend,
                segments_BL=segments_BL,
                memory_segments_BS=memory.segments_BS,
                dropout=dropout,
            )

        return attend_self, attend_memory

    def window(self, index: jax.Array | int, length: int) -> jax.Array | int | None:
        config = self.config
        if config.global_every == 1:
            return None
        return jnp.where(index % config.global_every == 0, length, config.window)

    def angles(self, positions_BL: jax.Array) -> Callable[[jax.Array | int], jax.Array | None]:
        """Rotary angles of a layer: global ones turn with `rope_theta`, local ones with `rope_theta_local`."""
        config = self.config
        if config.position != "rotary":
            return lambda index: None
        global_BLK = rotary_angles(positions_BL, config.rope_theta, config.width_per_head)
        if config.global_every == 1:
            return lambda index: global_BLK
        local_BLK = rotary_angles(positions_BL, config.rope_theta_local, config.width_per_head)
        return lambda index: jnp.where(index % config.global_every == 0, global_BLK, local_BLK)

    def bias(self, columns_L: jax.Array, length: int) -> jax.Array | None:
        """The relative position bias of queries at some columns, which all layers share: float32 [H, L, S].

        Columns tell the distance within a segment, and nothing is seen beyond it.
        """
        if self.relative_bias is None:
            return None
        chosen_LSR = self._buckets(jnp.arange(length)[None, :] - columns_L[:, None])
        return jnp.einsum("LSR,RH->HLS", chosen_LSR, self.relative_bias[...])

    def curve(self, length: int) -> jax.Array:
        """The relative position bias over distances, query column minus key column: float32 [H, 2 * length]."""
        assert self.relative_bias is not None
        chosen_NR = self._buckets(length - jnp.arange(2 * length))
        return jnp.einsum("NR,RH->HN", chosen_NR, self.relative_bias[...])

    def _buckets(self, distance: jax.Array) -> jax.Array:
        """Float32 [..., R]: one at the bucket of each distance, key column minus query column."""
        config = self.config
        buckets = relative_buckets(
            distance,
            causal=self.causal,
            num_buckets=config.relative_buckets,
            max_distance=config.relative_max_distance,
        )
        # For a product, whose gradient is one too: adding up rows by index is slow on every device.
        return jax.nn.one_hot(buckets, config.relative_buckets)


def make_stack(build: Callable[[nnx.Rngs], nnx.Module], num_layers: int, rngs: nnx.Rngs) -> Any:
    """Builds `num_layers` modules as one whose parameters carry a leading layer axis."""
    keys = jax.random.split(rngs.params(), num_layers)
    return jax.vmap(lambda key: build(nnx.Rngs(params=key)))(keys)


def unstack(layers: Any) -> list[Any]:
    """The modules that `make_stack` stacked."""
    leaves, structure = jax.tree.flatten(layers)
    # Not by slices: the gradient of each would be as large as all layers together.
    return [jax.tree.unflatten(structure, layer) for layer in zip(*map(jnp.unstack, leaves), strict=True)]


def run_stack(
    layers: Any,
    hidden: jax.Array,
    num_layers: int,
    execution: Execution,
    apply: Callable[[Any, jax.Array, jax.Array | int], jax.Array],
) -> jax.Array:
    """Carries `hidden` through the stacked layers by `apply(layer, hidden, index)`.

    The scan's `unroll` trades compile time and memory against overlap; with 0 there is no scan, and what the backward
    pass needs is not copied into one array for all layers. `remat` decides what the backward pass recomputes.
    """

    def body(hidden: jax.Array, layer_and_index: tuple[Any, jax.Array | int]) -> tuple[jax.Array, None]:
        layer, index = layer_and_index
        return apply(layer, hidden, index), None

    if execution.remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if execution.remat == "dots" else None
        body = jax.checkpoint(body, policy=policy, prevent_cse=execution.unroll != 1)
    if execution.unroll:
        unroll = min(execution.unroll, num_layers)
        return jax.lax.scan(body, hidden, (layers, jnp.arange(num_layers)), unroll=unroll)[0]
    for index, layer in enumerate(unstack(layers)):
        hidden, _ = body(hidden, (layer, index))
    return hidden
