"""A run starts from the body of another model. Heads may differ; stderr names the random and the dropped ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import checkpoint, models, orbax_storage, parameters, sharding
from lm.config import CheckpointConfig, Config, MeshConfig
from lm.errors import InputError
from lm.parameters import Params
from lm.training import loop
from lm.training.initial import initial_params

from .conftest import changed, make_corpus


def build(config: Config, seed: int = 0, **model: object) -> Params:
    """The parameters of a config with some model settings replaced."""
    settings = dataclasses.replace(config.model, **model)
    return jax.jit(models.build(settings).init)(jax.random.key(seed))


def headless(config: Config) -> Config:
    return changed(config, model={"pooler": False}, objective={"nsp": False})


@pytest.fixture
def save(tmp_path, tiny_store):
    """A function that writes a working directory with the parameters of a config, drawn from seed 1."""

    def write(config: Config) -> str:
        workdir = checkpoint.epath.Path(tmp_path / "source")
        checkpoint.write_atomically(workdir / tiny_store.tokenizer.file_name, tiny_store.tokenizer.to_bytes())
        saved = checkpoint.Checkpoints(workdir, CheckpointConfig(asynchronous=False))
        saved.save(3, {"params": build(config, seed=1), "step": np.int32(3)})
        saved.close()
        checkpoint.write_config(workdir, config)
        return str(workdir)

    return write


def begin(path: str, fresh: Params, tiny_store) -> tuple[dict[str, jax.Array], ...]:
    """The parameters of the checkpoint, the fresh ones, and those to begin with; flat."""
    saved = checkpoint.load_params(*checkpoint.locate(path))
    return tuple(map(parameters.flatten, (saved, fresh, initial_params(path, tiny_store.tokenizer, fresh))))


def assert_taken(found: dict, saved: dict, fresh: dict, is_taken: Callable[[str], bool]) -> None:
    assert found.keys() == fresh.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, (saved if is_taken(path) else fresh)[path])


def test_everything_is_taken_from_the_same_model_and_nothing_else_is_said(save, tiny_config, tiny_store, capfd):
    path = save(tiny_config)
    saved, fresh, found = begin(path, build(tiny_config), tiny_store)
    assert_taken(found, saved, fresh, lambda path: True)
    assert capfd.readouterr().err == f"starting from the weights of {path}, step 3\n"


def test_a_new_head_is_fresh(save, tiny_config, tiny_store, capfd):
    saved, fresh, found = begin(save(headless(tiny_config)), build(tiny_config), tiny_store)
    assert_taken(found, saved, fresh, lambda path: not path.startswith(("pooler/", "nsp/")))
    assert capfd.readouterr().err.splitlines()[1:] == ["new, with random weights: nsp, pooler"]


def test_a_head_that_is_not_wanted_is_dropped_and_never_read(save, tiny_config, tiny_store, capfd, monkeypatch):
    asked, read = set(), orbax_storage.read

    def watched(folder, abstract, **options):
        asked.update(parameters.flatten(abstract))
        return read(folder, abstract, **options)

    path, fresh = save(tiny_config), build(tiny_config, pooler=False, head_bias=False)
    monkeypatch.setattr(orbax_storage, "read", watched)
    initial_params(path, tiny_store.tokenizer, fresh)
    assert asked == parameters.flatten(fresh).keys()
    assert capfd.readouterr().err.splitlines()[1:] == [
        "dropped, which this model does not have: mlm/dense/bias, nsp, pooler"
    ]


def test_an_encoder_is_taken_from_an_encoder_decoder(save, tiny_seq2seq, tiny_store, capfd):
    encoder = build(tiny_seq2seq, architecture="encoder")
    saved, fresh, found = begin(save(tiny_seq2seq), encoder, tiny_store)
    assert_taken(found, saved, fresh, lambda path: path.startswith("encoder/"))
    assert capfd.readouterr().err.splitlines()[1:] == [
        "new, with random weights: mlm",
        "dropped, which this model does not have: decoder, logits",
    ]


def test_another_body_is_refused_by_its_first_parameter(save, tiny_config, tiny_seq2seq, tiny_store):
    path = save(tiny_config)
    shapes = {
        "d_ff": (128, r"mlp/down/kernel has shape \(2, 64, 32\), but the config makes \(2, 128, 32\)"),
        "num_layers": (3, r"encoder/layers/.* has shape \(2, .*but the config makes \(3, .*"),
        "vocab_size": (512, r"encoder/embedding/token has shape \(448, 32\), but the config makes \(512, 32\)"),
        "mlp_bias": (False, "mlp/down/bias has shape .* but the config makes no such parameter"),
        "gated": (True, r"mlp/gate/bias is missing, but the config makes \(2, 64\)"),
    }
    for name, (value, words) in shapes.items():
        fresh = jax.eval_shape(lambda name=name, value=value: build(tiny_config, **{name: value}))
        with pytest.raises(InputError, match=words + r"; give the model settings of .*source/config\.json"):
            initial_params(path, tiny_store.tokenizer, fresh)
    with pytest.raises(InputError, match="has encoder, mlm, nsp, pooler, but the config makes decoder, logits"):
        initial_params(path, tiny_store.tokenizer, jax.eval_shape(lambda: build(tiny_seq2seq, architecture="decoder")))


def test_parameters_are_read_into_their_shardings(save, tiny_config, tiny_store):
    path = save(headless(tiny_config))
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    fresh = build(tiny_config)
    fresh = jax.device_put(fresh, sharding.state_shardings(mesh, {"params": fresh})["params"])
    found = initial_params(path, tiny_store.tokenizer, fresh)
    saved = parameters.flatten(checkpoint.load_params(*checkpoint.locate(path)))
    for name, array in parameters.flatten(found).items():
        assert array.sharding == parameters.flatten(fresh)[name].sharding
        if name in saved:
            np.testing.assert_array_equal(array, saved[name])


def test_parameters_saved_on_many_devices_are_read_onto_one(save, tiny_config, tmp_path):
    mesh = sharding.make_mesh(MeshConfig(fsdp=8, data=1))
    params = build(tiny_config)
    placed = jax.device_put(params, sharding.state_shardings(mesh, {"params": params})["params"])
    saved = checkpoint.Checkpoints(tmp_path / "run", CheckpointConfig(asynchronous=False))
    saved.save(1, {"params": placed, "step": np.int32(1)})
    saved.close()
    found = checkpoint.load_params(tmp_path / "run", 1)
    assert {device for array in jax.tree.leaves(found) for device in array.devices()} == {jax.devices()[0]}
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_run_begins_from_another(save, tiny_config, tmp_path, capfd):
    path = save(tiny_config)
    without = changed(
        headless(tiny_config),
        train={"steps": 1},
        checkpoint={"init_from": path},
        optim={"learning_rate": 0.0},
    )
    loop.train(without, str(tmp_path / "next"))
    assert "dropped, which this model does not have: nsp, pooler" in capfd.readouterr().err
    old, new = (checkpoint.load_params(*checkpoint.locate(each)) for each in (path, str(tmp_path / "next")))
    jax.tree.map(np.testing.assert_array_equal, new["encoder"], old["encoder"])


def test_a_run_that_cannot_begin_leaves_nothing(save, tiny_config, tmp_path):
    config = changed(tiny_config, model={"d_ff": 128}, checkpoint={"init_from": save(tiny_config)})
    with pytest.raises(InputError, match=r"mlp.*has shape \(2, 64.*but the config makes \(2, 128"):
        loop.train(config, str(tmp_path / "next"))
    assert not (tmp_path / "next" / "config.json").exists()


def test_weights_with_another_tokenizer_are_refused(save, tiny_config, tmp_path):
    corpus = make_corpus(tmp_path / "other.txt", documents=80, seed=9)
    data = dataclasses.replace(tiny_config.data, path=str(corpus), store="")
    config = changed(dataclasses.replace(tiny_config, data=data), checkpoint={"init_from": save(tiny_config)})
    with pytest.raises(InputError, match="another tokenizer"):
        loop.train(config, str(tmp_path / "next"))
    assert not Path(tmp_path, "next", "config.json").exists()
