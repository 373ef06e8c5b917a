"""Adapters over one base, in one batch: each answer is that of the merged model alone."""

import concurrent.futures
import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from lm import checkpoint, lora, parameters
from lm.config import CheckpointConfig
from lm.data.store import Store
from lm.errors import InputError
from lm.inference.load import load
from lm.inference.predict import Predictor
from lm.serving.models import read_models
from lm.serving.server import make_service
from lm.serving.settings import Settings
from lm.training import adapters
from tests.inference.conftest import make_workdir
from tests.serving.conftest import WORDS, start, stop, until
from tests.training.conftest import changed

SETTINGS = Settings(("embed", "fill-mask", "generate"), slots=3, beams=(1, 2), max_length=16, batch_tokens=64)
READER, WRITER, BOTH = (
    pytest.mark.parametrize("served", kinds, indirect=True) for kinds in (["reader"], ["writer"], ["reader", "writer"])
)
# Name -> rank, alpha and targets.
ADAPTERS = {"one": (2, 6.0, ".*(query|value)/kernel"), "two": (3, 1.5, ".*/layers/.*kernel")}


def make_adapter(folder: Path, base: str, seed: int, rank: int, alpha: float, targets: str) -> str:
    """What a run with adapters leaves behind, of random adapters and heads."""
    root, step = checkpoint.locate(base)
    config = checkpoint.read_config(root)
    fields = {"lora_rank": rank, "lora_alpha": alpha, "lora_targets": targets}
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, **fields))
    leaves = parameters.flatten(checkpoint.load_params(root, step))
    drawn = np.random.default_rng(seed)
    noisy = lambda leaf: leaf + jnp.asarray(drawn.normal(size=leaf.shape, scale=0.3), jnp.float32)  # noqa: E731
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    leaves |= lora.initial(jax.random.key(seed), shapes, config.optim)
    leaves = {path: leaf if lora.is_base(path) else noisy(leaf) for path, leaf in leaves.items()}
    partition = functools.partial(adapters.partition, config=config.optim)
    saved = checkpoint.Checkpoints(folder, CheckpointConfig(asynchronous=False), partition)
    saved.save(seed, {"params": parameters.unflatten(leaves), "step": np.int32(seed)})
    saved.close()
    for file in epath.Path(base).glob("*token*"):
        shutil.copy(file, folder)
    checkpoint.write_config(folder, config)
    return str(folder)


@pytest.fixture(scope="module")
def bases(workdirs, tiny_config, tiny_seq2seq, tmp_path_factory):
    """A reader, and a writer that compiles fast."""
    config = changed(tiny_seq2seq, model={"num_layers": 1, "d_model": 32, "num_heads": 4, "d_ff": 32})
    tokenizer = Store.open(tiny_config.data.store).tokenizer
    return {**workdirs, "writer": make_workdir(tmp_path_factory.mktemp("small") / "writer", config, tokenizer)}


@pytest.fixture(scope="module")
def served(request, bases, tmp_path_factory):
    """A server with a base and two adapters, and their paths by name."""
    base = bases[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    paths = {name: make_adapter(folder / name, base, n, *how) for n, (name, how) in enumerate(ADAPTERS.items(), 1)}
    settings = dataclasses.replace(SETTINGS, adapters=tuple(f"{name}={path}" for name, path in paths.items()))
    service = make_service(read_models([("base", base)], settings), settings)
    service.engine.start()
    running = start(service)
    yield running, {"base": base, **paths}
    stop(running)
    service.engine.close()
    service.close()
    assert service.engine.compilations == 0
    assert service.engine.fault is None


def together(running, requests):
    """The answers to requests that are sent at once."""
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as threads:
        return list(threads.map(lambda request: running.post(*request), requests))


def merged(paths) -> dict[str, Predictor]:
    """The models with their adapters merged. They share their programs."""
    base = Predictor(load(paths["base"]))
    return {name: base.with_params(load(path).params, 0) for name, path in paths.items()}


def texts(count: int) -> list[str]:
    return [" ".join(WORDS[(i + k) % len(WORDS)] for k in range(1 + 3 * i % 7)) for i in range(count)]


@READER
def test_every_model_is_listed_and_others_are_unknown(served):
    running, paths = served
    assert [each["id"] for each in running.client.get("/v1/models").json()["data"]] == list(paths)
    for each in running.client.get("/tasks").json()["models"]:
        assert each["tasks"] == ["embed", "fill-mask"]
    refused = running.refusal("/v1/embeddings", {"input": "a", "model": "three"})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"


@READER
@pytest.mark.parametrize("task", ["embed", "fill-mask"])
def test_texts_of_all_models_in_one_batch_are_read_as_alone(served, task):
    running, paths = served
    given = {
        "embed": texts(4),
        "fill-mask": [f"the [MASK] {text} [MASK]" for text in texts(3)],
    }[task]
    requests = [(f"/tasks/{task}", {"inputs": [each], "model": name}) for each in given for name in paths]
    found = together(running, requests)
    read = {name: model.pipeline(task)(given) for name, model in merged(paths).items()}
    expected = [read[name][i] for i in range(len(given)) for name in paths]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(numbers(one["answers"][0]), numbers(other), atol=1e-6, rtol=1e-6)
    assert not np.allclose(numbers(read["base"][0]), numbers(read["one"][0]), rtol=1e-3, atol=0)
    alone = [running.post(*request) for request in requests]
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose(numbers(one["answers"][0]), numbers(other["answers"][0]), atol=1e-6, rtol=1e-6)


def numbers(answer) -> list[float]:
    match answer:
        case dict():
            return [number for value in answer.values() for number in numbers(value)]
        case list():
            return [number for value in answer for number in numbers(value)]
    return [answer] if isinstance(answer, float) else []


@READER
def test_all_models_share_their_batches_and_the_weights_of_the_base(served):
    engine = served[0].service.engine
    groups = [model.weights.readers["pooled by mean"] for model in engine.models.values()]
    assert all(group is groups[0] for group in groups)
    kernels = [parameters.flatten(model.predictor.loaded.params) for model in engine.models.values()]
    assert all(each["encoder/embedding/token"] is kernels[0]["encoder/embedding/token"] for each in kernels)


@WRITER
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"temperature": 1.2, "seed": 3}], ids=str)
def test_sequences_of_all_models_in_one_batch_are_written_as_alone(served, options):
    running, paths = served
    given, body = texts(3), {**options, "max_length": 12}
    requests = [("/tasks/generate", {"inputs": given, "model": name, **body}) for name in paths]
    found = together(running, requests)
    written = [model.generate(given, **body) for model in merged(paths).values()]
    for one, other in zip(found, written, strict=True):
        assert [each["text"] for each in one["answers"]] == [each["text"] for each in other]
        np.testing.assert_allclose(
            [each["score"] for each in one["answers"]], [each["score"] for each in other], atol=1e-5
        )
    assert len({str(each) for each in written}) == 3
    assert found == [running.post(*request) for request in requests]


