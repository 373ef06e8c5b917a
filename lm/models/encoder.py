"""The encoder and its heads.

Array names carry their shape: B batch, L length, D model, V vocabulary, M masked positions,
P segments of a row.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig
from lm.models.layers import Dense, Execution, Norm, activate
from lm.models.transformer import Embedding, Layer, layer_angles, make_stack, run_stack
from lm.sharding import constrain


class MaskedLMHead(nnx.Module):
    """x = softmax(W h + b) over the vocabulary, h first through a dense layer, an activation and a norm.

    Devlin et al., 2019, section 3.1 and its released code. With tied embeddings W is the token embedding,
    which the encoder owns and passes in.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.d_model
        self.dense = Dense((width, width), bias=config.head_bias, std=config.init_std, rngs=rngs)
        self.norm = Norm(config)
        self.decoder = Decoder(config, rngs=rngs)
        self.activation = config.head_activation

    def __call__(self, hidden_BMD: jax.Array, token_embedding_VD: jax.Array) -> jax.Array:
        hidden_BMD = self.norm(activate(self.activation, self.dense(hidden_BMD)))
        return self.decoder(hidden_BMD, token_embedding_VD)


class Decoder(nnx.Module):
    """Logits over the vocabulary in float32: the tied embedding or a kernel of its own, and a bias."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        tied = config.tie_embeddings
        shape = (config.d_model, config.vocab_size)
        self.kernel = None if tied else Dense(shape, bias=False, std=config.init_std, rngs=rngs).kernel
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))

    def __call__(self, hidden_BMD: jax.Array, token_embedding_VD: jax.Array) -> jax.Array:
        if self.kernel is None:
            pattern, weights = "BMD,VD->BMV", token_embedding_VD
        else:
            pattern, weights = "BMD,DV->BMV", self.kernel[...]
        weights = weights.astype(hidden_BMD.dtype)
        logits_BMV = jnp.einsum(pattern, hidden_BMD, weights, preferred_element_type=jnp.float32)
        return constrain(logits_BMV + self.bias[...][None, None], "BMV")


class Encoder(nnx.Module):
    """A bidirectional Transformer over packed rows, with the heads of masked and next-sentence prediction."""

    def __init__(self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs):
        self.embedding = Embedding(config, execution, rngs=rngs)
        self.layers = make_stack(lambda rngs: Layer(config, rngs=rngs), config.num_layers, rngs)
        self.final_norm = Norm(config) if config.final_norm else None
        self.mlm = MaskedLMHead(config, rngs=rngs)
        width = config.d_model
        self.pooler = Dense((width, width), bias=True, std=config.init_std, rngs=rngs) if config.pooler else None
        self.nsp = Dense((width, 2), bias=True, std=config.init_std, rngs=rngs) if config.pooler else None
        self.config = config
        self.execution = execution

    def __call__(
        self,
        tokens_BL: jax.Array,
        segments_BL: jax.Array,
        positions_BL: jax.Array,
        token_types_BL: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Contextual representations of every token.

        Args:
            tokens_BL: int32 token ids.
            segments_BL: int32; tokens attend within equal segments; 0 is padding.
            positions_BL: int32, restarting in every segment.
            token_types_BL: int32; ignored where the config has no token types.
            dropout_key: None computes without dropout.

        Returns:
            [B, L, D] in the compute dtype.
        """
        hidden_BLD = self.embedding(tokens_BL, positions_BL, token_types_BL, dropout_key)
        angles = layer_angles(self.config, positions_BL)

        def apply(layer: Layer, hidden_BLD: jax.Array, index: jax.Array) -> jax.Array:
            return layer(hidden_BLD, index, segments_BL=segments_BL, angles=angles, dropout_key=dropout_key)

        hidden_BLD = run_stack(self.layers, hidden_BLD, self.config.num_layers, self.execution, apply)
        return hidden_BLD if self.final_norm is None else self.final_norm(hidden_BLD)

    def mlm_logits(self, hidden_BLD: jax.Array, positions_BM: jax.Array) -> jax.Array:
        """Float32 logits [B, M, V] of the tokens at `positions_BM`, and of no others."""
        hidden_BMD = jnp.take_along_axis(hidden_BLD, positions_BM[:, :, None], axis=1)
        return self.mlm(hidden_BMD, self.embedding.token[...])

    def nsp_logits(self, hidden_BLD: jax.Array, cls_positions_BP: jax.Array) -> jax.Array:
        """Float32 logits [B, P, 2] from the [CLS] of each segment: class 0 is next, class 1 is random."""
        if self.pooler is None or self.nsp is None:
            raise ValueError("the model has no pooler; set model.pooler=True")
        first_BPD = jnp.take_along_axis(hidden_BLD, cls_positions_BP[:, :, None], axis=1)
        return self.nsp(jnp.tanh(self.pooler(first_BPD))).astype(jnp.float32)
