"""Every file of configs/: complete, valid, reproducible from its JSON, and of the size it claims."""

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

from lm import models
from lm.config import Config, from_dict, leaves, to_json
from lm.config.effect import without_effect
from lm.training.optim import learning_rate

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_configs() -> None:
    assert {"quickstart", "bert_base", "modernbert_base"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds_and_comes_back_from_json(path: Path) -> None:
    config = load(path).get_config()
    assert isinstance(config, Config)
    config.validate()
    assert from_dict(json.loads(to_json(config))) == config
    assert load(path).get_config() is not config  # a caller may change what it got


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_sets_nothing_that_has_no_effect(path: Path) -> None:
    config, default = load(path).get_config(), leaves(Config())
    changed = {name for name, value in leaves(config).items() if value != default.get(name)}
    assert changed & without_effect(config).keys() == set()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_its_docstring_gives_command_hardware_time_and_score(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"python launch/train.py --config=configs/{path.name} --workdir=" in docstring
    for heading in ("\nHardware: ", "\nTime: ", "\nScore: "):
        assert heading in docstring


# Parameters that transformers 5.23 counts in BertForPreTraining, ModernBertForMaskedLM, T5- and
# BartForConditionalGeneration and GPT2LMHeadModel, and what we add: rows and biases that fill the vocabulary up to a
# multiple of 128; a norm in front of the first attention that ModernBERT does not use, so that all its layers have one
# shape; a bias of BART's logits, there no parameter, but not the two rows of each position table that it never reads.
@pytest.mark.parametrize(
    ("name", "reference", "added"),
    [
        ("bert_base", 110_106_428, 70 * (768 + 1)),
        ("bert_large", 336_226_108, 70 * (1024 + 1)),
        ("modernbert_base", 149_655_232, 768),
        ("t5_small", 76_961_152, 0),
        ("t5_base", 247_577_856, 0),
        ("t5_large", 783_150_080, 0),
        ("t5_xxl", 11_135_332_352, 0),
        ("bart_base", 139_420_416, 39 * 768 + 50_304 - 2 * 2 * 768),
        ("gpt_small", 124_439_808, 47 * 768),
    ],
)
def test_a_published_model_has_its_published_size(name: str, reference: int, added: int) -> None:
    config = load(CONFIGS[0].with_name(f"{name}.py")).get_config()
    params = jax.eval_shape(models.build(config.model).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == reference + added


# Config -> what the learning rate of the authors' code is at some steps: google-research/bert's optimization.py, T5's
# 1 / sqrt(max(step, 10,000)), and 1 - sqrt over the last 3% of ModernBERT's run (its half is at 98.5%).
T5S = {0: 0.01, 10_000: 0.01, 40_000: 0.005, 1_000_000: 0.001}
RATES = {
    "bert_base": {0: 0.0, 5_000: 0.5e-4, 9_999: 0.9999e-4, 10_000: 0.99e-4, 500_000: 0.5e-4, 1_000_000: 0.0},
    "bert_large": {10_000: 0.99e-4, 750_000: 0.25e-4},
    **{f"t5_{size}": T5S for size in ("small", "base", "large", "xxl")},
    "modernbert_base": {318: 4e-4, 353_080: 8e-4, 358_540: 8e-4 * 0.2929, 364_000: 0.0},
}


@pytest.mark.parametrize("name", RATES)
def test_a_published_recipe_has_its_learning_rate(name: str) -> None:
    config = load(CONFIGS[0].with_name(f"{name}.py")).get_config()
    for step, rate in RATES[name].items():
        found = float(learning_rate(config.optim, config.train.steps, jnp.int32(step)))
        assert found == pytest.approx(rate, rel=1e-3, abs=1e-9), step
