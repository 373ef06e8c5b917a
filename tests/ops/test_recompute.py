"""Rematerialised functions give the same values and gradients, and keep only what they should."""

import jax
import jax.numpy as jnp
import pytest

from lm.ops.activation import ACTIVATIONS, activate
from lm.ops.recompute import checkpointed, recomputed
from tests.ops.plain import assert_same, normals


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    assert_same(lambda array: activate(name, array), ACTIVATIONS[name], *normals((3, 40)))


def test_only_the_arguments_are_kept():
    chain = lambda array: jnp.tanh(jnp.exp(jnp.sin(array)))  # noqa: E731
    (array,) = normals((3, 40))
    kept = lambda function: len(jax.tree.leaves(jax.vjp(function, array)[1]))  # noqa: E731
    assert kept(recomputed(chain)) == 1 < kept(chain)
    assert_same(recomputed(chain), chain, array, least=0.01)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("in_scan", [True, False])
def test_a_layer_gives_the_same_whatever_it_keeps(remat, in_scan):
    layer = lambda array, kernel: jnp.tanh(array @ kernel)  # noqa: E731
    assert_same(checkpointed(layer, remat, in_scan=in_scan), layer, *normals((3, 8), (8, 8)), least=0.001)
