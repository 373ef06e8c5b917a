"""An encoder-decoder computes the same for packed and single examples; its decoder is causal within an example."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models
from lm.config import ModelConfig
from tests.weights import random_params

RELATIVE = ModelConfig(
    architecture="encoder-decoder",
    vocab_size=128,
    d_model=32,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=4,
    d_ff=64,
    norm="rmsnorm",
    norm_position="pre",
    embedding_norm=False,
    final_norm=True,
    attention_bias=False,
    mlp_bias=False,
    logits_bias=False,
    scale_logits=True,
    attention_scale=False,
    position="relative",
    relative_buckets=8,
    relative_max_distance=16,
    init="fan_in",
    token_types=0,
)
LEARNED = ModelConfig(
    architecture="encoder-decoder", vocab_size=128, d_model=32, num_layers=2, num_heads=4, d_ff=64, max_length=64
)
ALONE = dataclasses.replace(LEARNED, architecture="decoder", position="rotary", global_every=2, window=4)
CONFIGS = {"relative": RELATIVE, "learned": LEARNED, "alone": ALONE}
LENGTHS = ((11, 5), (7, 9), (20, 3))  # of sources and targets
SOURCE_ROW, TARGET_ROW = 44, 24


@pytest.fixture(params=CONFIGS)
def setup(request):
    config = CONFIGS[request.param]
    model = models.build(config)
    params = random_params(model)
    rng = np.random.default_rng(0)
    # Sources and targets of different ids, so that a gradient says what was read.
    pairs = [(rng.integers(5, 60, source), rng.integers(60, 128, target)) for source, target in LENGTHS]
    return config, model, params, pairs


def row_of(texts, width):
    tokens, segments, positions = (np.zeros((1, width), np.int32) for _ in range(3))
    start = 0
    for number, text in enumerate(texts, 1):
        place = slice(start, start + len(text))
        tokens[0, place], segments[0, place], positions[0, place] = text, number, np.arange(len(text))
        start += len(text)
    return jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(positions)


def logits(config, model, params, pairs):
    module = model.merge(params)
    memory = None
    if config.architecture == "encoder-decoder":
        memory = module.encode(*row_of([source for source, _ in pairs], SOURCE_ROW))
    return module.predict(module(memory, *row_of([target for _, target in pairs], TARGET_ROW)))[0]


def spans():
    ends = np.cumsum([target for _, target in LENGTHS])
    return [slice(end - target, end) for end, (_, target) in zip(ends, LENGTHS, strict=True)]


def test_outputs_are_the_same_packed_and_alone(setup):
    config, model, params, pairs = setup
    packed = logits(config, model, params, pairs)
    for place, pair in zip(spans(), pairs, strict=True):
        alone = logits(config, model, params, [pair])[: len(pair[1])]
        np.testing.assert_allclose(packed[place], alone, atol=1e-5)


def test_gradients_are_the_same_packed_and_alone(setup):
    config, model, params, pairs = setup
    weights = jax.random.normal(jax.random.key(1), (sum(target for _, target in LENGTHS), 128))

    def loss(params, pairs, weights):
        return (logits(config, model, params, pairs)[: len(weights)] * weights).sum()

    packed = jax.grad(loss)(params, pairs, weights)
    alone = [jax.grad(loss)(params, [pair], weights[place]) for place, pair in zip(spans(), pairs, strict=True)]
    total = jax.tree.map(lambda *parts: sum(parts), *alone)
    for (path, one), other in zip(jax.tree.leaves_with_path(packed), jax.tree.leaves(total), strict=True):
        scale = max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def read_by(setup, rows):
    """The ids whose embeddings have a gradient when only some output rows count (their own projection aside)."""
    config, model, params, pairs = setup
    owner = "encoder" if config.architecture == "encoder-decoder" else "decoder"

    def loss(table):
        stack = {**params[owner], "embedding": {**params[owner]["embedding"], "token": table}}
        module = model.merge({**params, owner: stack})
        memory = None
        if owner == "encoder":
            memory = module.encode(*row_of([source for source, _ in pairs], SOURCE_ROW))
        return jnp.square(module(memory, *row_of([target for _, target in pairs], TARGET_ROW))[0, rows]).sum()

    gradient = jax.grad(loss)(params[owner]["embedding"]["token"])
    return set(np.flatnonzero(np.abs(np.asarray(gradient)).sum(axis=1)).tolist())


def test_a_prediction_reads_its_own_source_and_the_past_and_nothing_else(setup):
    """The derivative by every other token is exactly zero."""
    config, _, _, pairs = setup
    place = spans()[1]
    for step in (0, 4, 8):
        source, target = pairs[1]
        expected = set(target[: step + 1].tolist())
        if config.architecture == "encoder-decoder":
            expected |= set(source.tolist())
        assert read_by(setup, slice(place.start + step, place.start + step + 1)) == expected
