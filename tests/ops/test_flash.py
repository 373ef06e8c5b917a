"""Flash attention equals plain attention in outputs and gradients, packed or alone, on one device or several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models, sharding
from lm.config import MeshConfig
from lm.errors import InputError
from lm.models.attention import View, attend
from lm.ops import flash
from lm.ops.flash import gpu, tpu
from tests.models.test_packing import MODERN
from tests.models.test_packing_seq2seq import RELATIVE

HEADS, WIDTH = 2, 16
interpreted = functools.partial(tpu.attend, interpret=True)


def plain(query, key, value, *, segments_BL, memory_segments_BS, bias_HLS=None, **fields):
    """Plain attention behind the interface of the kernels."""
    return attend(query, key, value, View(segments_BL, memory_segments_BS, bias=bias_HLS, **fields))


def segments_of(*rows):
    """Rows of 256 with segments of these lengths, then padding."""
    packed = [np.repeat(range(1, len(row) + 1), row) for row in rows]
    return jnp.stack([jnp.asarray(np.pad(row, (0, 256 - len(row))), jnp.int32) for row in packed])


SEGMENTS = segments_of((100, 140), (256,), (30, 60, 100))


@pytest.fixture(scope="module")
def arrays():
    """Queries, keys and values, the weights of a loss, and a bias over distances."""
    keys = jax.random.split(jax.random.key(0), 5)
    heads = [jax.random.normal(key, (*SEGMENTS.shape, HEADS, WIDTH)) for key in keys[:4]]
    return heads[:3], heads[3] * (SEGMENTS > 0)[:, :, None, None], jax.random.normal(keys[4], (HEADS, 512))


def over_columns(curve_HN):
    """A bias over distances as one over pairs of columns."""
    column = jnp.arange(256)
    return curve_HN[:, column[:, None] - column[None, :] + 256]


def results(backend, arrays, **visibility):
    """The outputs where there are tokens, and the gradients of queries, keys, values and bias."""
    (query, key, value), weights, curve = arrays
    segments = dict(segments_BL=SEGMENTS, memory_segments_BS=SEGMENTS)

    @jax.jit
    def compute(query, key, value, curve):
        def loss(query, key, value, curve):
            bias = {"curve_HN": curve} if backend is interpreted else {"bias_HLS": over_columns(curve)}
            kept = bias if visibility.get("biased") else {}
            rest = {name: given for name, given in visibility.items() if name != "biased"}
            out = backend(0.3 * query, key, value, **segments, **kept, **rest)
            return jnp.vdot(out, weights), out * (weights != 0)

        return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(query, key, value, curve)

    (_, out), gradients = compute(query, key, value, curve)
    return [out, *gradients]


@pytest.mark.parametrize("block", [256, 128])  # one block of queries, whose gradients are computed together, and two
@pytest.mark.parametrize(
    "visibility", [{"window": 40}, {"biased": True}, {"biased": True, "causal": True, "window": 150}], ids=str
)
def test_the_tpu_kernels_equal_plain_attention(arrays, visibility, block, monkeypatch):
    monkeypatch.setattr(tpu, "BLOCKS", (block,))
    for one, other in zip(
        results(interpreted, arrays, **visibility), results(plain, arrays, **visibility), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_sharded_kernels_equal_plain_attention(arrays):
    """Over batch, the length of the queries and heads; the gradients of the bias that all share are added up."""
    (query, key, value), weights, curve = arrays
    twice = lambda array: jnp.concatenate([array, array[:1]])  # noqa: E731 (four rows)
    rows = jax.tree.map(twice, (query, key, value, weights, SEGMENTS))

    def loss(query, key, value, curve, backend, rows):
        bias = {"curve_HN": curve} if backend is interpreted else {"bias_HLS": over_columns(curve)}
        segments = dict(segments_BL=rows[4], memory_segments_BS=rows[4])
        return jnp.vdot(backend(query, key, value, causal=True, window=150, **segments, **bias), rows[3])

    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3)), static_argnums=4)
    expected = gradients(*rows[:3], curve, plain, rows)
    with jax.set_mesh(sharding.make_mesh(MeshConfig(data=1, fsdp=2, context=2, tensor=2))):
        found = gradients(*rows[:3], curve, interpreted, rows)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_nothing_leaks_between_segments(arrays):
    """A segment is computed to the last bit alike whatever shares its row, and gives the rest no gradient."""
    (query, key, value), _, _ = arrays
    segments = dict(segments_BL=SEGMENTS, memory_segments_BS=SEGMENTS)
    mine = (SEGMENTS == 2)[:, :, None, None]

    compute = jax.jit(lambda *heads: jnp.where(mine, interpreted(*heads, **segments), 0.0))
    other = jax.tree.map(lambda array: jnp.where(mine, array, 7.0 + array), (query, key, value))
    out, gradients = jax.vjp(compute, query, key, value)
    np.testing.assert_array_equal(out, compute(*other))
    for gradient in gradients(jnp.ones_like(out)):
        np.testing.assert_array_equal(jnp.where(mine, 0.0, gradient), 0.0)
        assert jnp.abs(gradient).max() > 0


@pytest.mark.parametrize(
    "config",
    [dataclasses.replace(MODERN, num_layers=2, global_every=2), dataclasses.replace(RELATIVE, num_decoder_layers=2)],
    ids=["encoder", "encoder-decoder"],
)
def test_a_model_computes_the_same_with_flash(config, monkeypatch):
    """Local and global layers, T5's bias of both stacks, attention to the memory: outputs and all gradients."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(5, config.vocab_size, SEGMENTS.shape), jnp.int32)
    positions = jnp.concatenate([jnp.arange(256)[None]] * len(SEGMENTS))
    params = jax.jit(models.build(config).init)(jax.random.key(0))

    def compute(params):
        model = models.build(config).merge(params)
        if config.architecture == "encoder":
            out = model(tokens, SEGMENTS, positions, jnp.zeros_like(tokens))
        else:
            out = model(model.encode(tokens, SEGMENTS, positions), tokens, SEGMENTS, positions)
        return (out.astype(jnp.float32) ** 2 * (SEGMENTS > 0)[:, :, None]).mean()

    plain = jax.jit(jax.value_and_grad(compute))(params)
    used = []
    monkeypatch.setattr(flash, "choose", lambda setting, asked: used.append(asked) or interpreted)
    for one, other in zip(
        jax.tree.leaves(jax.jit(jax.value_and_grad(lambda params: compute(params)))(params)),
        jax.tree.leaves(plain),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=2e-5)
    assert used


