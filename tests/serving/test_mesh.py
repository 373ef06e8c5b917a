"""A model that is split over devices answers as on one device."""

import concurrent.futures
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from lm.config import MeshConfig
from lm.errors import InputError
from lm.serving.served import Served
from lm.serving.server import make_service
from lm.serving.settings import Settings
from tests.serving.conftest import SETTINGS, Running, start, stop

# Four devices: two halves of the model, and two shares of the sequences. Few programs: they are split by the compiler.
SPLIT = dataclasses.replace(SETTINGS, mesh=MeshConfig(data=2, tensor=2), beams=(2,), tasks=("embed", "generate"))
SPLIT = dataclasses.replace(SPLIT, batch_tokens=64, top_logprobs=0)
WRITTEN = [
    {"prompt": "the tree", "max_tokens": 20, "temperature": 0},
    {"prompt": ["stone", "the river sings of the tree"], "max_tokens": 24, "temperature": 1, "seed": 3, "n": 2},
    {"prompt": "a river", "max_tokens": 12, "num_beams": 2},
]


@pytest.fixture(scope="module")
def split(workdirs: dict[str, str]) -> Iterator[Running]:
    service = make_service([Served(name, path, SPLIT) for name, path in workdirs.items()], SPLIT)
    service.engine.start()
    running = start(service)
    yield running
    stop(running)
    service.engine.close()
    service.close()


def test_the_parameters_and_the_cache_are_split(split: Running):
    models = split.service.engine.models
    kernel = models["reader"].predictor.loaded.params["encoder"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 32, 32)
    state = models["writer"].weights.lanes[0]._state
    assert state is not None
    key = state.cache.layers[0][0]
    assert key.sharding.shard_shape(key.shape)[:2] == (key.shape[0] // 2, key.shape[1] // 2)
    assert len(key.sharding.device_set) == 4


def test_a_split_model_answers_as_a_whole_one(running: Running, split: Running):
    texts = {"inputs": ["the tree", "stone " * 20, "a", "river of stone"]}
    found, expected = (np.array(each.post("/embed", texts)) for each in (split, running))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        bodies = [each for each in WRITTEN for _ in range(3)]
        answers = list(threads.map(lambda body: split.post("/v1/completions", body)["choices"], bodies))
    for number, body in enumerate(WRITTEN):
        whole = running.post("/v1/completions", body)["choices"]
        assert answers[3 * number : 3 * number + 3] == [whole] * 3
    weights = [each.post("/attention", {"task": "embed", "input": "the tree"})["weights"] for each in (split, running)]
    np.testing.assert_allclose(*weights, atol=2e-4)
    assert split.service.engine.compilations == 0


def test_the_buffers_of_a_step_are_given_away(split: Running):
    lane = split.service.engine.models["writer"].weights.lanes[0]
    before = jax.tree.leaves(lane._state)
    split.post("/v1/completions", WRITTEN[0])
    assert all(leaf.is_deleted() for leaf in before)


def test_new_weights_are_split_alike(split: Running):
    model = split.service.engine.models["reader"]
    again = model._read(model.predictor.loaded.workdir, model.weights.step).predictor.loaded.params
    jax.tree.map(
        lambda new, old: np.testing.assert_equal(new.sharding, old.sharding), again, model.predictor.loaded.params
    )


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (["expert=2"], "accepted: data or tensor"),
        (["tensor=x"], "has 'tensor=x'"),
        (["data=-1", "tensor=-1"], "most one"),
    ],
    ids=str,
)
def test_wrong_meshes_are_named(axes, words):
    flags = {"beams": ["1"], "tasks": [], "cors_origins": [], "extra_options": [], "mesh": axes}
    with pytest.raises(InputError, match=words):
        Settings.of(flags, ())


def test_a_mesh_that_does_not_divide_a_model_is_named(workdirs):
    for mesh, words in ((MeshConfig(data=1, tensor=8), "num_heads is 4"), (MeshConfig(data=16), "16 devices of 8")):
        with pytest.raises(InputError, match=words):
            Served("reader", workdirs["reader"], Settings(mesh=mesh))
