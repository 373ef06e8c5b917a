"""Where dropout acts, and that its masks are random."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models
from lm.config import ModelConfig
from lm.models.layers import Dropout

CONFIG = ModelConfig(
    architecture="encoder-decoder",
    **{"vocab_size": 40, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 24, "token_types": 0},
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


def dropped(seed: int, shape: tuple[int, ...], rate: float) -> np.ndarray:
    """Which entries a key drops."""
    return np.asarray(Dropout(rate, jax.random.fold_in(jax.random.key(0), seed))(jnp.ones(shape))) == 0


def test_masks_are_as_random_as_they_need_to_be():
    """Rates, neighbours in every direction and other keys: deviations as wide as chance makes them, and no wider."""
    rate, shape, keys = 0.1, (4, 8, 64, 64), 64
    masks = [dropped(seed, shape, rate).ravel() for seed in range(keys)]
    size, centred = masks[0].size, [mask - rate for mask in masks]
    spread = np.sqrt(rate * (1 - rate))
    rates = [mask.sum() / spread / np.sqrt(size) for mask in centred]
    shifts = (1, 63, 64, 65, 4096)
    neighbours = [mask[:-by] @ mask[by:] / spread**2 / np.sqrt(size - by) for mask in centred for by in shifts]
    others = [one @ other / spread**2 / np.sqrt(size) for one, other in itertools.pairwise(centred)]
    for deviations in (rates, neighbours, others):
        assert abs(np.mean(deviations)) < 4 / np.sqrt(len(deviations))
        assert 0.7 < np.std(deviations) < 1.3


def test_what_is_kept_is_scaled_up_and_the_gradient_goes_through_it_alone():
    dropout = Dropout(0.25, jax.random.key(3))
    ones = jnp.ones((16, 32))
    kept = np.asarray(dropout(ones))
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(jax.grad(lambda x: dropout(x).sum())(ones), kept)
    np.testing.assert_array_equal(dropped(5, (8, 8), 0.0), np.zeros((8, 8), bool))
