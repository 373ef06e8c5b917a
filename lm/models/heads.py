"""The heads of an encoder.

Array names carry their shape: D model, V vocabulary, M masked positions.
"""

import jax
from flax import nnx

from lm.config import ModelConfig
from lm.models.layers import Dense, Logits, Norm, activate


class MaskedLMHead(nnx.Module):
    """Logits of the token at a masked position: W h' + b, where h' is h after a dense layer, an activation and a norm.

    Devlin et al., 2019, section 3.1 and its released code. With tied embeddings W is the token embedding. The encoder
    owns that, and every call is given it.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        width = config.d_model
        self.dense = Dense(config, "mlm/dense", (width, width), bias=config.head_bias, rngs=rngs)
        self.norm = Norm(config)
        self.logits = Logits(config, rngs=rngs)
        self.activation = config.head_activation

    def __call__(self, hidden_BMD: jax.Array, token_embedding_VD: jax.Array) -> jax.Array:
        hidden_BMD = self.norm(activate(self.activation, self.dense(hidden_BMD)))
        return self.logits(hidden_BMD, self.logits.weights_DV(token_embedding_VD, hidden_BMD.dtype))
