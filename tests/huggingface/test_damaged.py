"""Whatever is wrong with a folder's settings or weights, one line says it: no traceback, no import of other numbers."""

import contextlib
import functools
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lm import families, models
from lm.errors import InputError
from lm.huggingface import FAMILIES, export_folder, from_tensors, import_folder, read_config, to_tensors, write_config
from lm.huggingface.tensors import Tensor
from tests.weights import random_params

SIZES = {"vocab_size": 40, "d_model": 8, "num_layers": 1, "num_heads": 2, "d_ff": 12, "max_length": 16}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
FAST = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.function_scoped_fixture),
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder") / "bert"
    config = families.bert(**SIZES)
    export_folder(folder, config, random_params(models.build(config)))
    return folder


@pytest.fixture
def damaged(bert: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may damage."""
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refused(call: Callable[[], object]) -> str:
    """The message of the one-line error that a call raises."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


# ---- Settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_setting_of_another_type_is_refused(name: str) -> None:
    family = FAMILIES[name]
    written = write_config(family.model, model_type=name)
    for key in {each.theirs for each in family.settings}:
        fields = [f"model.{each.ours}" for each in family.settings if each.theirs == key]
        for wrong in ([1], {"a": 1}, -1, 10**400, 1.5 if isinstance(written[key], int) else [], "9"):
            message = refused(lambda key=key, wrong=wrong: read_config({**written, key: wrong}))
            assert any(named in message for named in (key, *fields))


@FAST
@given(name=st.sampled_from(sorted(FAMILIES)), drawn=st.data())
def test_any_settings_are_read_or_refused(name: str, drawn: st.DataObject) -> None:
    """Keys that are missing, or have values of any type."""
    written = write_config(FAMILIES[name].model, model_type=name)
    changed = drawn.draw(st.dictionaries(st.sampled_from(sorted(written)), JSON, max_size=4))
    missing = drawn.draw(st.sets(st.sampled_from(sorted(written)), max_size=2))
    content = {key: value for key, value in {**written, **changed}.items() if key not in missing}
    with contextlib.suppress(InputError):
        read_config(content).validate()


@pytest.mark.parametrize("content", ["", "[]", "3", '"bert"', "{", '{"a": NaN}', "[" * 10_000, "9" * 5000, "\xff\xfe"])
def test_a_config_that_is_no_object_of_json_is_refused(damaged: Path, content: str) -> None:
    (damaged / "config.json").write_text(content, encoding="latin-1")
    assert "config.json" in refused(lambda: import_folder(damaged))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": ["bert"]}, "model_type ['bert']; accepted: bert"),
        ({"model_type": "deberta-v2"}, "model_type 'deberta-v2': its attention adds products"),
        ({"quantization_config": {"bits": 8}}, "quantization_config; accepted: weights that are not quantized"),
        ({"num_hidden_layers": 10**9}, "config.json has 1000000000 layers, but the checkpoint only"),
        ({"vocab_size": 41}, "word_embeddings.weight has shape (40, 8), but config.json implies (41, 8)"),
        ({"max_position_embeddings": 2**31 - 1}, "position_embeddings.weight has shape (16, 8)"),
    ],
)
def test_settings_of_another_model_are_refused(damaged: Path, change: dict[str, object], message: str) -> None:
    content = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**content, **change}))
    assert message in refused(lambda: import_folder(damaged))


def test_a_null_means_the_default() -> None:
    written = write_config(FAMILIES["bert"].model)
    assert read_config({**written, "layer_norm_eps": None}) == FAMILIES["bert"].model


def test_a_null_base_of_modernberts_local_layers_is_that_of_its_global_ones() -> None:
    """As transformers 4 reads its own folders. One that has no such key takes the default."""
    old = {"model_type": "modernbert", "global_rope_theta": 80_000.0}
    assert read_config({**old, "local_rope_theta": None}).rope_theta_local == 80_000.0
    assert read_config(old).rope_theta_local == 10_000.0


