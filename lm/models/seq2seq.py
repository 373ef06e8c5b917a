"""The encoder-decoder, and the decoder without an encoder.

Array names carry their shape: B batch, S source length, T target length, D model, V vocabulary.
"""

import jax
from flax import nnx

from lm.config import ModelConfig
from lm.models.layers import Execution
from lm.models.logits import Logits, Projection
from lm.models.transformer import Memory, Stack

ENCODER, DECODER = range(2)  # folded into the dropout key of each stack


class Seq2Seq(nnx.Module):
    """Models P(y_t | y_<t, X) = softmax(W h_t + b), where h_t is the decoder's state after y_<t.

    The decoder attends to y_<t and to the encoder's output for X. Without an encoder there is no X: it is a causal
    language model. The encoder owns the token embedding; without one, the decoder does.
    """

    def __init__(self, config: ModelConfig, execution: Execution, *, rngs: nnx.Rngs):
        reads = config.architecture == "encoder-decoder"
        self.encoder = Stack(config, execution, num_layers=config.num_layers, rngs=rngs) if reads else None
        self.decoder = Stack(
            config,
            execution,
            num_layers=config.decoder_depth,
            causal=True,
            has_memory=reads,
            shares_tokens=reads,
            rngs=rngs,
        )
        self.logits = Logits(config, rngs=rngs)

    @property
    def tokens_VD(self) -> jax.Array:
        """The table of token embeddings."""
        token = (self.encoder or self.decoder).embedding.token
        assert token is not None
        return token[...]

    def encode(
        self,
        tokens_BS: jax.Array,
        segments_BS: jax.Array,
        positions_BS: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> Memory:
        """Returns the encoder's output for the sources. The arguments are those of `Stack`."""
        assert self.encoder is not None
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, ENCODER)
        return Memory(self.encoder(tokens_BS, segments_BS, positions_BS, dropout_key=key), segments_BS)

    def __call__(
        self,
        memory: Memory | None,
        inputs_BT: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the decoder's hidden states [B, T, D]. Its inputs are the targets shifted right."""
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, DECODER)
        return self.decoder(
            inputs_BT, segments_BT, positions_BT, memory=memory, dropout_key=key, shared_VD=self.tokens_VD
        )

    def attention_weights(
        self, memory: Memory | None, inputs_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the weights of the decoder's self-attention and cross-attention; see `Stack.attention_weights`."""
        return self.decoder.attention_weights(
            inputs_BT, segments_BT, positions_BT, memory=memory, shared_VD=self.tokens_VD
        )

    def predict(self, hidden_BTD: jax.Array) -> jax.Array:
        """Returns float32 logits [B, T, V] of the next token."""
        return self.projection(hidden_BTD).logits()

    def projection(self, hidden_BTD: jax.Array) -> Projection:
        """Returns the logits of `predict` before they are computed."""
        return self.logits(hidden_BTD, self.logits.weights_DV(self.tokens_VD, hidden_BTD.dtype))
