"""The kernels for GPUs equal plain attention in outputs and gradients, and lower to CUDA on a machine without a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import sharding
from lm.config import MeshConfig
from lm.models.attention import View, attend
from lm.ops.dropout import Dropout
from lm.ops.flash import gpu
from lm.ops.flash.gpu_calls import along_diagonals
from tests.ops.lowering import lowered_to_cuda

interpreted = functools.partial(gpu.attend, interpret=True)
KEYS, HEADS, WIDTH = 96, 2, 24
# Three segments over several blocks of 32, a row without padding, and a row that is mostly padding.
SEGMENTS = jnp.stack(
    [np.pad(np.repeat([1, 2, 3][: len(row)], row), (0, KEYS - sum(row))) for row in ([33, 40, 10], [96], [20, 7])]
).astype(jnp.int32)


def operands(length):
    """Queries, keys, values, and a bias over distances."""
    shapes = [(len(SEGMENTS), size, HEADS, WIDTH) for size in (length, KEYS, KEYS)] + [(HEADS, length + KEYS)]
    return [jax.random.normal(jax.random.key(index), shape) for index, shape in enumerate(shapes)]


def compare(length, *, biased=False, dropout=None, mesh=None, **visibility):
    """Asserts equal outputs where there are tokens, and equal gradients of queries, keys, values and bias."""
    segments = dict(segments_BL=SEGMENTS[:, :length], memory_segments_BS=SEGMENTS)
    weights = jax.random.normal(jax.random.key(9), (len(SEGMENTS), length, HEADS, WIDTH))
    weights *= (SEGMENTS[:, :length] > 0)[:, :, None, None]
    distance = jnp.arange(length)[:, None] - jnp.arange(KEYS)[None, :] + KEYS

    def ours(query, key, value, curve):
        curve_HN = curve if biased else None
        return interpreted(query, key, value, curve_HN=curve_HN, dropout=dropout, **segments, **visibility)

    def plain(query, key, value, curve):
        bias = curve[:, distance] if biased else None
        view = View(SEGMENTS[:, :length], SEGMENTS, bias=bias, **visibility)
        return attend(query, key, value, view, dropout)

    def results(backend):
        def loss(*operands):
            out = backend(0.3 * operands[0], *operands[1:])
            return jnp.vdot(out, weights), out * (weights != 0)

        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(*operands(length)))

    expected = results(plain)
    if mesh is None:
        found = results(ours)
    else:
        with jax.set_mesh(mesh):
            found = results(ours)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(gpu, "BLOCK", 32)


def test_everything_at_once_equals_plain_attention():
    """Segments, causality, window, bias with its gradient, dropout by the same hash, heads that are no power of two."""
    compare(KEYS, biased=True, causal=True, window=50, dropout=Dropout(0.2, jax.random.key(7)))


def test_rows_of_any_length_equal_plain_attention():
    """Fewer queries than keys, neither of whole blocks, as T5's targets have."""
    compare(45, biased=True)


def test_sharded_kernels_equal_plain_attention():
    """The length of queries and the heads are split: the mask of dropout and the bias are those of the whole array."""
    mesh = sharding.make_mesh(MeshConfig(data=1, context=2, tensor=2), jax.devices()[:4])
    compare(64, biased=True, causal=True, dropout=Dropout(0.2, jax.random.key(7)), mesh=mesh)


def test_a_segment_is_computed_alike_whatever_shares_its_row():
    query, key, value, _ = operands(KEYS)
    mine = (SEGMENTS == 2)[:, :, None, None]
    other = jax.tree.map(lambda array: jnp.where(mine, array, 7.0 + array), (query, key, value))
    segments = dict(segments_BL=SEGMENTS, memory_segments_BS=SEGMENTS)
    compute = jax.jit(lambda *heads: jnp.where(mine, interpreted(*heads, **segments), 0.0))
    np.testing.assert_array_equal(compute(query, key, value), compute(*other))


def test_sums_along_diagonals():
    blocks_HDRR = jax.random.normal(jax.random.key(0), (2, 3, 4, 4))
    expected = np.zeros((2, 16))
    for (head, diagonal, row, column), value in np.ndenumerate(blocks_HDRR):
        expected[head, (diagonal + 1) * 4 + row - column] += value
    np.testing.assert_allclose(along_diagonals(blocks_HDRR), expected, atol=1e-5)


@pytest.mark.parametrize("width", [32, 128])
def test_the_kernels_lower_to_cuda_without_a_gpu(width, monkeypatch):
    monkeypatch.setattr(gpu, "BLOCK", 64)
    heads = jax.ShapeDtypeStruct((2, 512, 4, width), jnp.bfloat16)
    rest = [jax.ShapeDtypeStruct((4, 1024), jnp.float32), jax.ShapeDtypeStruct((2, 512), jnp.int32)]

    def loss(query, key, value, curve_HN, segments):
        dropout = Dropout(0.1, jax.random.key(0))
        kernel = functools.partial(gpu.attend, segments_BL=segments, memory_segments_BS=segments, curve_HN=curve_HN)
        out = kernel(query, key, value, causal=True, window=100, dropout=dropout)
        return out.astype(jnp.float32).sum()

    lowered = lowered_to_cuda(jax.grad(loss, (0, 1, 2, 3)), heads, heads, heads, *rest)
    for kernel in ("flash_forward", "flash_of_query", "flash_of_key", "flash_of_curve"):
        assert f'name = "{kernel}"' in lowered
