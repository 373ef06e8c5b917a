"""Rows sharded along their length compute the same as whole rows, at a length that needs it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models, sharding
from lm.config import Config, DataConfig, MeshConfig, ObjectiveConfig, check_divisible
from lm.errors import InputError
from lm.tasks.masked_positions import max_masked
from lm.tasks.mlm import MaskedLM
from lm.training import step as step_lib
from tests.models.test_packing import MODERN

LENGTH, LONGEST = 8192, 5000


def objective():
    special = np.arange(128) < 5
    return MaskedLM(
        mask_rate=0.3,
        mask_token_rate=0.8,
        random_token_rate=0.1,
        whole_word=False,
        nsp=False,
        max_segments=3,
        max_positions=max_masked(LENGTH, 3, 0.3),
        mask_id=4,
        special_V=special,
        ordinary_ids=np.flatnonzero(~special).astype(np.int32),
        starts_word_V=~special,
    )


def gradients(devices):
    """Loss and gradients of a training step of a small ModernBERT, a row over all the devices."""
    config = dataclasses.replace(MODERN, num_layers=2, num_heads=1, window=64)
    model = models.build(config, models.Execution(remat="full"))
    rng = np.random.default_rng(0)
    lengths = (LONGEST, 1500, 1200)
    pad = LENGTH - sum(lengths)
    batch = {
        "tokens": rng.integers(5, 128, (1, LENGTH)),
        "segments": np.concatenate([np.full(n, i) for n, i in zip((*lengths, pad), (1, 2, 3, 0), strict=True)])[None],
        "positions": np.concatenate([np.arange(n) for n in (*lengths, pad)])[None],
        "token_types": np.zeros((1, LENGTH)),
    }
    batch = {name: array.astype(np.int32) for name, array in batch.items()}
    mesh = sharding.make_mesh(MeshConfig(data=1, context=len(devices)), devices)
    params = jax.jit(model.init)(jax.random.key(0))
    placed = jax.device_put(params, sharding.state_shardings(mesh, {"params": params})["params"])

    @jax.jit
    def compute(params, batch):
        task = objective()
        return step_lib.gradients(model, task, params, task.prepare(batch, jax.random.key(1)), None, 1)

    with jax.set_mesh(mesh):
        program = compute.lower(placed, jax.device_put(batch, sharding.batch_sharding(mesh))).compile()
        return *program(placed, jax.device_put(batch, sharding.batch_sharding(mesh))), program.as_text()


def test_a_step_of_8192_tokens_on_eight_devices_equals_one():
    """A global and a local layer, packed segments that lie across devices."""
    expected, metrics, _ = gradients(jax.devices()[:1])
    found, split_metrics, program = gradients(jax.devices())
    np.testing.assert_allclose(split_metrics["loss"], metrics["loss"], rtol=1e-6)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for (path, one), other in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))
    assert program
    # No device holds the scores, or the states, of a whole row.
    assert f"{LENGTH // 8},{LENGTH}]" in program
    assert f"{LENGTH},{LENGTH}]" not in program


def test_rows_that_the_devices_would_cut_unevenly_are_refused():
    mesh = sharding.make_mesh(MeshConfig(data=1, context=8))
    model = dataclasses.replace(MODERN, attention_dropout=0.0)
    config = Config(
        data=DataConfig(vocab_size=400, seq_length=1020, max_segments=8),
        model=dataclasses.replace(model, vocab_size=400),
        objective=ObjectiveConfig(nsp=False),
    )
    with pytest.raises(InputError, match=r"data\.seq_length is 1020, .* context = 8 .* nearest: 1016 or 1024"):
        check_divisible(mesh.shape, config)