def choose(monkeypatch, platform, setting="auto", **needs):
    monkeypatch.setattr(sharding, "platform", lambda: platform)
    usual = flash.Asked(length=512, keys=512, head_dim=64, dtype="bfloat16")
    return flash.choose(setting, dataclasses.replace(usual, **needs))


@pytest.mark.parametrize(
    ("platform", "needs", "expected"),
    [
        ("tpu", {}, tpu.attend),
        ("tpu", {"has_bias": True}, tpu.attend),
        ("tpu", {"drops_weights": True}, None),
        ("gpu", {}, gpu.attend),
        ("gpu", {"has_bias": True, "has_window": True, "drops_weights": True}, gpu.attend),
        ("gpu", {"keys": 115, "head_dim": 36}, gpu.attend),
        ("cpu", {}, None),
        ("tpu", {"setting": "plain"}, None),
    ],
    ids=lambda value: value.__module__ if callable(value) else str(value),  # without the address of a function
)
def test_the_platform_chooses(monkeypatch, platform, needs, expected):
    assert choose(monkeypatch, platform, **needs) is expected


@pytest.mark.parametrize(
    ("platform", "needs", "message"),
    [
        ("cpu", {}, "a cpu has no flash attention; accepted there: auto, plain"),
        ("tpu", {"head_dim": 40}, "heads are 40 wide; accepted on a tpu: multiples of 16"),
        ("tpu", {"drops_weights": True}, "cannot drop attention weights; accepted there: model.attention_dropout=0"),
        ("gpu", {"head_dim": 136}, "heads are 136 wide; accepted on a gpu: multiples of 1 up to 128"),
        ("gpu", {"dtype": "float32"}, "train.dtype is float32; accepted on a GPU: bfloat16"),
    ],
    ids=str,
)
def test_what_a_platform_cannot_do_is_plain_or_refused(monkeypatch, platform, needs, message):
    assert choose(monkeypatch, platform, **needs) is None
    with pytest.raises(InputError, match=message):
        choose(monkeypatch, platform, "flash", **needs)


def test_a_row_split_over_devices_has_to_leave_each_the_same_part(monkeypatch):
    with jax.set_mesh(sharding.make_mesh(MeshConfig(data=1, context=8))):
        assert choose(monkeypatch, "gpu", "flash", length=520) is gpu.attend
        with pytest.raises(InputError, match="rows are 516 long, no multiple of 8; nearest: 512 or 520"):
            choose(monkeypatch, "gpu", "flash", length=516)


@pytest.mark.parametrize("biased", [True, False])
def test_rows_of_any_length_are_padded_to_whole_blocks(arrays, biased):
    """Queries and keys of other lengths, as T5's inputs and targets are: outputs and all gradients."""
    (query, key, value), weights, curve = arrays
    length, keys = 114, 250
    segments = dict(segments_BL=SEGMENTS[:, :length], memory_segments_BS=SEGMENTS[:, :keys])
    distance = jnp.arange(length)[:, None] - jnp.arange(keys)[None, :]

    def loss(query, key, value, curve, backend):
        bias = {"curve_HN": curve} if backend is interpreted else {"bias_HLS": curve[:, distance + keys]}
        out = backend(query, key, value, **segments, **(bias if biased else {}))
        return jnp.vdot(out, weights[:, :length]), out * (weights[:, :length] != 0)

    compute = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True), static_argnums=4)
    operands = query[:, :length], key[:, :keys], value[:, :keys], curve[:, : length + keys]
    found, expected = compute(*operands, interpreted), compute(*operands, plain)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)
