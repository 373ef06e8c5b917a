"""Configs small enough to compile for a TPU in seconds."""

import dataclasses
import os
from collections.abc import Iterator

import jax
import pytest

from lm import families
from lm.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, TrainConfig
from tests.conftest import ONLY_CPUS


@pytest.fixture(autouse=True, scope="module")
def flags_that_a_tpu_knows() -> Iterator[None]:
    """Libtpu ends the process over any other, where it is loaded; CPUs have read theirs before."""
    jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(ONLY_CPUS, ""))
        yield


@pytest.fixture(scope="session")
def encoder() -> Config:
    """A two-layer BERT that flash attention can take."""
    return Config(
        data=DataConfig(vocab_size=512, seq_length=128, batch_size=16, max_segments=4),
        model=ModelConfig(
            vocab_size=512, d_model=128, num_layers=2, num_heads=4, d_ff=256, max_length=128, attention_dropout=0.0
        ),
        optim=OptimConfig(warmup_steps=2),
        train=TrainConfig(steps=100, dtype="bfloat16"),
    )


@pytest.fixture(scope="session")
def encoder_decoder(encoder: Config) -> Config:
    """A T5 1.1 of two and two layers."""
    model = families.t5_1_1(vocab_size=512, d_model=128, num_layers=2, num_heads=4, d_ff=256)
    data = dataclasses.replace(encoder.data, target_length=128)
    return dataclasses.replace(encoder, data=data, model=model, objective=ObjectiveConfig(name="span_corruption"))
