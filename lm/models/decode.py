"""A decoder with a KV cache: each call reads one token of each beam and returns the logits of the next one.

Each row of a `Cache` has its own position, so rows may start and end at different times.

Array names carry their shape: B rows, N beams of a row, S source length, P prompt length, T positions of the cache,
D model, H heads, K head dim, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.config import ModelConfig
from lm.models.adapters import bare, choose
from lm.models.attention import KeysValues, View, attend_pinned, attend_stored
from lm.models.layers import Dense, Embedding, Norm
from lm.models.logits import Logits
from lm.models.positions import angles, relative_bias
from lm.models.seq2seq import Seq2Seq
from lm.models.transformer import Layer, Stack, at_layer
from lm.ops import few_rows, key_cache
from lm.ops.linear import add_bias
from lm.sharding import constrain, gathered


class Sources(NamedTuple):
    """The inputs of an encoder: int32 [B, S]. Segment 1 is text, segment 0 is padding."""

    tokens_BS: jax.Array | np.ndarray
    segments_BS: jax.Array | np.ndarray


class Prompts(NamedTuple):
    """The tokens that a decoder continues: int32 [B, P], and the length of each prompt, int32 [B], which may be 0."""

    tokens_BP: jax.Array | np.ndarray
    lengths_B: jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The KV cache. The first axis of every array is the row.

    Keys and values stay where they were written. Each beam stores the cache slot that holds its tokens, so reordering
    beams copies indices, not keys.

    Attributes:
        layers: keys and values of each layer, in the layout of `key_cache.store` with S = T * N. The N slots of a
            position are neighbours.
        slots_BNT: int32, the slot that holds a beam's token at each position.
        position_B: int32, how many tokens are cached.
        memory: keys and values of the encoder's output for each layer; empty without an encoder.
        memory_segments_BS: int32, 1 where the source has a token, else 0; None without an encoder.
    """

    layers: tuple[KeysValues, ...]
    slots_BNT: jax.Array
    position_B: jax.Array
    memory: tuple[KeysValues, ...]
    memory_segments_BS: jax.Array | None

    def branch(self, parent_BN: jax.Array) -> "Cache":
        """Returns the cache after a reordering of the beams: beam n continues beam `parent_BN[:, n]`."""
        slots_BNT = jnp.take_along_axis(self.slots_BNT, parent_BN[:, :, None], axis=1)
        return dataclasses.replace(self, slots_BNT=slots_BNT)


