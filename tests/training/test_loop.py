"""The step: sharded equals unsharded, micro-batches equal one batch, one compilation, no hidden transfer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import sharding, tasks
from lm.config import MeshConfig, check_divisible
from lm.errors import InputError
from lm.tasks import members
from lm.training import loop
from lm.training import program as program_lib
from lm.training import step as step_lib

from .conftest import changed

MESHES = {"data": (8, 1, 1, 1), "fsdp": (1, 8, 1, 1), "tensor": (2, 2, 1, 2), "context": (1, 2, 2, 2)}


def define(config, store, devices=None):
    mesh = sharding.make_mesh(config.mesh, devices)
    return program_lib.define(config, tasks.create_objective(config, store.tokenizer), mesh)


def losses(config, store, steps=5, devices=None):
    """The losses of some steps, and the state after them. No evaluation is compiled."""
    made = define(config, store, devices)
    state, take_step = made.lower_init().compile()(), made.lower_step().compile()
    source = members.batches(config, "", store, store.train)
    found = []
    for step in range(steps):
        batch = sharding.place_rows(made.mesh, config.data.batch_size, source(step))
        state, metrics = take_step(state, batch)
        found.append(float(metrics["loss"]))
    return found, state


@pytest.fixture(scope="module")
def shardable(tiny_config):
    """Dimensions that eight divides, dropout on."""
    return changed(tiny_config, model={"d_model": 64, "num_heads": 8, "d_ff": 128})


@pytest.fixture(scope="module", params=["encoder", "encoder-decoder"])
def unsharded(request, shardable, tiny_seq2seq, tiny_store):
    """A config, and five losses and the state after them on one device."""
    config = shardable if request.param == "encoder" else tiny_seq2seq
    return config, *losses(config, tiny_store, devices=jax.devices()[:1])


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_sharded_equals_unsharded(tiny_store, unsharded, sizes):
    config, expected, expected_state = unsharded
    config = changed(config, mesh=dict(zip(sharding.AXES, sizes, strict=True)))
    found, state = losses(config, tiny_store)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for (path, one), other in zip(
        jax.tree.leaves_with_path(state["params"]), jax.tree.leaves(expected_state["params"]), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-4, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_each_device_holds_only_its_share(shardable, tiny_seq2seq, tiny_store, kind, sizes):
    """Matrices and their Adam statistics are cut by fsdp x tensor; only vectors may be whole."""
    data, fsdp, tensor = sizes
    config = shardable if kind == "encoder" else tiny_seq2seq
    config = changed(config, mesh={"data": data, "fsdp": fsdp, "tensor": tensor})
    state = define(config, tiny_store).lower_init().compile()()
    ways = fsdp * tensor
    whole = held = 0
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path)
        share = max(shard.data.size for shard in leaf.addressable_shards)
        whole, held = whole + leaf.size, held + share
        if name.endswith(("['kernel']", "['token']")) and not name.endswith(
            ("['pooler']['kernel']", "['nsp']['kernel']", "['dense']['kernel']")
        ):
            assert share * ways == leaf.size, name
    assert held < 1.25 * whole / ways


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_micro_batches_equal_one_batch(shardable, tiny_seq2seq, tiny_store, kind):
    config = shardable if kind == "encoder" else tiny_seq2seq
    config = changed(config, model={"dropout": 0.0, "attention_dropout": 0.0, "mlp_dropout": 0.0})
    one, _ = losses(config, tiny_store, devices=jax.devices()[:1])
    four = changed(config, train={"accumulation": 4}, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_allclose(losses(four, tiny_store)[0], one, atol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_but_its_number(tiny_config, tiny_store):
    config = changed(tiny_config, mesh={"data": 1})
    made = define(config, tiny_store, jax.devices()[:1])
    state, batch = made.lower_init().compile()(), members.batches(config, "", tiny_store, tiny_store.train)(0)
    params = jax.tree.map(np.asarray, state["params"])
    poisoned = {**state, "params": {**state["params"], "nsp": {"bias": jnp.array([jnp.nan, 0.0]), **{}}}}
    poisoned["params"]["nsp"]["kernel"] = state["params"]["nsp"]["kernel"]
    state, metrics = made.lower_step().compile()(
        poisoned, sharding.place_rows(made.mesh, config.data.batch_size, batch)
    )
    assert int(metrics["skipped_steps"]) == int(state["skipped"]) == 1
    assert int(state["step"]) == 1
    np.testing.assert_array_equal(
        state["params"]["encoder"]["embedding"]["token"], params["encoder"]["embedding"]["token"]
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state["opt"]))


def test_divergence_stops_the_run(tiny_config, tmp_path):
    config = changed(tiny_config, optim={"learning_rate": 1e30, "clip_norm": 0.0}, train={"max_bad_steps": 3})
    config = changed(config, mesh={"data": 8})
    with pytest.raises(loop.Diverged, match="not finite for 3 steps in a row"):
        loop.train(config, str(tmp_path / "run"))


def test_the_step_is_traced_once_and_transfers_nothing_unasked(tiny_config, tiny_store, tmp_path, monkeypatch):
    traces = []
    original = step_lib.train_step

    def counting(*args):
        traces.append(1)
        return original(*args)

    monkeypatch.setattr(step_lib, "train_step", counting)
    loop.train(changed(tiny_config, train={"steps": 6, "eval_every": 2}), str(tmp_path / "run"))
    assert len(traces) == 1


def test_the_loop_runs_under_a_transfer_guard(tiny_config, tmp_path, monkeypatch):
    """A batch that is not placed on the devices by hand stops the run."""
    monkeypatch.setattr(program_lib.Program, "put", lambda self, batch: batch)
    with pytest.raises(Exception, match=r"(?i)transfer"):
        loop.train(changed(tiny_config, train={"steps": 2}), str(tmp_path / "run"))


def test_eight_rows_do_not_fit_three_ways(tiny_config):
    with pytest.raises(InputError, match="must multiply to 8"):
        sharding.make_mesh(MeshConfig(data=3))
    mesh = sharding.make_mesh(MeshConfig(data=8))
    with pytest.raises(
        InputError, match=r"batch_size .* is 12, which mesh data x fsdp = 8 does not divide; nearest: 8 or 16"
    ):
        check_divisible(mesh.shape, changed(tiny_config, data={"batch_size": 12}))


def test_every_parameter_has_a_row_in_the_table():
    with pytest.raises(KeyError, match="layers/novelty/kernel"):
        sharding.parameter_spec("layers/novelty/kernel", 3)
