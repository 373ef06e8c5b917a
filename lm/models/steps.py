"""Decoding token by token.

Array names carry their shape: B sequences, N hypotheses of each (beams), S source length, T decoded length, D model,
H heads, K head dim, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm.models.attention import Attention, attend
from lm.models.layers import COLUMNS, Dense, FewRows, Logits, in_columns
from lm.models.transformer import Memory, Stack, unstack
from lm.sharding import constrain, gathered, is_trivial, platform

_FEW = 8  # rows; products of more do not gain from kernels in columns, nor does that of one


class Cache(NamedTuple):
    """What was computed of the tokens so far.

    Keys and values stay where they were written when hypotheses branch: instead of moving them, each hypothesis
    remembers in whose place its own lie.

    Attributes:
        layers: of each, keys and values as they are `stored`, S = T * N: the N of a position beside one another.
        places_BNT: int32, which of the N places at each position belongs to a hypothesis.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    places_BNT: jax.Array

    def branch(self, parent_BN: jax.Array) -> "Cache":
        """Every hypothesis goes on from another one, or from itself."""
        return self._replace(places_BNT=jnp.take_along_axis(self.places_BNT, parent_BN[:, :, None], axis=1))


def stored(key_BSHK: jax.Array, value_BSHK: jax.Array, columns: int) -> tuple[jax.Array, jax.Array]:
    """Keys [B, H, K, S], or [B, H, G, K, C] in blocks of C `columns`, and values [B, H, S, K].

    So products with few queries read them fastest. Keys of more than 64 columns XLA's CPU compiler copies before it
    multiplies, which takes three times as long as the product.
    """
    key_BHKS, value_BHSK = key_BSHK.transpose(0, 2, 3, 1), value_BSHK.swapaxes(1, 2)
    if columns == key_BHKS.shape[3]:
        return key_BHKS, value_BHSK
    return key_BHKS.reshape(*key_BHKS.shape[:3], -1, columns).swapaxes(2, 3), value_BHSK


