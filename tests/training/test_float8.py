"""Training with 8-bit products learns as training in bfloat16 does."""

import jax
import numpy as np
import pytest

from lm import families, sharding, tasks
from lm.config import Config, DataConfig, MeshConfig, ObjectiveConfig, OptimConfig, TrainConfig
from lm.tasks import UntrainedVocabulary
from lm.training.program import define

SIZE, ROWS, LENGTH, STEPS = 256, 8, 32, 25


def losses(dtype: str) -> list[float]:
    """The losses of the first steps on one batch of texts in which each token follows from the one before."""
    model = families.bert(vocab_size=SIZE, d_model=32, num_layers=2, num_heads=2, d_ff=64)
    config = Config(
        model=model,
        data=DataConfig(seq_length=LENGTH, batch_size=ROWS, vocab_size=SIZE, max_segments=1),
        objective=ObjectiveConfig(nsp=False),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=1, schedule="constant"),
        train=TrainConfig(dtype=dtype),
    )
    made = define(
        config,
        tasks.create_objective(config, UntrainedVocabulary(SIZE)),
        sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]),
    )
    column = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    tokens = SIZE - 24 + (column * 5 + np.arange(ROWS, dtype=np.int32)[:, None]) % 24
    batch = {"tokens": tokens, "positions": column, "segments": np.ones_like(column), "token_types": 0 * column}
    state, step = made.lower_init().compile()(), made.lower_step().compile()
    found = []
    with jax.set_mesh(made.mesh):
        placed = sharding.place_rows(made.mesh, ROWS, batch)
        for _ in range(STEPS):
            state, metrics = step(state, placed)
            found.append(float(metrics["loss"]))
    return found


def test_the_curve_of_float8_is_that_of_bfloat16():
    eight, sixteen = np.asarray(losses("float8")), np.asarray(losses("bfloat16"))
    assert sixteen[-5:].mean() < 0.75 * sixteen[0]  # it learns
    assert (eight != sixteen).any()
    assert eight[0] == pytest.approx(sixteen[0], rel=0.01)
    assert np.abs(eight - sixteen).mean() < 0.05 * sixteen.mean()
