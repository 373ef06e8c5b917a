"""The gradients that layers write themselves, beside those that JAX derives of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.config import ModelConfig
from lm.models import attention, layers


def assert_same(ours, plain, *operands: jax.Array) -> None:
    """The same values, and the same gradients of every operand under a random cotangent."""
    value, backward = jax.vjp(ours, *operands)
    with jax.numpy_rank_promotion("allow"):
        plain_value, plain_backward = jax.vjp(plain, *operands)
    cotangent = jax.random.normal(jax.random.key(9), value.shape, value.dtype)
    for left, right in zip([value, *backward(cotangent)], [plain_value, *plain_backward(cotangent)], strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        scale = np.abs(right).max()
        assert scale > 0.1
        np.testing.assert_allclose(left, right, atol=3e-6 * scale, rtol=0)


def normals(*shapes: tuple[int, ...]) -> list[jax.Array]:
    return [jax.random.normal(jax.random.key(index), shape) + 0.5 for index, shape in enumerate(shapes)]


@pytest.mark.parametrize(("norm", "with_bias"), [("layernorm", True), ("layernorm", False), ("rmsnorm", False)])
def test_norms(norm, with_bias):
    config = ModelConfig(d_model=48, num_heads=4, norm=norm, norm_bias=with_bias, norm_eps=1e-3)
    centred = norm == "layernorm"

    def plain(array, scale_D, *bias_D):
        array = array - array.mean(-1, keepdims=True) if centred else array
        out = array / jnp.sqrt((array**2).mean(-1, keepdims=True) + config.norm_eps) * scale_D
        return out + bias_D[0] if bias_D else out

    def ours(array, scale_D, *bias_D):
        module = layers.Norm(config)
        module.scale[...] = scale_D
        if bias_D:
            module.bias[...] = bias_D[0]
        return module(array)

    assert_same(ours, plain, *normals((2, 5, 48), (48,), *[(48,)] * with_bias))


@pytest.mark.parametrize("leading", [(7,), (2, 5)])
@pytest.mark.parametrize("inputs", [(6,), (3, 4)])
@pytest.mark.parametrize("outputs", [(8,), (2, 5)])
def test_linear_maps(leading, inputs, outputs):
    def plain(array, kernel, bias):
        flat = array.reshape(*leading, -1) @ kernel.reshape(np.prod(inputs), -1)
        return flat.reshape(*leading, *outputs) + bias

    def ours(array, kernel, bias):
        config = ModelConfig(d_model=8, num_heads=2)
        module = layers.Dense(config, "dense", kernel.shape, inputs=len(inputs), bias=True, rngs=nnx.Rngs(0))
        module.kernel[...], module.bias[...] = kernel, bias
        return module(array)

    assert_same(ours, plain, *normals((*leading, *inputs), (*inputs, *outputs), outputs))


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activations(name):
    assert_same(lambda array: layers.activate(name, array), layers.ACTIVATIONS[name], *normals((3, 40)))


@pytest.mark.parametrize("queries", [1, 5])
def test_attention_bias(queries):
    assert_same(attention._biased, lambda scores, bias: scores + bias[None], *normals((3, 2, 5, 7), (2, queries, 7)))


def test_dropout():
    dropout = layers.Dropout(0.3, jax.random.key(5))
    kept = dropout(jnp.ones((6, 50)))
    assert 0.5 < (kept > 0).mean() < 0.9
    assert_same(dropout, lambda array: array * kept, *normals((6, 50)))
