import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import models
from lm.config import ModelConfig, OptimConfig
from lm.training import optim
from tests.weights import random_params

STEPS = 100


def rate(step, **fields):
    config = OptimConfig(learning_rate=2.0, warmup_steps=10, **fields)
    return float(optim.learning_rate(config, STEPS, jnp.int32(step)))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {0: 0.0, 5: 1.0, 10: 2.0, 55: 1.0, 100: 0.0}),
        ("cosine", {5: 1.0, 10: 2.0, 55: 1.0, 100: 0.0}),
        ("rsqrt", {5: 1.0, 10: 2.0, 40: 1.0, 90: 2 / 3}),
        ("linear_from_start", {0: 0.0, 5: 1.0, 10: 1.8, 55: 0.9, 100: 0.0}),
        ("wsd", {5: 1.0, 10: 2.0, 90: 2.0, 95: 2 - 2 * 0.5**0.5, 100: 0.0}),
        ("constant", {5: 1.0, 10: 2.0, 100: 2.0}),
    ],
)
def test_schedules(schedule, expected):
    for step, value in expected.items():
        assert rate(step, schedule=schedule) == pytest.approx(value, abs=1e-6), step


def test_the_decay_of_wsd_may_be_linear():
    assert [rate(step, schedule="wsd", decay="linear") for step in (90, 95, 100)] == pytest.approx([2.0, 1.0, 0.0])


def test_a_constant_warm_up_has_the_peak_at_once():
    found = [rate(step, schedule="rsqrt", warmup="constant") for step in (0, 5, 10, 40)]
    assert found == pytest.approx([2.0, 2.0, 2.0, 1.0])


def test_schedules_end_at_the_final_fraction():
    for schedule in ("linear", "linear_from_start", "cosine", "wsd"):
        assert rate(STEPS, schedule=schedule, final_fraction=0.1) == pytest.approx(0.2, abs=1e-6)


@pytest.fixture(scope="module")
def params():
    config = ModelConfig(vocab_size=64, d_model=16, num_layers=3, num_heads=2, d_ff=32, max_length=8)
    return random_params(models.build(config), 0)


@pytest.fixture(scope="module")
def grads(params):
    return random_like(params)


def random_like(params):
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape), params)


def unstacked(tree):
    """Every layer as a tree of its own, as a library sees a model that does not stack."""
    encoder = dict(tree["encoder"])
    stacked = encoder.pop("layers")
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(3)]
    return {**tree, "encoder": encoder} | {f"layer_{i}": layer for i, layer in enumerate(layers)}


@functools.partial(jax.jit, static_argnums=0)
def two_steps(transformation, params, grads):
    """The second of two updates."""
    state = transformation.init(params)
    _, state = transformation.update(grads, state, params)
    return transformation.update(jax.tree.map(lambda g: 0.5 * g, grads), state, params)[0]


def assert_same(ours, reference):
    leaves = jax.tree.leaves_with_path(unstacked(ours))
    for (path, one), other in zip(leaves, jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def reference_chain(*middle):
    decay = optax.add_decayed_weights(0.01, mask=optim.decays)
    return optax.chain(optax.clip_by_global_norm(1.0), *middle[:1], decay, *middle[1:])


def test_adamw_is_optax_adamw(params, grads):
    reference = reference_chain(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-6))
    ours = two_steps(optim.create(OptimConfig()), params, grads)
    assert_same(ours, two_steps(reference, unstacked(params), unstacked(grads)))


def test_lamb_takes_the_trust_ratio_of_each_layer(params, grads):
    """Of what has weight decay; biases and norms keep Adam's direction."""
    adapt = optax.masked(optax.scale_by_trust_ratio(), optim.decays)
    reference = reference_chain(optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-6), adapt)
    ours = two_steps(optim.create(OptimConfig(name="lamb")), params, grads)
    assert_same(ours, two_steps(reference, unstacked(params), unstacked(grads)))


def test_lamb_moves_a_bias_that_begins_at_zero():
    """A constant gradient moves it by the rate in each step: to -1 after 1,000 steps of 0.001."""
    optimizer = optim.create(OptimConfig(name="lamb", clip_norm=0.0))
    params = {"head": {"bias": jnp.zeros(1), "kernel": jnp.ones((1, 1))}}
    grads = jax.tree.map(jnp.ones_like, params)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        return (jax.tree.map(lambda param, update: param - 1e-3 * update, params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), None, length=1000)
    assert float(params["head"]["bias"][0]) == pytest.approx(-1.0, abs=1e-3)