@BOTH
def test_attention_is_that_of_the_adapter(served):
    running, paths = served
    task = running.service.engine.models["base"].tasks[0]
    ask = lambda name: running.post("/attention", {"task": task, "input": "the tree", "model": name})  # noqa: E731
    weights = [ask(name)["weights"] for name in paths]
    assert weights[0] != weights[1] != weights[2] != weights[0]


@READER
def test_an_adapter_takes_up_its_new_checkpoint(served):
    running, paths = served
    ask = functools.partial(running.post, "/tasks/embed")
    before = {name: ask({"inputs": ["the tree"], "model": name}) for name in paths}
    folder = Path(paths["one"])
    make_adapter(folder.parent / "later", paths["base"], 7, *ADAPTERS["one"])
    shutil.copytree(folder.parent / "later/checkpoints/7", folder / "checkpoints/7")
    assert running.post("/admin/reload", {"model": "one"}) == {"model": "one", "step": 7, "loaded": True}
    assert running.post("/admin/reload", {"model": "two"}) == {"model": "two", "step": 2, "loaded": False}
    after = {name: ask({"inputs": ["the tree"], "model": name}) for name in paths}
    assert [name for name in paths if before[name] != after[name]] == ["one"]
    np.testing.assert_allclose(
        numbers(after["one"]["answers"]), numbers(merged(paths)["one"].embed(["the tree"])), atol=1e-6
    )
    until(lambda: not running.service.scheduler.items)


def test_adapters_that_do_not_belong_to_the_model_are_refused(workdirs, tmp_path):
    base = workdirs["reader"]
    adapter = make_adapter(tmp_path / "adapter", base, 1, *ADAPTERS["one"])
    other = make_adapter(tmp_path / "writer", workdirs["writer"], 1, *ADAPTERS["one"])
    root, step = checkpoint.locate(base)
    shutil.copytree(base, tmp_path / "changed")
    saved = checkpoint.Checkpoints(tmp_path / "changed", CheckpointConfig(asynchronous=False))
    params = checkpoint.load_params(root, step)
    params["encoder"]["embedding"]["position"] += 1  # pyright: ignore[reportIndexIssue, reportArgumentType, reportOperatorIssue, reportCallIssue]
    saved.save(step + 1, {"params": params, "step": np.int32(step + 1)})
    saved.close()
    for path, given, words in (
        (base, f"a={base}", r"a run without adapters \(optim.lora_rank=0\); give it to --checkpoint"),
        (base, f"a={other}", "whose base is another model: it has model.architecture="),
        (tmp_path / "changed", f"a={adapter}", "1 of its .* frozen parameters differ, such as .*position"),
        (base, f"base={adapter}", "has 'base', the name of the model"),
        (base, f"a={adapter},a={adapter}", "--adapters has two models named 'a'"),
        (base, f"a={tmp_path}/nothing", "is no working directory"),
    ):
        with pytest.raises(InputError, match=words):
            read_models([("base", str(path))], Settings(adapters=tuple(given.split(","))))
    with pytest.raises(InputError, match="--checkpoint has several"):
        read_models([("a", base), ("b", base)], Settings(adapters=(f"c={adapter}",)))