class DenseInColumns(nnx.Module):
    """Computes a `Dense` with `lm.ops.few_rows`. It has no gradient."""

    def __init__(self, dense: Dense, dtype: jax.typing.DTypeLike):
        kernel = dense.kernel[...].astype(dtype)
        self.outputs = kernel.shape[dense.inputs :]
        self.blocks = nnx.Param(few_rows.in_columns(kernel.reshape(-1, math.prod(self.outputs))))
        self.bias, self.inputs = dense.bias, dense.inputs

    def __call__(self, array: jax.Array, scale: float = 1.0) -> jax.Array:
        """Returns scale * (x W + b), as `Dense` does."""
        leading = array.shape[: array.ndim - self.inputs]
        out = few_rows.by_columns(array.reshape(*leading, -1), self.blocks[...], array.dtype)
        out = out.reshape(*leading, *self.outputs) * scale
        return out if self.bias is None else add_bias(out, self.bias[...] * scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoder:
    """The weights of a model, in the layout that a loop over tokens reads fastest. `make_decoder` makes it.

    Attributes:
        encoder: None where the model is a decoder alone.
        embedding, layers, final_norm, logits: the parts of the decoder. Its layers are separate, not stacked.
        relative_bias_RH: the relative bias of each bucket; None where the layers do not share one.
        tokens_VD: the token embedding.
        weights: the vocabulary projection, [D, V] or in blocks of columns.
        config: the model's config.
        dtype: the dtype of the activations.
    """

    encoder: Stack | None
    embedding: Embedding
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    logits: Logits
    relative_bias_RH: jax.Array | None
    tokens_VD: jax.Array
    weights: jax.Array
    config: ModelConfig = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})

    def for_rows(self, adapter_B: jax.Array | np.ndarray | None) -> "Decoder":
        """Returns the decoder whose rows use these adapters; None where the model has none."""
        return self if adapter_B is None else choose(self, jnp.asarray(adapter_B)[:, None])

    def begin(
        self, sources: Sources | None, prompts: Prompts, *, positions: int, num_beams: int, source_length: int = 0
    ) -> Cache:
        """Returns a KV cache that holds the sources and the prompts. Each takes one forward pass.

        Args:
            sources: the encoder's inputs; None for a decoder alone.
            prompts: the decoder's first inputs. The first call of the decoder takes the token after them.
            positions: T, the capacity of the cache in tokens, prompts included.
            num_beams: N.
            source_length: S, the capacity for a source in tokens. Shorter sources are padded to it.
        """
        memory, segments_BS = (), None
        if sources is not None:
            segments_BS = (jnp.asarray(sources.segments_BS) > 0).astype(jnp.int32)
            # Padded after the encoder has read it: a short source costs the encoder less.
            more = ((0, 0), (0, max(0, source_length - segments_BS.shape[1])))
            hidden_BSD = jnp.pad(self._encode(sources, segments_BS), (*more, (0, 0)))
            segments_BS = jnp.pad(segments_BS, more)
            memory = self._memory(hidden_BSD, num_beams)
        rows, length = prompts.tokens_BP.shape
        in_block = key_cache.positions_in_block(positions, num_beams)
        positions = -(-positions // in_block) * in_block
        slots_BNT = jnp.zeros((rows, num_beams, positions), jnp.int32)
        cache = Cache((), slots_BNT, jnp.asarray(prompts.lengths_B, jnp.int32), memory, segments_BS)
        shape_BTNHK = (rows, positions, num_beams, self.config.num_heads, self.config.width_per_head)
        empty = jnp.zeros(shape_BTNHK, self.dtype)
        read = self._read_prompts(prompts, cache) if length else [None] * len(self.layers)
        layers = []
        for keys_values in read:
            # All beams read the prompt in slot 0, where `slots_BNT` is 0.
            stored = [empty.at[:, :length, 0].set(new) for new in keys_values] if keys_values else [empty, empty]
            key, value = (array.reshape(rows, -1, *shape_BTNHK[3:]) for array in stored)
            key, value_BHSK = key_cache.store(key, value, in_block * num_beams)
            layers.append((constrain(key, "BHKS" if key.ndim == 4 else "BHGKC"), constrain(value_BHSK, "BHSK")))
        return dataclasses.replace(cache, layers=tuple(layers))

    def _encode(self, sources: Sources, segments_BS: jax.Array) -> jax.Array:
        """Returns the encoder's output for the sources, [B, S, D]."""
        assert self.encoder is not None
        positions_BS = jnp.broadcast_to(jnp.arange(segments_BS.shape[1])[None], segments_BS.shape)
        return self.encoder(jnp.asarray(sources.tokens_BS), segments_BS, positions_BS)

    def _memory(self, hidden_BSD: jax.Array, num_beams: int) -> tuple[KeysValues, ...]:
        """Returns each layer's keys and values of the encoder's output, which the beams of a row share."""
        block = key_cache.memory_block(hidden_BSD.shape[1], num_beams)
        attentions = [layer.memory_attention for layer in self.layers]
        return tuple(
            key_cache.store(*attention.keys_values(hidden_BSD), block) for attention in attentions if attention
        )

    def _read_prompts(self, prompts: Prompts, cache: Cache) -> list[KeysValues | None]:
        """Returns each layer's keys and values [B, P, H, K]. Columns beyond a prompt's length are never read."""
        tokens_BP = jnp.asarray(prompts.tokens_BP)
        columns_P = jnp.arange(tokens_BP.shape[1])
        positions_BP = jnp.broadcast_to(columns_P[None], tokens_BP.shape)
        segments_BP = (positions_BP < cache.position_B[:, None]).astype(jnp.int32)
        distance_PP = columns_P[None, :] - columns_P[:, None]
        bias_of = functools.partial(relative_bias, distance=distance_PP, config=self.config, causal=True)
        view = View(
            segments_BL=segments_BP,
            key_segments_BS=segments_BP,
            causal=True,
            bias=self._shared(bias_of),
            bias_of=bias_of,
            angles_BLK=angles(self.config, positions_BP, local=False),
            local_angles_BLK=angles(self.config, positions_BP, local=True),
        )
        hidden_BPD = self.embedding(tokens_BP, positions_BP, shared_VD=self.tokens_VD)
        read: list[KeysValues | None] = []
        for index, layer in enumerate(self.layers):
            own = at_layer(self.config, view, index)
            hidden_BPD, keys_values = layer(hidden_BPD, index, own, _memory_view(tokens_BP, cache, index))
            read.append(keys_values)
        return read

    def __call__(self, tokens_BN: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Returns float32 logits [B, N, V] after one more token of each beam, and the cache with that token."""
        num_beams, positions = cache.slots_BNT.shape[1:]
        columns_T = jnp.arange(positions)
        age_BT = cache.position_B[:, None] - columns_T[None]
        own_N = jnp.arange(num_beams, dtype=jnp.int32)
        slots_BNT = jnp.where((age_BT == 0)[:, None], own_N[None, :, None], cache.slots_BNT)

        def bias_of(table_RH: jax.Array) -> jax.Array:
            bias_HBT = relative_bias(table_RH, -age_BT, self.config, causal=True)
            return jnp.repeat(bias_HBT.swapaxes(0, 1), num_beams, axis=2)[:, :, None]

        positions_BN = jnp.broadcast_to(cache.position_B[:, None], tokens_BN.shape)
        view = View(
            segments_BL=jnp.ones_like(tokens_BN),
            key_segments_BS=jnp.ones((len(tokens_BN), positions * num_beams), jnp.int32),
            bias=self._shared(bias_of),
            bias_of=bias_of,
            angles_BLK=angles(self.config, positions_BN, local=False),
            local_angles_BLK=angles(self.config, positions_BN, local=True),
            columns_B=cache.position_B * num_beams,
            kernel=attend_stored,
        )
        is_own_BNTN = slots_BNT[..., None] == own_N[None, None, None]
        hidden_BND = self.embedding(tokens_BN, positions_BN, shared_VD=self.tokens_VD)
        layers = []
        for index, layer in enumerate(self.layers):
            window = positions if index % self.config.global_every == 0 else self.config.window
            seen_BT = (age_BT >= 0) & (age_BT <= window)
            visible_BNS = (is_own_BNTN & seen_BT[:, None, :, None]).reshape(*tokens_BN.shape, -1)
            own = at_layer(self.config, view, index)
            own = dataclasses.replace(own, window=None, visible_BLS=visible_BNS, cache=cache.layers[index])
            memory_view = _memory_view(tokens_BN, cache, index)
            hidden_BND, keys_values = layer(hidden_BND, index, own, memory_view)
            layers.append(keys_values)
        if self.final_norm is not None:
            hidden_BND = self.final_norm(hidden_BND)
        cache = dataclasses.replace(cache, layers=tuple(layers), slots_BNT=slots_BNT, position_B=cache.position_B + 1)
        return self._project(hidden_BND), cache

    def _shared(self, bias_of: Callable[[jax.Array], jax.Array]) -> jax.Array | None:
        """Returns the relative bias that all layers share; None where there is none."""
        return None if self.relative_bias_RH is None else bias_of(self.relative_bias_RH)

    def _project(self, hidden_BND: jax.Array) -> jax.Array:
        """Returns float32 logits [B, N, V], by the vocabulary projection."""
        if self.weights.ndim == 2:
            return self.logits(hidden_BND, self.weights).logits()
        return self.logits.biased(few_rows.by_columns(hidden_BND * self.logits.scale, self.weights, jnp.float32))


def make_decoder(model: Seq2Seq, rows: int) -> Decoder:
    """Returns the decoder of a model, its weights laid out for `rows` tokens a call: rows times beams."""
    stack, dtype = model.decoder, model.decoder.execution.dtype
    few = few_rows.are_few(rows)
    weights_DV = gathered(model.logits.path, model.logits.weights_DV(model.tokens_VD, dtype))
    return Decoder(
        encoder=model.encoder,
        embedding=stack.embedding,
        layers=tuple((_in_columns if few else _in_dtype)(layer, dtype) for layer in stack.layer_list()),
        final_norm=stack.final_norm,
        logits=model.logits,
        relative_bias_RH=None if stack.relative_bias is None else stack.relative_bias[...],
        tokens_VD=model.tokens_VD,
        weights=few_rows.in_columns(weights_DV) if few else jax.lax.optimization_barrier(weights_DV),
        config=stack.config,
        dtype=dtype,
    )


def _in_columns(layer: Layer, dtype: jax.typing.DTypeLike) -> Layer:
    """Returns a layer with its kernels in blocks of columns.

    The key and value kernels of the cross-attention are left out: they multiply all rows of a source.
    """
    memory = layer.memory_attention
    of_memory = [] if memory is None else [bare(memory.key), bare(memory.value)]

    def lay_out(part: Dense | jax.Array) -> Dense | DenseInColumns | jax.Array:
        if not isinstance(part, Dense) or any(part is dense for dense in of_memory):
            return part
        return DenseInColumns(part, dtype)

    return jax.tree.map(lay_out, layer, is_leaf=lambda part: isinstance(part, Dense))


def _in_dtype(layer: Layer, dtype: jax.typing.DTypeLike) -> Layer:
    """Returns a layer with its kernels in the dtype that they are multiplied in.

    A loop over tokens would convert them at every token. The barrier keeps the compiler from moving that into the loop.
    """

    def convert(part: Dense | jax.Array) -> Dense | jax.Array:
        if not isinstance(part, Dense) or part.kernel[...].dtype == dtype:
            return part
        converted = nnx.clone(part)
        converted.kernel = nnx.Param(jax.lax.optimization_barrier(part.kernel[...].astype(dtype)))
        return converted

    return jax.tree.map(convert, layer, is_leaf=lambda part: isinstance(part, Dense))


def _memory_view(tokens_BL: jax.Array, cache: Cache, index: int) -> View | None:
    """Returns the view of a layer's cross-attention: each token attends to the source. None without an encoder."""
    if not cache.memory or cache.memory_segments_BS is None:
        return None
    return View(jnp.ones_like(tokens_BL), cache.memory_segments_BS, cache=cache.memory[index], kernel=attend_pinned)
