"""The kernels for norms and activation functions equal their formulas, and lower to CUDA on a machine without a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import sharding
from lm.config import MeshConfig
from lm.ops import activation_gpu, norm_gpu
from lm.ops.activation import activate, activate_plain
from lm.ops.norm import normalize, normalize_plain
from tests.ops.lowering import lowered_to_cuda
from tests.ops.plain import assert_same, normals


@pytest.mark.parametrize(("centred", "with_bias"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("width", [64, 48], ids=["power of two", "two pieces"])
def test_norms(centred, with_bias, width):
    missing = [None] * (not with_bias)
    ours, plain = (
        functools.partial(lambda form, *operands: form(centred, 1e-3, *operands, *missing), form)
        for form in (functools.partial(norm_gpu.normalize, interpret=True), normalize_plain)
    )
    assert_same(ours, plain, *normals((2, 24, width), (width,), *[(width,)] * with_bias))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("name", activation_gpu.FUNCTIONS)
def test_activation_functions(name, gated, monkeypatch):
    monkeypatch.setattr(activation_gpu, "BLOCK", 256)
    ours = lambda array, gate=None: activation_gpu.activate(name, 3 * array, gate, interpret=True)  # noqa: E731
    plain = lambda array, gate=None: activate_plain(name, 3 * array, gate)  # noqa: E731
    # XLA's tanh is itself off by some 1e-6.
    assert_same(ours, plain, *normals((2, 8, 64), *[(2, 8, 64)] * gated), tolerance=6e-6)


@pytest.mark.parametrize("name", activation_gpu.FUNCTIONS)
def test_far_from_zero_a_function_is_the_identity_or_zero_without_nan(name):
    far = jnp.asarray([-1e4, -200.0, 200.0, 1e4], jnp.float32)
    value, slope = activation_gpu.FUNCTIONS[name](far)
    np.testing.assert_allclose(value, jnp.maximum(far, 0))
    np.testing.assert_allclose(slope, far > 0)


def test_sharded_kernels_equal_their_formulas(monkeypatch):
    """Over rows, length and width of the feed-forward network; the gradients of scale and bias are added up."""
    monkeypatch.setattr(activation_gpu, "BLOCK", 64)
    array, scale, bias, up, gate = normals((4, 8, 32), (32,), (32,), (4, 8, 64), (4, 8, 64))

    def loss(norm, activation, array, scale, bias, up, gate):
        return (norm(True, 1e-3, array, scale, bias) ** 2).sum() + (activation("gelu", up, gate) ** 2).sum()

    gradients = jax.jit(jax.grad(loss, (2, 3, 4, 5, 6)), static_argnums=(0, 1))
    expected = gradients(normalize_plain, activate_plain, array, scale, bias, up, gate)
    ours = (
        functools.partial(norm_gpu.normalize, interpret=True),
        functools.partial(activation_gpu.activate, interpret=True),
    )
    with jax.set_mesh(sharding.make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))):
        found = gradients(*ours, array, scale, bias, up, gate)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [1024, 768])
def test_on_a_gpu_bfloat16_rows_go_through_the_kernels(width, monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    rows = jax.ShapeDtypeStruct((64, 128, width), jnp.bfloat16)
    scale = jax.ShapeDtypeStruct((width,), jnp.float32)

    def loss(rows, scale):
        normed = activate("gelu_tanh", normalize(True, 1e-6, rows, scale, scale), rows)
        return (normed.astype(jnp.float32) ** 2).sum()

    text = lowered_to_cuda(jax.grad(loss, (0, 1)), rows, scale)
    for kernel in ("norm", "of_norm", "activate", "of_activate"):
        assert f'name = "{kernel}"' in text


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 8, 64), jnp.float32),
        ((2, 64), jnp.bfloat16),
        ((1, 3, 64), jnp.bfloat16),
        ((2, 8, 0b10101010), jnp.bfloat16),
    ],
    ids=["float32", "two axes", "three rows", "a width of four pieces"],
)
def test_other_arrays_are_left_to_xla(shape, dtype, monkeypatch):
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    array = jnp.zeros(shape, dtype)
    assert not norm_gpu.takes(array)
    assert not activation_gpu.takes("gelu", array)
    assert not activation_gpu.takes("relu", jnp.zeros((2, 32, 64), jnp.bfloat16))
