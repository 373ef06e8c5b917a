"""The heads of an encoder.

Array names carry their shape: D model, V vocabulary, M masked positions.
"""

import jax
from flax import nnx

from lm.config import ModelConfig
from lm.models.layers import Dense, Norm
from lm.models.logits import Logits, Projection
from lm.ops.activation import activate


class MaskedLMHead(nnx.Module):
    """Computes W norm(f(W1 h + b1)) + b, the logits at masked positions (Devlin et al., 2019, section 3.1).

    The dense layer, activation and norm follow BERT's released code. ModernBERT's initial dense layer is that of
    transformers' modeling_modernbert.py, as small as a residual one. With tied embeddings W is the token embedding,
    which the encoder owns and passes to every call.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.embedding_width or config.d_model
        shape = (config.d_model, width)
        self.dense = Dense(config, "mlm/dense", shape, bias=config.head_bias, residual=True, rngs=rngs)
        self.norm = Norm(config, width)
        self.logits = Logits(config, rngs=rngs)
        self.activation = config.head_activation

    def __call__(self, hidden_BMD: jax.Array, token_embedding_VD: jax.Array) -> Projection:
        hidden_BMD = self.norm(activate(self.activation, self.dense(hidden_BMD)))
        return self.logits(hidden_BMD, self.logits.weights_DV(token_embedding_VD, hidden_BMD.dtype))
