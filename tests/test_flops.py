"""FLOPs counted from a traced program are correct, also with loops, branches, meshes and kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from lm import families, sharding
from lm.config import Config, DataConfig, MeshConfig, ModelConfig, ObjectiveConfig
from lm.data.batches import example_lengths
from lm.flops import model_flops, needed_flops, program_flops

ONE = 2 * 8 * 16 * 32  # of a product of [8, 16] and [16, 32]


def counted(function, *shapes: tuple[int, ...]) -> tuple[float, float]:
    return program_flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))


def test_products_are_counted_as_xla_counts_them():
    function = lambda a, b: jnp.einsum("bij,bjk->bik", a, b) @ jnp.ones((32, 4))  # noqa: E731
    expected = jax.jit(function).lower(jnp.zeros((3, 8, 16)), jnp.zeros((3, 16, 32))).compile().cost_analysis()
    assert expected is not None
    assert counted(function, (3, 8, 16), (3, 16, 32)) == (expected["flops"], 0)


def test_a_loop_counts_as_often_as_it_runs():
    def loop(a, b):
        return jax.lax.scan(lambda carry, _: (carry + (a @ b).sum(), None), 0.0, None, length=7)[0]

    assert counted(loop, (8, 16), (16, 32)) == (7 * ONE, 0)


def test_of_branches_the_dearest_counts():
    def branch(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: (a @ b).sum(), lambda: (a @ b @ b.T).sum())

    assert counted(branch, (8, 16), (16, 32))[0] == 2 * ONE


def test_what_every_device_does_is_counted_for_all():
    mesh = sharding.make_mesh(MeshConfig())
    split = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert counted(split, (8 * mesh.size, 16), (16, 32))[0] == mesh.size * ONE


def test_kernels_are_counted_by_their_grid():
    def kernel(a_ref, b_ref, out_ref):
        out_ref[...] = a_ref[...] @ b_ref[...]

    def call(a, b):
        return pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((40, 32), jnp.float32),
            grid=(5,),
            in_specs=[pl.BlockSpec((8, 16), lambda i: (i, 0)), pl.BlockSpec((16, 32), lambda i: (0, 0))],
            out_specs=pl.BlockSpec((8, 32), lambda i: (i, 0)),
        )(a, b)

    assert counted(call, (40, 16), (16, 32)) == (5 * ONE, 5 * ONE)


@pytest.mark.parametrize("length", [1, 3])
def test_a_gradient_costs_twice_what_it_is_of(length: int):
    def loss(a, b):
        return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ b @ b.T), None), a, None, length=length)[0].sum()

    forward = counted(loss, (8, 16), (16, 32))[0]
    both = counted(jax.value_and_grad(loss, argnums=(0, 1)), (8, 16), (16, 32))[0]
    np.testing.assert_allclose(both, 3 * forward)


SIZES = {"vocab_size": 64, "d_model": 32, "num_layers": 4, "num_heads": 4, "d_ff": 48}
ENCODER = Config(
    data=DataConfig(vocab_size=64, seq_length=40),
    model=families.modernbert(**SIZES, window=5),
    objective=ObjectiveConfig(nsp=False),
)
PAIRS = Config(
    data=DataConfig(source="dates", vocab_size=64, seq_length=40, target_length=24),
    model=families.t5_1_1(**SIZES),
    objective=ObjectiveConfig(name="pairs"),
)
DECODER = Config(
    data=DataConfig(vocab_size=64, seq_length=40),
    model=families.gpt(**SIZES),
    objective=ObjectiveConfig(name="causal_lm"),
)


def pairs_of_layer(model: ModelConfig, length: int, layer: int, causal: bool) -> int:
    """Queries and keys of one example, counted one by one."""
    window = model.window if layer % model.global_every else length
    return sum(abs(i - j) <= window and (j <= i or not causal) for i in range(length) for j in range(length))


@pytest.mark.parametrize("config", [ENCODER, PAIRS, DECODER], ids=["encoder", "encoder-decoder", "decoder"])
def test_a_batch_needs_its_tokens_its_pairs_and_its_predictions(config: Config):
    """Three examples share two rows. No product is counted for padding, or between examples."""
    sources = [] if config is DECODER else [13, 9, 30]
    targets = [] if config is ENCODER else [7, 3, 20]
    batch = {}
    for name, lengths in (("segments", sources), ("target_segments", targets)):
        if lengths:
            batch[name] = np.zeros((2, 40), np.int32)
            batch[name][0, : lengths[0]] = 1
            batch[name][0, lengths[0] : lengths[0] + lengths[1]] = 2
            batch[name][1, : lengths[2]] = 1
    model, inner, predicted = config.model, 32, 11
    expected = predicted * 32 * 64 + (predicted * 32 * 32 if config is ENCODER else 0)
    for lengths, causal in ((sources, False), (targets, True)):
        for layer in range(4):
            expected += sum(lengths) * (4 * 32 * inner + (3 if model.gated else 2) * 32 * 48)
            expected += sum(2 * inner * pairs_of_layer(model, length, layer, causal) for length in lengths)
    if config is PAIRS:
        expected += 4 * 2 * 32 * inner * (sum(sources) + sum(targets))
        expected += sum(4 * 2 * inner * source * target for source, target in zip(sources, targets, strict=True))
    assert needed_flops(config, *example_lengths(batch), predicted) == pytest.approx(6 * expected)


def test_one_example_a_row_needs_what_the_model_does():
    config = Config(data=DataConfig(vocab_size=64, seq_length=40), model=families.bert(**SIZES))
    found = needed_flops(config, *example_lengths({"segments": np.ones((1, 40), np.int32)}), 6)
    assert found == pytest.approx(model_flops(config, 6))