# ---- Weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(damaged: Path, value: float) -> None:
    tensors = load_file(damaged / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.weight"][0, 0] = value
    save_file(tensors, damaged / "model.safetensors")
    message = refused(lambda: import_folder(damaged))
    assert "bert.encoder.layer.0.output.dense.weight has 1 of 96 values that are NaN or infinite" in message


def test_a_weight_beyond_float32_is_named(damaged: Path) -> None:
    tensors = load_file(damaged / "model.safetensors")
    tensors["bert.pooler.dense.bias"] = np.full(8, 1e300)
    save_file(tensors, damaged / "model.safetensors")
    assert "bert.pooler.dense.bias has 8 of 8 values" in refused(lambda: import_folder(damaged))


def test_weights_of_whole_numbers_are_refused(damaged: Path) -> None:
    tensors = load_file(damaged / "model.safetensors")
    tensors["bert.pooler.dense.weight"] = np.zeros((8, 8), np.int8)
    save_file(tensors, damaged / "model.safetensors")
    assert "bert.pooler.dense.weight has the type I8; accepted: weights of F64, F32, F16, BF16" in refused(
        lambda: import_folder(damaged)
    )


def test_tensors_of_another_shape_are_named() -> None:
    config = families.bart(**SIZES)
    written = write_config(config)
    leaves = jax.eval_shape(models.build(config).init, jax.random.key(0))
    named = to_tensors(config, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), leaves))
    shapes = {name: array.shape for name, array in named.items()}
    assert shapes["model.decoder.embed_positions.weight"] == (18, 8)
    of_each_layout = "final_logits_bias", "model.shared.weight", "model.decoder.layers.0.fc1.weight"
    for wrong in (*of_each_layout, "model.encoder.layers.0.fc1.bias", "model.decoder.embed_positions.weight"):
        tensors = {name: _zeros((*shape, 1) if name == wrong else shape) for name, shape in shapes.items()}
        message = refused(lambda tensors=tensors: from_tensors(written, tensors))
        assert message.startswith(f"{wrong} has shape {(*shapes[wrong], 1)}, but config.json implies {shapes[wrong]}")


def _zeros(shape: tuple[int, ...]) -> Tensor:
    return Tensor(shape, "F32", functools.partial(np.zeros, shape, np.float32))


def test_truncated_safetensors_are_refused(damaged: Path) -> None:
    content = (damaged / "model.safetensors").read_bytes()
    for size in (0, 4, 8, 60, len(content) // 2, len(content) - 1):
        (damaged / "model.safetensors").write_bytes(content[:size])
        assert "model.safetensors cannot be read as safetensors" in refused(lambda: import_folder(damaged))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "has no weight_map"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "has no weight_map"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors, which model.safetensors.index.json names"),
    ],
)
def test_an_index_that_names_no_shards_is_refused(damaged: Path, index: str, message: str) -> None:
    (damaged / "model.safetensors").unlink()
    (damaged / "model.safetensors.index.json").write_text(index)
    assert message in refused(lambda: import_folder(damaged))


def test_a_folder_without_readable_weights_says_what_it_has(damaged: Path) -> None:
    (damaged / "model.safetensors").rename(damaged / "tf_model.h5")
    message = refused(lambda: import_folder(damaged))
    assert "there is tf_model.h5; accepted: model.safetensors, " in message
    assert "pytorch_model.bin" in message


# ---- Files of torch.save --------------------------------------------------------------------------


class Attack:
    """A pickle that would run a command if it were trusted."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_runs_nothing(damaged: Path) -> None:
    (damaged / "model.safetensors").unlink()
    content = pickle.dumps({"weight": Attack(damaged / "attacked")}, protocol=2)
    with zipfile.ZipFile(damaged / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    assert "it names posix.system; accepted: a dict of tensors" in refused(lambda: import_folder(damaged))
    (damaged / "pytorch_model.bin").write_bytes(content)
    assert "it names posix.system" in refused(lambda: import_folder(damaged))
    assert not (damaged / "attacked").exists()


@FAST
@given(content=st.binary(max_size=60), as_zip=st.booleans())
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, as_zip: bool) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    file = folder / "pytorch_model.bin"
    file.write_bytes(content)
    if as_zip:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    assert "pytorch_model.bin cannot be read" in refused(lambda: import_folder(folder))
