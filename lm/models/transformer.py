"""The Transformer layer, and the stack of layers that all model families share.

Array names carry their shape: B batch, L length, S memory length, N distances, D model, H heads, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.attention import Attention, Kernel, KeysValues, Recorder, View, attend_flash
from lm.models.layers import Embedding, Execution, FeedForward, Norm
from lm.models.positions import angles, initial_bias, relative_bias
from lm.ops import flash
from lm.ops.dropout import Dropout, drop, make_dropout
from lm.ops.recompute import checkpointed

# Folded into the dropout key, so that each use of dropout in a stack has a mask of its own.
EMBEDDING, ATTENTION_WEIGHTS, ATTENTION_OUT, MLP_OUT, MLP_HIDDEN, MEMORY_WEIGHTS, MEMORY_OUT, FINAL = range(8)


class Layer(nnx.Module):
    """A Transformer layer: self-attention, cross-attention in a decoder with an encoder, and feed-forward network.

    Each has a residual and a norm. Post-norm is Norm(x + Sublayer(x)) (Vaswani et al., 2017, section 3.1); pre-norm is
    x + Sublayer(Norm(x)) (Xiong et al., 2020).
    """

    def __init__(self, config: ModelConfig, execution: Execution, *, has_memory: bool, rngs: nnx.Rngs):
        self.attention = Attention(config, execution, rngs=rngs)
        self.attention_norm = Norm(config)
        self.memory_attention = Attention(config, execution, rngs=rngs) if has_memory else None
        self.memory_attention_norm = Norm(config) if has_memory else None
        self.mlp = FeedForward(config, execution, rngs=rngs)
        self.mlp_norm = Norm(config)
        own_bias = config.has_relative_bias and not config.relative_shared
        self.relative_bias = initial_bias(config, rngs) if own_bias else None
        self.config = config

    def __call__(
        self,
        hidden_BLD: jax.Array,
        index: jax.Array | int,
        view: View,
        memory_view: View | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Computes one layer.

        Args:
            hidden_BLD: the output of the layer before.
            index: the number of the layer. It may be traced, so that all layers of a stack share one program.
            view: the mask of the self-attention; see `View`.
            memory_view: the mask of the cross-attention.
            dropout_key: None computes without dropout.

        Returns:
            The output [B, L, D], and the keys and values of the self-attention.
        """

        def dropout(rate: float, use: int) -> Dropout | None:
            return make_dropout(rate, dropout_key, index, use)

        config = self.config
        pre_norm = config.norm_position == "pre"
        if self.relative_bias is not None and view.bias_of is not None:
            view = dataclasses.replace(view, bias=view.bias_of(self.relative_bias[...]))

        inputs_BLD = self._attention_norm(hidden_BLD, index) if pre_norm else hidden_BLD
        mixed_BLD, keys_values = self.attention(inputs_BLD, view, dropout(config.attention_dropout, ATTENTION_WEIGHTS))
        hidden_BLD = hidden_BLD + drop(mixed_BLD, dropout(config.dropout, ATTENTION_OUT))
        hidden_BLD = hidden_BLD if pre_norm else self._attention_norm(hidden_BLD, index)

        if self.memory_attention is not None and self.memory_attention_norm is not None and memory_view is not None:
            norm = self.memory_attention_norm
            inputs_BLD = norm(hidden_BLD) if pre_norm else hidden_BLD
            weights_dropout = dropout(config.attention_dropout, MEMORY_WEIGHTS)
            mixed_BLD, _ = self.memory_attention(inputs_BLD, memory_view, weights_dropout)
            hidden_BLD = hidden_BLD + drop(mixed_BLD, dropout(config.dropout, MEMORY_OUT))
            hidden_BLD = hidden_BLD if pre_norm else norm(hidden_BLD)

        inputs_BLD = self.mlp_norm(hidden_BLD) if pre_norm else hidden_BLD
        mapped_BLD = self.mlp(inputs_BLD, dropout(config.mlp_dropout, MLP_HIDDEN))
        hidden_BLD = hidden_BLD + drop(mapped_BLD, dropout(config.dropout, MLP_OUT))
        return hidden_BLD if pre_norm else self.mlp_norm(hidden_BLD), keys_values

    def _attention_norm(self, hidden_BLD: jax.Array, index: jax.Array | int) -> jax.Array:
        """Applies the norm of the self-attention. Without `first_attention_norm`, layer 0 has none."""
        normed_BLD = self.attention_norm(hidden_BLD)
        return normed_BLD if self.config.first_attention_norm else jnp.where(index == 0, hidden_BLD, normed_BLD)


