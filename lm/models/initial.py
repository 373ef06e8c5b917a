"""Random initial weights."""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.config import ModelConfig


def initial(
    config: ModelConfig, rngs: nnx.Rngs, shape: tuple[int, ...], fan_in_std: float, *, residual: bool = False
) -> nnx.Param:
    """Returns random initial weights.

    BERT's are normal with standard deviation `config.init_std`, truncated at two standard deviations and not rescaled.
    ModernBERT's, where `config.init` is `megatron`, are divided by sqrt(2 num_layers) where `residual` is set
    (`full_megatron` in src/bert_layers/initialization.py of AnswerDotAI/ModernBERT). T5's, where it is `fan_in`, are
    normal with standard deviation `fan_in_std`.
    """
    if config.init == "fan_in":
        return nnx.Param(fan_in_std * jax.random.normal(rngs.params(), shape, jnp.float32))
    std = config.init_std
    if residual and config.init == "megatron":
        std *= (2 * config.num_layers) ** -0.5
    return nnx.Param(std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32))
