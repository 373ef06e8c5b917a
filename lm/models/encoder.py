"""The encoder and its heads.

Array names carry their shape: B batch, L length, D model, V vocabulary, M masked positions,
P segments of a row.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.heads import MaskedLMHead
from lm.models.layers import Dense, Execution
from lm.models.logits import Projection
from lm.models.transformer import Stack
from lm.sharding import constrain


class Encoder(nnx.Module):
    """A bidirectional Transformer over packed rows, with the heads of masked and next-sentence prediction."""

    def __init__(self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.encoder = Stack(config, execution, num_layers=config.num_layers, rngs=rngs)
        self.mlm = MaskedLMHead(config, rngs=rngs)
        width = config.d_model
        self.pooler = Dense(config, "pooler", (width, width), bias=True, rngs=rngs) if config.pooler else None
        self.nsp = Dense(config, "nsp", (width, 2), bias=True, rngs=rngs) if config.pooler else None

    def __call__(
        self,
        tokens_BL: jax.Array,
        segments_BL: jax.Array,
        positions_BL: jax.Array,
        token_types_BL: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the hidden states [B, L, D] of the last layer; see `Stack`."""
        return self.encoder(tokens_BL, segments_BL, positions_BL, token_types_BL, dropout_key=dropout_key)

    def mlm_logits(self, hidden_BLD: jax.Array, positions_BM: jax.Array) -> jax.Array:
        """Returns float32 logits [B, M, V] of the tokens at `positions_BM` alone."""
        return self.mlm_projection(hidden_BLD, positions_BM).logits()

    def mlm_projection(self, hidden_BLD: jax.Array, positions_BM: jax.Array) -> Projection:
        """Returns the logits of `mlm_logits` before they are computed."""
        hidden_BMD = constrain(jnp.take_along_axis(hidden_BLD, positions_BM[:, :, None], axis=1), "BMD")
        token = self.encoder.embedding.token
        assert token is not None
        return self.mlm(hidden_BMD, token[...])

    def nsp_logits(self, hidden_BLD: jax.Array, cls_positions_BP: jax.Array) -> jax.Array:
        """Returns float32 logits [B, P, 2] from the [CLS] of each segment: class 0 is next, class 1 is random."""
        if self.pooler is None or self.nsp is None:
            raise ValueError("the model has no pooler; set model.pooler=True")
        first_BPD = jnp.take_along_axis(hidden_BLD, cls_positions_BP[:, :, None], axis=1)
        return self.nsp(jnp.tanh(self.pooler(first_BPD))).astype(jnp.float32)
