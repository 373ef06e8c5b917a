"""Rematerialised functions give the same values and gradients, and keep only what they should."""

import jax
import jax.numpy as jnp
import pytest

from lm import families, models
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


@pytest.mark.parametrize("share_layers", [False, True])
@pytest.mark.parametrize("unroll", [0, 1, 2])
def test_the_compiler_may_merge_recomputation_only_across_the_loops_of_a_scan(share_layers, unroll):
    """Without a loop around one layer it would find the first computation, and so keep the values."""
    config = families.bert(vocab_size=32, d_model=8, num_layers=2, num_heads=2, d_ff=8, share_layers=share_layers)
    model = models.build(config, models.Execution(remat="full", unroll=unroll))
    rows = jnp.ones((1, 4), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    jaxpr = jax.make_jaxpr(lambda params: model.merge(params)(rows, rows, rows, rows))(params)
    layers = [each for each in places(jaxpr.jaxpr) if "prevent_cse" in each[0].params]
    assert layers
    for layer, around in layers:
        assert layer.params["prevent_cse"] != any(each.params.get("unroll", 0) == 1 for each in around)


def places(jaxpr, around=()):
    """Every equation, and those whose bodies it is in."""
    for equation in jaxpr.eqns:
        yield equation, around
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from places(inner, (*around, equation))
