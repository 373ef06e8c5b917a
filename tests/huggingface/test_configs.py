"""Configs of named families equal themselves after export and import; others are refused, and the message says why."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from lm import models
from lm.config import ModelConfig
from lm.errors import InputError
from lm.huggingface import FAMILIES, export_folder, import_folder, read_config, write_config
from lm.sharding import parameter_spec, path_name
from tests.huggingface.test_folder import assert_equal, random_params
from tests.test_configs import CONFIGS, load

EXPORTED = {
    "bert_base": "bert",
    "bert_large": "bert",
    "mini": "modernbert",
    "modernbert_base": "modernbert",
    "dates": "t5",
    "mixture": "t5",
    "t5_small": "t5",
    "t5_base": "t5",
    "t5_large": "t5",
    "t5_xxl": "t5",
    "bart_base": "bart",
}
REFUSED = {
    "quickstart": r"model.norm_position='post' \(not 'pre'\)",
    "transformer_encoder": r"model.embedding_norm=True \(not False\)",
    "answer_docs": r"model.position='relative' \(not 'rotary'\)",
    "translate_catalogues": r"model.position='relative' \(not 'rotary'\)",
    "gpt_small": r"model.architecture='encoder-decoder' \(not 'decoder'\)",
}


def model_of(name: str) -> ModelConfig:
    return load(CONFIGS[0].with_name(f"{name}.py")).get_config().model


def reduced(model: ModelConfig) -> ModelConfig:
    """The same model with small sizes; four layers show that every third of ModernBERT's is global."""
    sizes = {"vocab_size": 40, "d_model": 16, "num_heads": 2, "d_ff": 24, "max_length": 32, "num_layers": 4}
    head_dim, num_decoder_layers = min(model.head_dim, 6), min(model.num_decoder_layers, 3)
    return dataclasses.replace(model, **sizes, head_dim=head_dim, num_decoder_layers=num_decoder_layers)


def meaning(model: ModelConfig) -> ModelConfig:
    """The model with its zeros written out; without dropout, `final_dropout` has no effect.

    A folder does not say how weights began, but for their standard deviation.
    """
    return dataclasses.replace(
        model,
        head_dim=model.width_per_head,
        num_decoder_layers=model.decoder_depth,
        max_length=model.max_length if model.position == "learned" else 0,
        final_dropout=model.final_dropout and model.dropout > 0,
        init="normal",
        relative_init="init",
    )


@pytest.fixture(params=EXPORTED)
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ModelConfig, Path]:
    config = reduced(model_of(request.param))
    export_folder(tmp_path / "model", config, random_params(config))
    return request.param, config, tmp_path / "model"


def test_every_config_is_either_exported_or_refused() -> None:
    assert EXPORTED.keys() | REFUSED.keys() == {path.stem for path in CONFIGS}


def test_a_config_of_a_family_is_exported_and_comes_back(exported: tuple[str, ModelConfig, Path]) -> None:
    name, config, folder = exported
    assert json.loads((folder / "config.json").read_text())["model_type"] == EXPORTED[name]
    imported = import_folder(folder)
    assert meaning(imported.config) == meaning(config)
    assert_equal(imported.params, random_params(config))
    assert imported.fresh == ()


def full_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in an export of a config at its full size; no weights are made."""
    config = model_of(name)
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(models.build(config).init, jax.random.key(0)))
    ours = {path_name(path): leaf.shape for path, leaf in leaves}
    shapes: dict[str, tuple[int, ...]] = {}
    for weight in FAMILIES[EXPORTED[name]].rows(write_config(config)):
        if weight.ours[0] in ours and weight.applies(config):
            found = [ours.pop(path) for path in weight.ours]
            shape = weight.shape([each[1:] for each in found] if weight.stacked else found)
            shapes |= dict.fromkeys(weight.names(config), shape)
    assert ours == {}  # every parameter has a row
    return shapes


@pytest.mark.parametrize("name", EXPORTED)
def test_a_config_is_exported_at_its_full_size(name: str) -> None:
    written = write_config(model_of(name))
    assert written["model_type"] == EXPORTED[name]
    assert meaning(read_config(written)) == meaning(
        dataclasses.replace(model_of(name), tie_embeddings=read_config(written).tie_embeddings)
    )
    assert full_shapes(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_of_a_family_has_a_placement(name: str) -> None:
    model = models.build(FAMILIES[name].model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.eval_shape(model.init, jax.random.key(0))):
        assert len(parameter_spec(path_name(path), leaf.ndim)) == leaf.ndim


@pytest.mark.peers
@pytest.mark.parametrize("name", ["bert_base", "modernbert_base", "t5_xxl", "bart_base"])  # a config a family
def test_transformers_has_the_same_tensors_at_full_size(name: str) -> None:
    import torch
    import transformers

    written: dict[str, Any] = write_config(model_of(name))
    with torch.device("meta"):  # shapes alone
        config = transformers.AutoConfig.for_model(**written)
        model = getattr(transformers, written["architectures"][0])(config)
    theirs = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    family, ours = FAMILIES[EXPORTED[name]], full_shapes(name)
    assert ours.items() <= theirs.items()
    assert theirs.keys() - ours.keys() <= family.aliases.keys() | family.tied.keys() | family.repeated.keys()


@pytest.mark.peers
def test_transformers_finds_every_weight_of_an_exported_config(exported: tuple[str, ModelConfig, Path]) -> None:
    import transformers

    _, _, folder = exported
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    _, report = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
def test_a_config_of_no_family_is_refused_by_what_differs(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_config(model_of(name))