def test_adafactor_factors_each_layer_as_a_matrix():
    """Equal to optax on unstacked layers whose attention kernels are matrices; the statistics are vectors."""
    config = ModelConfig(vocab_size=256, d_model=128, num_layers=3, num_heads=2, d_ff=256, max_length=8)
    params = random_params(models.build(config), 0)
    grads = random_like(params)

    def matrices(tree):
        tree = unstacked(tree)
        for layer in (value for name, value in tree.items() if name.startswith("layer_")):
            for name, part in layer["attention"].items():
                shape = (-1, 128) if name == "out" else (128, -1)
                part["kernel"] = part["kernel"].reshape(shape)
                part["bias"] = part["bias"].reshape(-1) if name == "out" else part["bias"]
        return tree

    chain = [
        optax.scale_by_factored_rms(decay_rate=0.8),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
    ]
    optimizer = optim.create(OptimConfig(name="adafactor", weight_decay=0.0))
    ours = two_steps(optimizer, params, grads)
    reference = two_steps(optax.chain(optax.clip_by_global_norm(1.0), *chain), matrices(params), matrices(grads))
    for one, other in zip(jax.tree.leaves(matrices(ours)), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    state = sum(leaf.size for leaf in jax.tree.leaves(optimizer.init(params)))
    assert state < 0.05 * sum(leaf.size for leaf in jax.tree.leaves(params))


def test_stable_adamw_limits_a_sudden_gradient(params, grads):
    """After small gradients a hundredfold one moves AdamW far, StableAdamW by an RMS of about one."""

    def jump(name):
        optimizer = optim.create(OptimConfig(name=name, clip_norm=0.0, weight_decay=0.0, b2=0.98))
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for _ in range(20):
            _, state = update(grads, state, params)
        updates, _ = update(jax.tree.map(lambda g: 100 * g, grads), state, params)
        return float(jnp.sqrt(jnp.mean(updates["encoder"]["layers"]["mlp"]["up"]["kernel"] ** 2)))

    assert jump("stable_adamw") < 0.25 * jump("adamw")


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_stable_adamw_is_its_authors(scale):
    """Three steps beside optimi's, with debiased betas: the rate that RMS lowers multiplies update and decay."""
    config = OptimConfig(name="stable_adamw", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, clip_norm=0.0)
    optimizer = optim.create(config)
    random = np.random.default_rng(0)
    weights = random.normal(size=(4, 3))
    params = {"head": {"kernel": jnp.asarray(weights)}}
    state, rate, m, v = optimizer.init(params), 0.01, np.zeros((4, 3)), np.zeros((4, 3))
    for step in (1, 2, 3):
        grad = random.normal(size=(4, 3)) * (scale if step == 3 else 1.0)
        updates, state = optimizer.update({"head": {"kernel": jnp.asarray(grad)}}, state, params)
        params = jax.tree.map(lambda param, update: param - rate * update, params, updates)

        b1, b2 = ((beta**step - beta) / (beta**step - 1) for beta in (config.b1, config.b2))
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        lowered = rate / max(1.0, np.sqrt(np.mean(grad**2 / np.maximum(v, config.eps**2))))
        weights = weights * (1 - lowered * config.weight_decay) - lowered * m / (np.sqrt(v) + config.eps)
        np.testing.assert_allclose(params["head"]["kernel"], weights, rtol=1e-5)


def test_without_bias_correction_the_first_step_is_berts(params, grads):
    """m / (sqrt(v) + eps) with m = 0.1 g and v = 0.001 g^2."""
    config = OptimConfig(bias_correction=False, weight_decay=0.0, clip_norm=0.0)
    optimizer = optim.create(config)
    updates: Any = optimizer.update(grads, optimizer.init(params), params)[0]
    g = np.asarray(grads["pooler"]["kernel"], np.float64)
    np.testing.assert_allclose(updates["pooler"]["kernel"], 0.1 * g / (np.sqrt(0.001 * g * g) + 1e-6), rtol=1e-4)


def test_decay_spares_norms_and_biases(params):
    flags = {jax.tree_util.keystr(path): flag for path, flag in jax.tree.leaves_with_path(optim.decays(params))}
    assert all(flag == (not name.endswith(("['bias']", "['scale']"))) for name, flag in flags.items())
    assert flags["['encoder']['embedding']['token']"]
    assert not flags["['encoder']['layers']['attention']['query']['bias']"]
