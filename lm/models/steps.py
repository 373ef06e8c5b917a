"""Decoding token by token.

Array names carry their shape: B sequences, N hypotheses of each, R = B * N rows, S source length, T decoded length,
D model, H heads, K head dim, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lm.models.attention import Attention
from lm.models.transformer import Memory, Stack, unstack
from lm.sharding import constrain, gather_weights

Cache = tuple[tuple[jax.Array, jax.Array], ...]


class Steps:
    """A decoder that takes one token at a time and keeps the keys and values of those before.

    What no step changes is computed here, once, and stays out of the loop: each layer's weights as arrays of
    their own, and the keys and values of the memory. N hypotheses of a sequence (beams) share its memory: they
    are the rows `b * N ... b * N + N - 1`.
    """

    def __init__(self, stack: Stack, memory: Memory | None, length: int, shared_VD: jax.Array | None):
        self._stack, self._length, self._shared_VD = stack, length, shared_VD
        self._layers = unstack(stack.layers, stack.num_layers)
        self._memory = []
        if memory is not None:
            self._memory_segments_BS = (memory.segments_BS > 0).astype(jnp.int32)
            attentions = [gather_weights(layer).memory_attention for layer in self._layers]
            heads_first = lambda array_BSHK: array_BSHK.swapaxes(1, 2)  # noqa: E731
            self._memory = [
                jax.tree.map(heads_first, attention.keys_values(memory.hidden_BSD)) for attention in attentions
            ]

    def empty(self, rows: int) -> Cache:
        """The cache before the first token: for each layer keys and values, [R, H, T, K]."""
        config = self._stack.config
        shape = (rows, config.num_heads, self._length, config.width_per_head)
        zeros = constrain(jnp.zeros(shape, self._stack.execution.dtype), "BHTK")
        return ((zeros, zeros),) * self._stack.num_layers

    def __call__(self, tokens_R: jax.Array, step: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """The hidden state [R, D] after the token at position `step` of every row, and the cache with it."""
        stack = self._stack
        rows = tokens_R.shape[0]
        positions_R1 = jnp.broadcast_to(step, (rows, 1))
        hidden_R1D = stack.embedding(tokens_R[:, None], positions_R1, shared_VD=self._shared_VD)
        angles, columns = stack.angles(positions_R1), step[None]
        bias_H1T = stack.bias(columns, self._length)
        seen = [jnp.ones((rows, size), jnp.int32) for size in (1, self._length)]
        grown = list(cache)

        def attend_self(attention: Attention, inputs_R1D: jax.Array, index: Any, dropout: Any) -> jax.Array:
            angles_R1K = angles(index)
            new = attention.keys_values(inputs_R1D, angles_R1K)
            write = lambda old_RHTK, new_R1HK: jax.lax.dynamic_update_slice_in_dim(  # noqa: E731
                old_RHTK, new_R1HK.swapaxes(1, 2), step, axis=2
            )
            key_RHTK, value_RHTK = grown[index] = jax.tree.map(write, cache[index], new)
            return attention(
                inputs_R1D,
                (key_RHTK.swapaxes(1, 2), value_RHTK.swapaxes(1, 2)),
                angles_BLK=angles_R1K,
                segments_BL=seen[0],
                memory_segments_BS=seen[1],
                columns_L=columns,
                causal=True,
                window=stack.window(index, self._length),
                bias_HLS=bias_H1T,
                dropout=dropout,
            )

        def attend_memory(attention: Attention, inputs_R1D: jax.Array, index: Any, dropout: Any) -> jax.Array:
            segments_BS = self._memory_segments_BS
            # Tied to the step: XLA would take the transposes out of the loop, and with them their cancelling out.
            inputs_R1D, key_BHSK, value_BHSK = jax.lax.optimization_barrier((inputs_R1D, *self._memory[index]))
            inputs_BND = inputs_R1D.reshape(segments_BS.shape[0], -1, inputs_R1D.shape[-1])
            attended_BND = attention(
                inputs_BND,
                (key_BHSK.swapaxes(1, 2), value_BHSK.swapaxes(1, 2)),
                segments_BL=jnp.ones(inputs_BND.shape[:2], jnp.int32),
                memory_segments_BS=segments_BS,
                dropout=dropout,
            )
            return attended_BND.reshape(inputs_R1D.shape)

        for index, layer in enumerate(self._layers):
            hidden_R1D = gather_weights(layer)(hidden_R1D, index, attend_self, attend_memory)
        if stack.final_norm is not None:
            hidden_R1D = stack.final_norm(hidden_R1D)
        return hidden_R1D[:, 0], tuple(grown)
