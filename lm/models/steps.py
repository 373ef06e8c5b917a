"""Decoding token by token.

Array names carry their shape: B sequences, N hypotheses of each (beams), S source length, T decoded length, D model,
H heads, K head dim, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm.models.attention import Attention
from lm.models.layers import Logits
from lm.models.transformer import Memory, Stack, unstack
from lm.sharding import constrain, gathered


class Cache(NamedTuple):
    """What was computed of the tokens so far.

    Keys and values stay where they were written when hypotheses branch: instead of moving them, each hypothesis
    remembers in whose place its own lie.

    Attributes:
        layers: of each, `stored` keys and values, [B, H, K, C] and [B, H, C, K], where C = T * N: the N of a position
            beside one another.
        places_BNT: int32, which of the N places at each position belongs to a hypothesis.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    places_BNT: jax.Array

    def branch(self, parent_BN: jax.Array) -> "Cache":
        """Every hypothesis goes on from another one, or from itself."""
        return self._replace(places_BNT=jnp.take_along_axis(self.places_BNT, parent_BN[:, :, None], axis=1))


def stored(key_BSHK: jax.Array, value_BSHK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys [B, H, K, S] and values [B, H, S, K], as products with few queries read them fastest."""
    return key_BSHK.transpose(0, 2, 3, 1), value_BSHK.swapaxes(1, 2)


def restored(key_BHKS: jax.Array, value_BHSK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What was `stored`, [B, S, H, K]; the compiler merges it into the products."""
    return key_BHKS.transpose(0, 3, 1, 2), value_BHSK.swapaxes(1, 2)


class Steps:
    """A decoder that takes one token at a time and keeps the keys and values of those before.

    What no step changes is computed here, once, and stays out of the loop: each layer's weights as arrays of
    their own, those of the output projection in the order in which few rows read them fastest, and the keys and values
    of the memory, which the hypotheses of a sequence share.
    """

    def __init__(self, stack: Stack, logits: Logits, memory: Memory | None, length: int, tokens_VD: jax.Array):
        self._stack, self._logits, self._length, self._tokens_VD = stack, logits, length, tokens_VD
        weights_DV = gathered(logits.path, logits.weights_DV(tokens_VD, stack.execution.dtype))
        self._weights_DV = jax.lax.optimization_barrier(weights_DV)
        self._layers = unstack(stack.layers)
        self._memory = []
        if memory is not None:
            self._memory_segments_BS = (memory.segments_BS > 0).astype(jnp.int32)
            self._memory = [stored(*layer.memory_attention.keys_values(memory.hidden_BSD)) for layer in self._layers]

    def empty(self, sequences: int, hypotheses: int = 1) -> Cache:
        """The cache before the first token."""
        config = self._stack.config
        shape = (sequences, self._length * hypotheses, config.num_heads, config.width_per_head)
        zeros_BCHK = jnp.zeros(shape, self._stack.execution.dtype)
        key_BHKC, value_BHCK = stored(zeros_BCHK, zeros_BCHK)
        layer = constrain(key_BHKC, "BHKC"), constrain(value_BHCK, "BHCK")
        return Cache((layer,) * self._stack.num_layers, jnp.zeros((sequences, hypotheses, self._length), jnp.int32))

    def __call__(self, tokens_BN: jax.Array, step: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Float32 logits [B, N, V] after every hypothesis's token at position `step`, and the cache with it."""
        stack = self._stack
        sequences, hypotheses = tokens_BN.shape
        positions_BN = jnp.broadcast_to(step, tokens_BN.shape)
        hidden_BND = stack.embedding(tokens_BN, positions_BN, shared_VD=self._tokens_VD)
        angles = stack.angles(positions_BN)
        bias_H1S = stack.bias(step[None], self._length)
        if bias_H1S is not None:
            bias_H1S = jnp.repeat(bias_H1S, hypotheses, axis=2)
        own_N = jnp.arange(hypotheses, dtype=jnp.int32)
        own_BN1 = jnp.broadcast_to(own_N[None, :, None], (sequences, hypotheses, 1))
        places_BNT = jax.lax.dynamic_update_slice_in_dim(cache.places_BNT, own_BN1, step, axis=2)
        age_T = step - jnp.arange(self._length)
        visible_BNTN = (places_BNT[..., None] == own_N[None, None, None]) & (age_T >= 0)[None, None, :, None]
        ones_BN, ones_BS = (jnp.ones((sequences, size), jnp.int32) for size in (hypotheses, visible_BNTN[0, 0].size))
        grown = list(cache.layers)

        def attend_self(attention: Attention, inputs_BND: jax.Array, index: Any, dropout: Any) -> jax.Array:
            angles_BNK = angles(index)
            old_key_BHKC, old_value_BHCK = cache.layers[index]
            new_key_BHKN, new_value_BHNK = stored(*attention.keys_values(inputs_BND, angles_BNK))
            column = step * hypotheses
            grown[index] = (
                jax.lax.dynamic_update_slice_in_dim(old_key_BHKC, new_key_BHKN, column, axis=3),
                jax.lax.dynamic_update_slice_in_dim(old_value_BHCK, new_value_BHNK, column, axis=2),
            )
            seen_BNTN = visible_BNTN
            if (window := stack.window(index, self._length)) is not None:
                seen_BNTN &= (age_T <= window)[None, None, :, None]
            return attention(
                inputs_BND,
                restored(*grown[index]),
                angles_BLK=angles_BNK,
                segments_BL=ones_BN,
                memory_segments_BS=ones_BS,
                visible_BLS=seen_BNTN.reshape(sequences, hypotheses, -1),
                bias_HLS=bias_H1S,
                dropout=dropout,
            )

        def attend_memory(attention: Attention, inputs_BND: jax.Array, index: Any, dropout: Any) -> jax.Array:
            # Tied to the step: XLA would take the transposes out of the loop, and with them their cancelling out.
            inputs_BND, key_BHKS, value_BHSK = jax.lax.optimization_barrier((inputs_BND, *self._memory[index]))
            return attention(
                inputs_BND,
                restored(key_BHKS, value_BHSK),
                segments_BL=ones_BN,
                memory_segments_BS=self._memory_segments_BS,
                dropout=dropout,
            )

        for index, layer in enumerate(self._layers):
            hidden_BND = layer(hidden_BND, index, attend_self, attend_memory)
        if stack.final_norm is not None:
            hidden_BND = stack.final_norm(hidden_BND)
        return self._logits(hidden_BND, self._weights_DV), Cache(tuple(grown), places_BNT)
