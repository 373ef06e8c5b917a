"""Files of torch.save are read without torch: the same bits in both of its formats, a clear word for damaged ones."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from lm.errors import InputError
from lm.huggingface import import_folder
from lm.huggingface.torch_file import Damaged, open_file
from tests.peers import ragged

pytestmark = pytest.mark.peers

CONFIG = transformers.BertConfig(
    vocab_size=90,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=24,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in safetensors, rounded so that bfloat16 and half precision hold the same numbers."""
    model = transformers.BertForPreTraining(CONFIG)
    ragged.randomise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 32).round() / 32)
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def state_dict(folder: Path) -> dict[str, torch.Tensor]:
    return transformers.BertForPreTraining.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_both_formats_hold_the_same_bits(folder: Path, tmp_path: Path, new: bool, dtype: torch.dtype) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = {name: tensor.to(dtype) for name, tensor in state_dict(folder).items()}
    weights["bert.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new)
    jax.tree.map(np.testing.assert_array_equal, import_folder(tmp_path).params, import_folder(folder).params)


def test_shards_are_read_through_their_index(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = state_dict(folder)
    names: dict[str, str] = {}
    for number in range(2):
        part = {name: weights[name] for index, name in enumerate(weights) if index % 2 == number}
        torch.save(part, tmp_path / f"pytorch_model-{number}.bin")
        names |= dict.fromkeys(part, f"pytorch_model-{number}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(repr({"weight_map": names}).replace("'", '"'))
    jax.tree.map(np.testing.assert_array_equal, import_folder(tmp_path).params, import_folder(folder).params)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before-1.6"])
def test_views_parameters_and_shared_storages_are_read(tmp_path: Path, new: bool) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    saved: dict[str, Any] = {
        "whole": whole,
        "turned": whole.T,
        "part": whole[1:3, ::2],
        "expanded": torch.ones(1, 3).expand(2, 3),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 5),
        "parameter": torch.nn.Parameter(whole[0]),
    }
    torch.save(saved, tmp_path / "file.bin", _use_new_zipfile_serialization=new)
    read = open_file(tmp_path / "file.bin")
    assert read.keys() == saved.keys()
    for name, tensor in saved.items():
        assert read[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(read[name].read(), tensor.detach().numpy())


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before-1.6"])
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, new: bool) -> None:
    """Every truncated file is refused; a changed byte raises nothing but the error of this module."""
    file = tmp_path / "file.bin"
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, file, _use_new_zipfile_serialization=new)
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    for size in rng.integers(0, len(content), 40):
        file.write_bytes(content[:size])
        with pytest.raises(Damaged):
            _read_all(file)
    for place in rng.integers(0, len(content), 150):
        file.write_bytes(content[:place] + bytes([content[place] ^ int(rng.integers(1, 256))]) + content[place + 1 :])
        try:
            _read_all(file)
        except Damaged as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - it need not be raised


def _read_all(file: Path) -> None:
    for tensor in open_file(file).values():
        tensor.read()


@pytest.mark.parametrize("saved", [torch.nn.Linear(2, 2), {"a": 3}, [torch.zeros(2)], {"model": {"a": torch.zeros(2)}}])
def test_what_is_no_state_dict_is_refused(folder: Path, tmp_path: Path, saved: Any) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(saved, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin cannot be read as PyTorch weights: it"):
        import_folder(tmp_path)
