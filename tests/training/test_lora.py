"""Low-rank adapters: step 0 is the base, only adapters and heads change, and a checkpoint reads as a merged model."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import checkpoint, lora, models, orbax_storage, parameters, sharding, tasks
from lm.config import CheckpointConfig, MeshConfig, OptimConfig
from lm.errors import InputError
from lm.inference.load import load
from lm.training import adapters, loop, metrics
from lm.training.initial import initial_params
from lm.training.program import define
from lm.training.start import check_new
from tests.weights import random_params

from .conftest import changed

RANK, SCALE = 3, 2.0
EVERY_KERNEL = r".*/layers/.*kernel"


def optim_of(**fields):
    return OptimConfig(lora_rank=RANK, lora_alpha=RANK * SCALE, **fields)


@pytest.fixture(scope="module")
def base(tiny_config, tiny_store, tmp_path_factory):
    """A BERT with random weights."""
    workdir = checkpoint.epath.Path(tmp_path_factory.mktemp("lora") / "base")
    checkpoint.write_atomically(workdir / tiny_store.tokenizer.file_name, tiny_store.tokenizer.to_bytes())
    saved = checkpoint.Checkpoints(workdir, CheckpointConfig(asynchronous=False))
    saved.save(1, {"params": random_params(models.build(tiny_config.model)), "step": np.int32(1)})
    saved.close()
    checkpoint.write_config(workdir, tiny_config)
    return str(workdir)


@pytest.fixture(scope="module")
def adapting(base, tiny_config):
    """Adapters beside kernels of every kind, on a mesh that splits the kernels and their heads."""
    return changed(
        tiny_config,
        optim={
            "lora_rank": RANK,
            "lora_alpha": RANK * SCALE,
            "lora_targets": ".*(query|out|down)/kernel",
            "schedule": "constant",
            "learning_rate": 0.01,
        },
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        train={"steps": 4},
        checkpoint={"every": 2, "keep": 5, "init_from": base},
    )


@pytest.fixture(scope="module")
def run(adapting, tmp_path_factory):
    """A run of four steps, with checkpoints at 2 and 4."""
    workdir = str(tmp_path_factory.mktemp("lora") / "run")
    loop.train(adapting, workdir)
    return workdir


def params_of(workdir, step):
    return parameters.flatten(checkpoint.load_params(workdir, step))


def stored(workdir, step) -> list[dict[str, jax.Array]]:
    """The trained parameters of a checkpoint, and the frozen ones, as they are stored."""
    folders = [checkpoint.epath.Path(workdir) / name for name in (f"checkpoints/{step}/params", "frozen")]
    found = [orbax_storage.read(path, orbax_storage.contents(path)[0])[0] for path in folders]
    return [{path: jnp.asarray(leaf) for path, leaf in parameters.flatten(tree).items()} for tree in found]


@pytest.mark.parametrize("name", ["tiny_config", "tiny_seq2seq"])
def test_step_0_is_the_base(name, request):
    config = request.getfixturevalue(name)
    plain = parameters.flatten(random_params(models.build(config.model)))
    added = lora.initial(jax.random.key(3), plain, optim_of(lora_targets=EVERY_KERNEL))
    kernels = {path for path in plain if "/layers/" in path and path.endswith("kernel")}
    assert added.keys() == {path.replace("kernel", name) for path in kernels for name in (lora.A, lora.B)}
    assert all(added[path].any() == path.endswith(lora.A) for path in added)
    found = lora.merged(plain | added, SCALE)
    assert found.keys() == plain.keys()
    for path in plain:
        np.testing.assert_array_equal(found[path], plain[path])


@pytest.mark.parametrize(
    ("inputs", "outputs"), [((16,), (4, 4)), ((4, 4), (16,)), ((16,), (24,))], ids=["query", "out", "up"]
)
def test_a_merged_kernel_computes_what_kernel_and_adapter_do(inputs, outputs):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    kernel, a, b, array = draw(2, *inputs, *outputs), draw(2, *inputs, RANK), draw(2, RANK, *outputs), draw(5, *inputs)
    merged = np.asarray(lora.add(SCALE, kernel, a, b))
    assert merged.shape == kernel.shape
    for layer in range(2):
        found = np.tensordot(array, merged[layer], axes=len(inputs))
        small = np.tensordot(array, a[layer], axes=len(inputs))
        expected = np.tensordot(array, kernel[layer], axes=len(inputs)) + SCALE * np.tensordot(small, b[layer], axes=1)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_the_query_and_value_kernels_have_adapters_by_default(tiny_seq2seq):
    shapes = parameters.flatten(jax.eval_shape(models.build(tiny_seq2seq.model).init, jax.random.key(0)))
    assert lora.targets(shapes, OptimConfig().lora_targets) == [
        f"{stack}/layers/{attention}/{part}/kernel"
        for stack, attention in (
            ("decoder", "attention"),
            ("decoder", "memory_attention"),
            ("encoder", "attention"),
        )
        for part in ("query", "value")
    ]


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        ("encoder/embedding/token", "matches encoder/embedding/token; accepted: .* the vocabulary projection"),
        (".*", "matches encoder/embedding/norm/bias"),
        (".*query/kernel, mlm/dense/kernel", "'mlm/dense/kernel', which matches mlm/dense/kernel.* trained whole"),
        ("query/kernel", "'query/kernel', which matches no parameter; .*encoder/layers/attention/query/kernel"),
        ("", "'', which matches no parameter"),
    ],
)
def test_what_can_have_no_adapter_is_refused(patterns, words, tiny_config):
    shapes = parameters.flatten(jax.eval_shape(models.build(tiny_config.model).init, jax.random.key(0)))
    with pytest.raises(InputError, match=rf"optim\.lora_targets has .*{words}"):
        lora.targets(shapes, patterns)


def test_what_is_no_regular_expression_is_refused():
    with pytest.raises(InputError, match=r"optim\.lora_targets has '\('"):
        OptimConfig(lora_targets="(").validate()


def test_a_run_is_refused_before_any_work(adapting, tmp_path):
    with pytest.raises(InputError, match=r"optim.lora_rank is 3, but checkpoint.init_from is empty"):
        check_new(changed(adapting, checkpoint={"init_from": ""}), tmp_path / "run")
    with pytest.raises(InputError, match=r"'.*/token', which matches encoder/embedding/token"):
        check_new(changed(adapting, optim={"lora_targets": ".*/token"}, model={"vocab_size": 0}), tmp_path / "run")


@pytest.mark.parametrize("name", ["adamw", "stable_adamw", "lamb", "adafactor"])
def test_statistics_are_kept_of_adapters_and_heads_alone(name, adapting, tiny_store):
    config = changed(adapting, optim={"name": name})
    objective = tasks.create_objective(config, tiny_store.tokenizer)
    made = define(config, objective, sharding.make_mesh(config.mesh))
    trained, frozen = adapters.partition(made.state["params"], config.optim)
    sizes = [leaf.size for leaf in jax.tree.leaves(made.state["opt"])]
    assert max(sizes) <= max(leaf.size for leaf in jax.tree.leaves(trained))
    assert sum(sizes) < sum(leaf.size for leaf in jax.tree.leaves(frozen)) // 2


def test_only_adapters_and_heads_change(run, base):
    trained, frozen = stored(run, 4)
    before = params_of(base, 1)
    assert frozen.keys() == {path for path in before if path.startswith("encoder/") or "logits" in path}
    for path in frozen:
        np.testing.assert_array_equal(frozen[path], before[path])
    early, _ = stored(run, 2)
    assert not any(np.array_equal(trained[path], early[path]) for path in trained)
    assert {path.partition("/")[0] for path in trained} == {"encoder", "mlm", "pooler", "nsp"}


def test_a_checkpoint_reads_as_the_merged_model(run, base):
    trained, frozen = stored(run, 4)
    found = parameters.flatten(load(run).params)
    assert found.keys() == params_of(base, 1).keys()
    for path in found:
        if path.endswith(("query/kernel", "out/kernel", "down/kernel")):
            expected = lora.add(SCALE, frozen[path], *(trained[path.replace("kernel", n)] for n in (lora.A, lora.B)))
            assert not np.array_equal(expected, frozen[path])
            np.testing.assert_allclose(found[path], expected, rtol=1e-6, atol=1e-7)
        else:  # heads as they were trained, and the rest of the base
            np.testing.assert_array_equal(found[path], (trained | frozen)[path])


def test_a_checkpoint_is_read_onto_a_mesh(run):
    whole = parameters.flatten(load(run).params)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for path, leaf in parameters.flatten(load(run, mesh).params).items():
        np.testing.assert_allclose(leaf, whole[path], rtol=1e-6, atol=1e-7)
        assert leaf.sharding.spec == sharding.parameter_spec(path, leaf.ndim)


def test_a_resumed_run_is_the_unbroken_one(run, adapting, tmp_path, capfd):
    workdir = str(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(f"{workdir}/checkpoints/4")  # as if the run had been killed after step 2
    loop.train(adapting, workdir)
    said = capfd.readouterr().err
    assert "resuming from step 2" in said
    assert "rank 3 beside encoder/layers/attention/out/kernel, " in said
    assert ", and mlm/dense, mlm/norm, nsp, pooler" in said
    curves = [[(line["step"], line["loss"]) for line in metrics.read_metrics(each)] for each in (run, workdir)]
    assert curves[0] == curves[1]
    expected, found = params_of(run, 4), params_of(workdir, 4)
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])


def test_another_run_begins_with_the_merged_weights(run, adapting, tiny_store, capfd):
    model = adapters.adapted(models.build(adapting.model), adapting.optim)
    found = parameters.flatten(initial_params(run, tiny_store.tokenizer, jax.jit(model.init)(jax.random.key(9))))
    expected = params_of(run, 4)
    assert found.keys() - expected.keys() == {path for path in found if lora.is_adapter(path)}
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path])
    assert "random" not in capfd.readouterr().err