def _written(key: jax.Array, new_BHKN: jax.Array, column: jax.Array) -> jax.Array:
    """Stored keys with new ones from a column on, all within a block."""
    if key.ndim == 4:
        return jax.lax.dynamic_update_slice_in_dim(key, new_BHKN, column, axis=3)
    columns = key.shape[-1]
    return jax.lax.dynamic_update_slice(key, new_BHKN[:, :, None], (0, 0, column // columns, 0, column % columns))


def _attend(query_BNHK: jax.Array, key: jax.Array, value_BHSK: jax.Array, **visibility: Any) -> jax.Array:
    """`attend` to what was `stored`."""
    # The swap back to [B, S, H, K] is merged into the product.
    return attend(query_BNHK, key, value_BHSK.swapaxes(1, 2), score=_score, **visibility)


def _score(query_BNHK: jax.Array, key: jax.Array) -> jax.Array:
    """Float32 scores [B, H, N, S]."""
    if key.ndim == 4:
        return jnp.einsum("BNHK,BHKS->BHNS", query_BNHK, key, preferred_element_type=jnp.float32)
    # Queries are repeated, so that blocks multiply as one more axis of the batch.
    query_BHGNK = jnp.repeat(query_BNHK.swapaxes(1, 2)[:, :, None], key.shape[2], axis=2)
    scores_BHGNC = jnp.einsum("BHGNK,BHGKC->BHGNC", query_BHGNK, key, preferred_element_type=jnp.float32)
    scores_BHNGC = scores_BHGNC.swapaxes(2, 3)
    return scores_BHNGC.reshape(*scores_BHNGC.shape[:3], -1)


def _for_few_rows(layer: nnx.Module, dtype: Any) -> None:
    """Lays out the kernels of a layer in columns."""
    for _, module in list(nnx.iter_modules(layer)):
        for name, part in list(vars(module).items()):
            if isinstance(part, Dense):
                setattr(module, name, FewRows(part, dtype))


class Steps:
    """A decoder that takes one token at a time and keeps the keys and values of those before.

    What no step changes is computed here, once, and stays out of the loop: each layer's weights as arrays of
    their own, those of the output projection in the order in which few rows read them fastest, and the keys and values
    of the memory, which the hypotheses of a sequence share.
    """

    def __init__(
        self,
        stack: Stack,
        logits: Logits,
        memory: Memory | None,
        shape_BNT: tuple[int, int, int],
        tokens_VD: jax.Array,
    ):
        """`shape_BNT`: sequences, hypotheses of each, and tokens of each at most."""
        self._stack, self._logits, self._tokens_VD = stack, logits, tokens_VD
        self._sequences, self._hypotheses, length = shape_BNT
        on_cpu = platform() == "cpu"
        few_rows = on_cpu and is_trivial() and 1 < self._sequences * self._hypotheses <= _FEW
        in_blocks = on_cpu and self._hypotheses > 1  # one query meets all keys as they lie
        self._positions = min(length, max(1, COLUMNS // self._hypotheses)) if in_blocks else length
        self._length = -(-length // self._positions) * self._positions
        dtype = stack.execution.dtype
        weights_DV = gathered(logits.path, logits.weights_DV(tokens_VD, dtype))
        self._weights_DV = in_columns(weights_DV) if few_rows else jax.lax.optimization_barrier(weights_DV)
        self._layers = unstack(stack.layers)
        self._memory = []
        if memory is not None:
            self._memory_segments_BS = (memory.segments_BS > 0).astype(jnp.int32)
            columns = memory.hidden_BSD.shape[1]
            columns = COLUMNS if in_blocks and columns % COLUMNS == 0 else columns
            for layer in self._layers:
                key_BSHK, value_BSHK = layer.memory_attention.keys_values(memory.hidden_BSD)
                self._memory.append(stored(key_BSHK, value_BSHK, columns))
        if few_rows:  # not before: the memory has many
            for layer in self._layers:
                _for_few_rows(layer, dtype)

    def empty(self) -> Cache:
        """The cache before the first token."""
        config = self._stack.config
        shape = (self._sequences, self._length * self._hypotheses, config.num_heads, config.width_per_head)
        zeros_BSHK = jnp.zeros(shape, self._stack.execution.dtype)
        key, value_BHSK = stored(zeros_BSHK, zeros_BSHK, self._positions * self._hypotheses)
        layer = constrain(key, "BHKS" if key.ndim == 4 else "BHGKC"), constrain(value_BHSK, "BHSK")
        places_BNT = jnp.zeros((self._sequences, self._hypotheses, self._length), jnp.int32)
        return Cache((layer,) * self._stack.num_layers, places_BNT)

    def __call__(self, tokens_BN: jax.Array, step: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Float32 logits [B, N, V] after every hypothesis's token at position `step`, and the cache with it."""
        stack = self._stack
        sequences, hypotheses, length = self._sequences, self._hypotheses, self._length
        positions_BN = jnp.broadcast_to(step, tokens_BN.shape)
        hidden_BND = stack.embedding(tokens_BN, positions_BN, shared_VD=self._tokens_VD)
        angles = stack.angles(positions_BN)
        bias_H1S = stack.bias(step[None], length)
        if bias_H1S is not None:
            bias_H1S = jnp.repeat(bias_H1S, hypotheses, axis=2)
        own_N = jnp.arange(hypotheses, dtype=jnp.int32)
        own_BN1 = jnp.broadcast_to(own_N[None, :, None], (sequences, hypotheses, 1))
        places_BNT = jax.lax.dynamic_update_slice_in_dim(cache.places_BNT, own_BN1, step, axis=2)
        age_T = step - jnp.arange(length)
        visible_BNTN = (places_BNT[..., None] == own_N[None, None, None]) & (age_T >= 0)[None, None, :, None]
        ones_BN, ones_BS = (jnp.ones((sequences, size), jnp.int32) for size in (hypotheses, visible_BNTN[0, 0].size))
        grown = list(cache.layers)

        def attend_self(attention: Attention, inputs_BND: jax.Array, index: Any, dropout: Any) -> jax.Array:
            angles_BNK = angles(index)
            old_key, old_value_BHSK = cache.layers[index]
            key_BNHK, value_BNHK = attention.keys_values(inputs_BND, angles_BNK)
            key_BHKN, value_BHNK = stored(key_BNHK, value_BNHK, hypotheses)
            column = step * hypotheses
            grown[index] = (
                _written(old_key, key_BHKN, column),
                jax.lax.dynamic_update_slice_in_dim(old_value_BHSK, value_BHNK, column, axis=2),
            )
            seen_BNTN = visible_BNTN
            if (window := stack.window(index, length)) is not None:
                seen_BNTN &= (age_T <= window)[None, None, :, None]
            return attention(
                inputs_BND,
                grown[index],
                angles_BLK=angles_BNK,
                backend=_attend,
                segments_BL=ones_BN,
                memory_segments_BS=ones_BS,
                visible_BLS=seen_BNTN.reshape(sequences, hypotheses, -1),
                bias_HLS=bias_H1S,
                dropout=dropout,
            )

        def attend_memory(attention: Attention, inputs_BND: jax.Array, index: Any, dropout: Any) -> jax.Array:
            # Tied to the step: XLA would take the transposes out of the loop, and with them their cancelling out.
            inputs_BND, key, value_BHSK = jax.lax.optimization_barrier((inputs_BND, *self._memory[index]))
            return attention(
                inputs_BND,
                (key, value_BHSK),
                backend=_attend,
                segments_BL=ones_BN,
                memory_segments_BS=self._memory_segments_BS,
                dropout=dropout,
            )

        for index, layer in enumerate(self._layers):
            hidden_BND = layer(hidden_BND, index, attend_self, attend_memory)
        if stack.final_norm is not None:
            hidden_BND = stack.final_norm(hidden_BND)
        return self._logits(hidden_BND, self._weights_DV), Cache(tuple(grown), places_BNT)
