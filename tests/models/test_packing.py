"""A segment's outputs and gradients are the same packed and alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models
from lm.config import ModelConfig
from tests.weights import random_params

BERT = ModelConfig(vocab_size=128, d_model=32, num_layers=3, num_heads=4, d_ff=64, max_length=48)
MODERN = dataclasses.replace(
    BERT,
    norm_position="pre",
    norm_bias=False,
    norm_eps=1e-5,
    first_attention_norm=False,
    final_norm=True,
    gated=True,
    attention_bias=False,
    mlp_bias=False,
    position="rotary",
    rope_theta=160_000.0,
    global_every=3,
    window=4,
    token_types=0,
    pooler=False,
    head_bias=False,
)
LENGTHS = (11, 7, 20)
ROW = 48


@pytest.fixture(params=[BERT, MODERN], ids=["learned-post", "rotary-local-pre"])
def setup(request):
    model = models.build(request.param)
    params = random_params(model)
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, 128, n) for n in LENGTHS]
    return model, params, texts


def row_of(texts):
    """One row that holds the texts as segments, padded."""
    tokens, segments, positions = (np.zeros((1, ROW), np.int32) for _ in range(3))
    start = 0
    for number, text in enumerate(texts, 1):
        place = slice(start, start + len(text))
        tokens[0, place], segments[0, place], positions[0, place] = text, number, np.arange(len(text))
        start += len(text)
    return jnp.asarray(tokens), jnp.asarray(segments), jnp.asarray(positions), jnp.zeros((1, ROW), jnp.int32)


def outputs(model, params, texts):
    return model.merge(params)(*row_of(texts))[0]


def test_outputs_are_the_same_packed_and_alone(setup):
    model, params, texts = setup
    packed = outputs(model, params, texts)
    start = 0
    for text in texts:
        alone = outputs(model, params, [text])[: len(text)]
        np.testing.assert_allclose(packed[start : start + len(text)], alone, atol=1e-5)
        start += len(text)


def test_gradients_are_the_same_packed_and_alone(setup):
    """The gradient of a packed row is the sum of its segments' gradients."""
    model, params, texts = setup
    weights = jax.random.normal(jax.random.key(1), (sum(LENGTHS), 32))

    def loss(params, texts, weights):
        return (outputs(model, params, texts)[: len(weights)] * weights).sum()

    packed = jax.grad(loss)(params, texts, weights)
    total = jax.tree.map(jnp.zeros_like, packed)
    start = 0
    for text in texts:
        alone = jax.grad(loss)(params, [text], weights[start : start + len(text)])
        total = jax.tree.map(jnp.add, total, alone)
        start += len(text)
    for (path, one), other in zip(jax.tree.leaves_with_path(packed), jax.tree.leaves(total), strict=True):
        scale = max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_nothing_leaks_between_segments(setup):
    """The derivative of one segment's outputs by another's embeddings is exactly zero."""
    model, params, texts = setup
    tokens = row_of(texts)[0][0]
    first = slice(0, LENGTHS[0])

    def loss(table):
        embedding = {**params["encoder"]["embedding"], "token": table}
        changed = {**params, "encoder": {**params["encoder"], "embedding": embedding}}
        return jnp.square(model.merge(changed)(*row_of(texts))[0, first]).sum()

    gradient = jax.grad(loss)(params["encoder"]["embedding"]["token"])
    others = np.setdiff1d(np.asarray(tokens[LENGTHS[0] :]), np.asarray(tokens[first]))
    assert len(others) > 10
    np.testing.assert_array_equal(np.asarray(gradient)[others], 0.0)


@pytest.mark.parametrize("execution", [dict(unroll=0), dict(unroll=2), dict(remat="full"), dict(remat="dots")], ids=str)
def test_execution_does_not_change_the_numbers(setup, execution):
    model, params, texts = setup

    def loss(params, model):
        return jnp.square(outputs(model, params, texts)).sum()

    other = models.build(model.merge(params).encoder.config, models.Execution(**execution))
    value, gradient = jax.value_and_grad(loss)(params, model)
    other_value, other_gradient = jax.value_and_grad(loss)(params, other)
    np.testing.assert_allclose(value, other_value, rtol=1e-6)
    # Some gradients are zero but for rounding (a bias of the keys), so the scale is that of all of them.
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    for one, two in zip(jax.tree.leaves(gradient), jax.tree.leaves(other_gradient), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6 * scale)
