"""Dropout acts at the places that the config says, and nowhere else."""

import dataclasses

import jax
import numpy as np
import pytest

from lm import models
from lm.config import ModelConfig

CONFIG = ModelConfig(
    architecture="encoder-decoder",
    vocab_size=40,
    d_model=16,
    num_layers=2,
    num_heads=2,
    d_ff=24,
    token_types=0,
    norm_position="pre",
    final_norm=True,
    dropout=0.0,
    attention_dropout=0.0,
)
TOKENS_BL = np.arange(60).reshape(3, 20) % 40
ONES_BL = np.ones_like(TOKENS_BL)
POSITIONS_BL = np.broadcast_to(np.arange(20), (3, 20))


def encode(config: ModelConfig, key: jax.Array | None) -> np.ndarray:
    model = models.build(config)
    compute = jax.jit(
        lambda: model.merge(model.init(jax.random.key(0))).encode(TOKENS_BL, ONES_BL, POSITIONS_BL, key).hidden_BSD
    )
    return np.asarray(compute())


@pytest.mark.parametrize(("final_dropout", "share"), [(True, 0.5), (False, 0.0)])
def test_t5_drops_out_what_its_stacks_give(final_dropout, share):
    config = dataclasses.replace(CONFIG, dropout=0.5, final_dropout=final_dropout)
    assert abs((encode(config, jax.random.key(1)) == 0).mean() - share) < 0.06
    assert not (encode(config, None) == 0).any()


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "mlp_dropout"])
def test_each_rate_acts_alone(rate):
    config = dataclasses.replace(CONFIG, **{rate: 0.5})
    assert not np.allclose(encode(config, jax.random.key(1)), encode(config, None))
    assert np.allclose(encode(CONFIG, jax.random.key(1)), encode(CONFIG, None))
