"""Sums computed part by part equal those over all rows, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import sharding
from lm.models.logits import Projection
from lm.tasks import losses


@pytest.mark.parametrize("biased", [True, False])
def test_a_loss_in_parts_equals_the_loss_of_all_logits(biased, monkeypatch):
    """Also where the parts do not divide the rows, and for the terms of a loss that are not the cross-entropy."""
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, kernel = jax.random.normal(keys[0], (2, 7, 8)), jax.random.normal(keys[1], (8, 20))
    bias, labels = jax.random.normal(keys[2], (20,)), jax.random.randint(keys[3], (2, 7), 0, 18)
    weights = (jax.random.uniform(keys[4], (2, 7)) < 0.7).astype(jnp.float32)

    def loss(hidden, kernel, bias):
        projection = Projection(hidden, kernel, bias if biased else None, 0.5)
        found = losses.projected_sums(projection, labels, weights, label_smoothing=0.1, z_loss=0.01, vocab_size=18)
        return 3.0 * found["loss"], found

    def results():
        compute = jax.jit(lambda *operands: jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*operands))
        return jax.tree.leaves((compute(hidden, kernel, bias), loss(hidden, kernel, bias)))

    expected = results()
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    monkeypatch.setattr(losses, "PART", 4 * 20 * 2 * 3)  # three columns of rows of logits: three parts, one padded
    found = results()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)
    assert max(np.abs(other).max() for other in expected) > 1


def test_no_program_of_a_loss_in_parts_holds_all_logits(monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    monkeypatch.setattr(losses, "PART", 4 * 500 * 2 * 8)

    def loss(hidden, kernel):
        return losses.projected_sums(Projection(hidden, kernel, None, 1.0), labels, labels + 1.0)["loss"]

    labels = jnp.zeros((2, 32), jnp.int32)
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(jnp.ones((2, 32, 8)), jnp.ones((8, 500))).as_text()
    assert "2x8x500" in lowered
    assert "2x32x500" not in lowered