def _kernel(setting: str, asked: flash.Asked) -> Kernel | None:
    """Returns the flash attention of the platform; None where plain attention is used."""
    chosen = flash.choose(setting, asked)
    return functools.partial(attend_flash, chosen) if chosen else None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """The encoder's output, which the decoder attends to: hidden states [B, S, D] and int32 segments [B, S]."""

    hidden_BSD: jax.Array
    segments_BS: jax.Array


class Stack(nnx.Module):
    """An embedding and layers: bidirectional for an encoder, causal for a decoder."""

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
        """Makes the parameters. `has_memory` adds cross-attention; for `shares_tokens` see `Embedding`."""
        self.embedding = Embedding(config, execution, shares_tokens=shares_tokens, rngs=rngs)
        shared_bias = config.has_relative_bias and config.relative_shared
        self.relative_bias = initial_bias(config, rngs) if shared_bias else None

        def make_layer(key: jax.Array) -> Layer:
            return Layer(config, execution, has_memory=has_memory, rngs=nnx.Rngs(params=key))

        # One module whose parameters carry a leading layer axis.
        stored = 1 if config.share_layers else num_layers
        self.layers = jax.vmap(make_layer)(jax.random.split(rngs.params(), stored))
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
        """Returns the hidden state of every token after the last layer, [B, L, D] in the compute dtype.

        Args:
            tokens_BL: int32 token ids.
            segments_BL: int32; 0 is padding. A token attends to its own segment, and to that number in the memory.
            positions_BL: int32; they restart in every segment.
            token_types_BL: int32; ignored where the config has no token types.
            memory: the encoder's output, for a decoder.
            dropout_key: None computes without dropout.
            shared_VD: the token table, where another stack owns it.
        """
        config, execution = self.config, self.execution
        drops_weights = dropout_key is not None and config.attention_dropout > 0
        attention = execution.attention
        view, memory_view = self.views(segments_BL, positions_BL, memory, attention, drops_weights=drops_weights)

        def run_layer(hidden_BLD: jax.Array, layer_and_index: tuple[Layer, jax.Array | int]) -> tuple[jax.Array, None]:
            layer, index = layer_and_index
            return layer(hidden_BLD, index, at_layer(config, view, index), memory_view, dropout_key)[0], None

        scans = execution.unroll > 0 and not config.share_layers
        run_layer = checkpointed(run_layer, execution.remat, in_scan=scans and execution.unroll == 1)
        dropout = make_dropout(config.dropout, dropout_key, EMBEDDING)
        hidden_BLD = self.embedding(tokens_BL, positions_BL, token_types_BL, dropout, shared_VD)
        if scans:
            unroll = min(execution.unroll, self.num_layers)
            layers = (self.layers, jnp.arange(self.num_layers))
            hidden_BLD, _ = jax.lax.scan(run_layer, hidden_BLD, layers, unroll=unroll)
        else:
            for index, layer in enumerate(self.layer_list()):
                hidden_BLD, _ = run_layer(hidden_BLD, (layer, index))
        if self.final_norm is not None:
            hidden_BLD = self.final_norm(hidden_BLD)
        if config.final_dropout:
            hidden_BLD = drop(hidden_BLD, make_dropout(config.dropout, dropout_key, self.num_layers, FINAL))
        return hidden_BLD

    def views(
        self,
        segments_BL: jax.Array,
        positions_BL: jax.Array,
        memory: Memory | None,
        attention: str,
        *,
        drops_weights: bool = False,
    ) -> tuple[View, View | None]:
        """Returns the views of self-attention and of cross-attention over whole sequences.

        Args:
            attention: `auto`, `plain` or `flash`; see `TrainConfig`. What reads the attention weights needs `plain`.
            drops_weights: whether attention weights are dropped out.
        """
        length = segments_BL.shape[1]
        asked = flash.Asked(
            length=length,
            keys=length,
            head_dim=self.config.width_per_head,
            dtype=self.execution.dtype,
            has_bias=self.config.has_relative_bias,
            has_window=self.config.global_every > 1,
            drops_weights=drops_weights,
        )
        own = _kernel(attention, asked)
        columns_L = jnp.arange(length)
        # A distance is key column minus query column. A flash kernel takes one bias for each, from length down to
        # 1 - length.
        distance = length - jnp.arange(2 * length) if own else columns_L[None, :] - columns_L[:, None]
        view = View(
            segments_BL=segments_BL,
            key_segments_BS=segments_BL,
            causal=self.causal,
            bias=self.bias(distance),
            bias_of=functools.partial(relative_bias, distance=distance, config=self.config, causal=self.causal),
            kernel=own,
            angles_BLK=angles(self.config, positions_BL, local=False),
            local_angles_BLK=angles(self.config, positions_BL, local=True),
        )
        if memory is None:
            return view, None
        keys = memory.segments_BS.shape[1]
        to_memory = _kernel(attention, dataclasses.replace(asked, keys=keys, has_bias=False, has_window=False))
        return view, View(segments_BL, memory.segments_BS, memory_BSD=memory.hidden_BSD, kernel=to_memory)

    def bias(self, distance: jax.Array) -> jax.Array | None:
        """Returns the relative bias that all layers share, float32 [H, ...]; a distance is key minus query."""
        if self.relative_bias is None:
            return None
        return relative_bias(self.relative_bias[...], distance, self.config, causal=self.causal)

    def layer_list(self) -> list[Layer]:
        """Returns the layers in order. With `share_layers`, all are the same one."""
        return unstack(self.layers) * (self.num_layers if self.config.share_layers else 1)

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
        """Returns the attention weights of every layer, computed without dropout.

        The arguments are those of `__call__`.

        Returns:
            float32 [layers, B, H, L, L] of self-attention, and [layers, B, H, L, S] of cross-attention or None.
        """
        own, to_memory = Recorder(), Recorder()
        view, memory_view = self.views(segments_BL, positions_BL, memory, "plain")
        view = dataclasses.replace(view, kernel=own)
        memory_view = memory_view and dataclasses.replace(memory_view, kernel=to_memory)
        hidden_BLD = self.embedding(tokens_BL, positions_BL, token_types_BL, shared_VD=shared_VD)
        for index, layer in enumerate(self.layer_list()):
            hidden_BLD, _ = layer(hidden_BLD, index, at_layer(self.config, view, index), memory_view)
        return jnp.stack(own.weights_BHLS), jnp.stack(to_memory.weights_BHLS) if memory else None


def at_layer(config: ModelConfig, view: View, index: jax.Array | int) -> View:
    """Returns the view of one layer: every `global_every`-th layer attends to all tokens, the others to a window."""
    if config.global_every == 1:
        return view
    is_global = index % config.global_every == 0
    window = jnp.where(is_global, view.key_segments_BS.shape[1], config.window)
    if view.angles_BLK is None or view.local_angles_BLK is None:
        return dataclasses.replace(view, window=window)
    angles_BLK = jnp.where(is_global, view.angles_BLK, view.local_angles_BLK)
    return dataclasses.replace(view, window=window, angles_BLK=angles_BLK)


def unstack(layers: Layer) -> list[Layer]:
    """Returns the layers of a stack as a list."""
    leaves, structure = jax.tree.flatten(layers)
    # Indexing would cost memory: the gradient of one slice is as large as all layers together.
    return [jax.tree.unflatten(structure, layer) for layer in zip(*map(jnp.unstack, leaves), strict=True)]
