"""How deep the model is to read: the calls of our own code between an entry and the product of queries and keys."""

import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm import models, sharding, tasks
from lm.config import Config, ModelConfig, TrainConfig
from lm.models import encoder
from lm.training import program
from tests.models.test_packing import MODERN

OURS = str(Path(lm.__file__).parent)
PRODUCT = "BLHK,BSHK->BHLS"


@pytest.fixture
def calls(monkeypatch):
    """The functions of lm on the stack at the product of queries and keys, outermost first, each time it is traced."""
    found: list[list[traceback.FrameSummary]] = []
    einsum = jnp.einsum

    def recording(subscripts, *operands, **options):
        if subscripts == PRODUCT:
            found.append([frame for frame in traceback.extract_stack() if frame.filename.startswith(OURS)])
        return einsum(subscripts, *operands, **options)

    monkeypatch.setattr(jnp, "einsum", recording)
    return found


def test_six_calls_in_three_files_lead_from_the_encoder_to_the_product(calls):
    model = models.build(MODERN)
    array = jnp.asarray(np.ones((2, 8), np.int32))
    jax.eval_shape(lambda key: model.merge(model.init(key))(array, array, array, array), jax.random.key(0))
    assert calls
    for frames in calls:
        start = next(i for i, frame in enumerate(frames) if frame.filename == encoder.__file__)
        path = frames[start:]
        assert path[0].name == "__call__"
        assert len(path) <= 6, [f"{Path(frame.filename).name}:{frame.name}" for frame in path]
        assert len({frame.filename for frame in path}) <= 3


def test_fourteen_calls_lead_from_the_training_step_to_the_product(calls):
    config = Config(model=ModelConfig(num_layers=2), train=TrainConfig(accumulation=2))
    mesh = sharding.make_mesh(config.mesh)
    objective = tasks.create_objective(config, tasks.UntrainedVocabulary(config.data.vocab_size))
    program.define(config, objective, mesh).trace_step()
    paths = [frames for frames in calls if any(frame.name == "train_step" for frame in frames)]
    assert paths
    for frames in paths:
        start = next(i for i, frame in enumerate(frames) if frame.name == "train_step")
        path = frames[start:]
        assert len(path) <= 14, [f"{Path(frame.filename).name}:{frame.name}" for frame in path]
