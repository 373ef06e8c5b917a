"""Frozen parameters do not change, the others train as before, and a run saves the frozen ones once."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from lm import checkpoint, config, orbax_storage, parameters, sharding, tasks
from lm.errors import InputError
from lm.tasks import members
from lm.training import adapters, loop, metrics
from lm.training import step as step_lib
from lm.training.program import compile_program

from .conftest import changed

FROZEN = "encoder/embedding/.*, encoder/layers/mlp/.*"


def is_frozen(path):
    return path.startswith(("encoder/embedding/", "encoder/layers/mlp/"))


@pytest.fixture(scope="module")
def freezing(tiny_config):
    return changed(
        tiny_config,
        optim={"frozen": FROZEN, "schedule": "constant", "learning_rate": 0.01},
        train={"steps": 4},
        checkpoint={"every": 2, "keep": 5},
    )


def compiled(config, store, devices=None):
    mesh = sharding.make_mesh(config.mesh, devices)
    program = compile_program(config, tasks.create_objective(config, store.tokenizer), mesh)
    return program, members.batches(config, "", store, store.train)


def test_a_partition_is_by_whole_paths_and_merges_again():
    params = {"encoder": {"layers": {"kernel": 1, "bias": 2}, "norm": {"scale": 3}}, "head": {"kernel": 4}}
    trained, frozen = adapters.partition(params, config.OptimConfig(frozen="encoder/layers/kernel,.*/scale"))
    assert trained == {"encoder": {"layers": {"bias": 2}}, "head": {"kernel": 4}}
    assert frozen == {"encoder": {"layers": {"kernel": 1}, "norm": {"scale": 3}}}
    assert parameters.merge(trained, frozen) == params
    assert adapters.partition(params, config.OptimConfig()) == (params, {})


@pytest.mark.parametrize(
    ("frozen", "words"),
    [
        ("encoder", r"'encoder', which matches no parameter; accepted: .* begin with encoder, head"),
        ("encoder/.*,heads/.*", "'heads/.*', which matches no parameter"),
        (".*", "leaves no parameter to train"),
    ],
)
def test_what_freezes_nothing_or_everything_is_refused(frozen, words):
    with pytest.raises(InputError, match=words):
        adapters.partition({"encoder": {"kernel": 1}, "head": {"kernel": 2}}, config.OptimConfig(frozen=frozen))


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(InputError, match=r"optim\.frozen has '\('"):
        config.OptimConfig(frozen="(").validate()


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2, 1, 2)], ids=["one device", "sharded"])
def test_frozen_parameters_stay_and_have_no_statistics(freezing, tiny_store, sizes):
    mesh = dict(zip(sharding.AXES, sizes, strict=True))
    program, source = compiled(changed(freezing, mesh=mesh), tiny_store, jax.devices()[: int(np.prod(sizes))])
    state = program.init()
    before = jax.tree.map(np.asarray, parameters.flatten(state["params"]))
    for step in range(3):
        state, _ = program.step(state, program.put(source(step, program.rows)))
    after = parameters.flatten(state["params"])
    stayed = {path for path in before if np.array_equal(before[path], after[path])}
    assert stayed == {path for path in before if is_frozen(path)}
    adam = next(
        each for each in jax.tree.leaves(state["opt"], is_leaf=lambda x: hasattr(x, "mu")) if hasattr(each, "mu")
    )
    statistics = parameters.flatten(adam.mu)
    assert statistics.keys() == before.keys() - stayed
    for path, statistic in statistics.items():
        assert statistic.sharding.is_equivalent_to(after[path].sharding, statistic.ndim)


def test_the_trained_have_the_gradients_they_have_without_freezing(freezing, tiny_store):
    program, source = compiled(freezing, tiny_store, jax.devices()[:1])
    params, model, objective = program.init()["params"], program.model, program.objective
    examples = objective.prepare(jax.device_put(source(0)), jax.random.key(0))
    trained, frozen = adapters.partition(params, freezing.optim)
    for parts in (1, 2):
        expected, _ = jax.jit(lambda p, parts=parts: step_lib.gradients(model, objective, p, examples, None, parts))(
            params
        )
        found, _ = jax.jit(
            lambda p, rest, parts=parts: step_lib.gradients(model, objective, p, examples, None, parts, rest)
        )(trained, frozen)
        expected, found = parameters.flatten(expected), parameters.flatten(found)
        assert found.keys() == {path for path in expected if not is_frozen(path)}
        for path in found:
            np.testing.assert_allclose(found[path], expected[path], rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def unbroken(freezing, tmp_path_factory):
    """A run of four steps with frozen parameters, checkpoints at 2 and 4."""
    workdir = str(tmp_path_factory.mktemp("frozen") / "run")
    loop.train(freezing, workdir)
    return workdir


@pytest.fixture
def copy(unbroken, tmp_path):
    return str(shutil.copytree(unbroken, tmp_path / "copy"))


def params_of(workdir, step):
    return parameters.flatten(checkpoint.load_params(workdir, step))


def test_checkpoints_hold_the_trained_and_one_folder_the_frozen(unbroken):
    saved = checkpoint.SavedParams(unbroken, 2).abstract
    in_step, beside = (
        parameters.flatten(orbax_storage.contents(epath.Path(unbroken) / folder)[0])
        for folder in ("checkpoints/4/params", "frozen")
    )
    assert beside.keys() == {path for path in saved if is_frozen(path)}
    assert in_step.keys() == saved.keys() - beside.keys()
    early, late = params_of(unbroken, 2), params_of(unbroken, 4)
    assert {path for path in early if np.array_equal(early[path], late[path])} == beside.keys()


def test_a_resumed_run_is_the_unbroken_one(unbroken, freezing, tmp_path):
    workdir = str(tmp_path / "run")
    leftover = Path(workdir, "frozen.orbax-checkpoint-tmp")  # of a first save that was killed
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"")
    loop.train(changed(freezing, train={"steps": 2}), workdir)
    assert not leftover.exists()
    loop.train(freezing, workdir)
    curves = [[(line["step"], line["loss"]) for line in metrics.read_metrics(run)] for run in (unbroken, workdir)]
    assert curves[0] == curves[1]
    expected, found = params_of(unbroken, 4), params_of(workdir, 4)
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])


def test_a_first_save_that_was_killed_is_written_again(copy, unbroken, freezing):
    """Frozen parameters without a checkpoint are those of a run that never saved a step, perhaps of another model."""
    shutil.rmtree(Path(copy, "checkpoints"))
    for file in Path(copy, "frozen").glob("**/d/*"):
        file.write_bytes(b"")
    loop.train(changed(freezing, train={"steps": 2}), copy)
    expected, found = params_of(unbroken, 2), params_of(copy, 2)
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])


def test_damaged_frozen_parameters_are_named(copy, freezing):
    for file in Path(copy, "frozen").glob("**/d/*"):
        content = bytearray(file.read_bytes())
        content[int(0.7 * len(content))] ^= 8
        file.write_bytes(content)
    longer = changed(freezing, train={"steps": 5})
    with pytest.raises(InputError, match=r"frozen is damaged .*; restore it from a copy"):
        loop.train(longer, copy)
    with pytest.raises(InputError, match=r"frozen is damaged .*; restore it from a copy"):
        checkpoint.load_params(copy, 4)
    shutil.rmtree(Path(copy, "frozen"))
    with pytest.raises(InputError, match=r"frozen is damaged .*; restore it from a copy"):
        checkpoint.load_params(copy, 4)


def test_frozen_parameters_of_another_run_are_refused(copy, freezing, capfd):
    folder = epath.Path(copy) / "frozen"
    others, _ = orbax_storage.read(folder, orbax_storage.contents(folder)[0])
    orbax_storage.write(folder, jax.tree.map(lambda array: array + 1, others))
    with pytest.raises(InputError, match=r"frozen is damaged .*does not belong to checkpoint 4"):
        checkpoint.load_params(copy, 4)
    with pytest.raises(InputError, match=r"every checkpoint in .* is damaged \(tried 4, 2\)"):
        loop.train(changed(freezing, train={"steps": 5}), copy)
    assert "it was saved with other parameters than those in" in capfd.readouterr().err
