"""Every registered task writes the arrays that it declares, and a task that does not fit is not registered."""

import dataclasses
import hashlib
import pkgutil
import subprocess
import sys

import numpy as np
import pytest

from lm import tasks
from lm.config import ARCHITECTURES, Config, DataConfig, ModelConfig, ObjectiveConfig
from lm.data.batches import Batches
from lm.data.store import Split
from lm.errors import InputError
from lm.tokenizers.special_ids import SpecialIds

OBJECTIVES = {
    "mlm": ObjectiveConfig(name="mlm", nsp=False),
    "nsp": ObjectiveConfig(name="mlm", nsp=True),
    "span_corruption": ObjectiveConfig(name="span_corruption", join_documents=False),
    "joined span_corruption": ObjectiveConfig(name="span_corruption"),
    "infilling": ObjectiveConfig(name="infilling", mask_rate=0.3, permute_sentences=True, spans="fixed"),
    "random infilling": ObjectiveConfig(name="infilling", mask_rate=0.3, permute_sentences=True),
    "pairs": ObjectiveConfig(name="pairs"),
    "causal_lm": ObjectiveConfig(name="causal_lm"),
}
# SHA-256 of three batches each, at the commit before lm.tasks was there. The joined and the random ones are younger.
DIGESTS = {
    "mlm": "0095744a50dc8bd3",
    "nsp": "1976e54d8db50011",
    "span_corruption": "185593def9857efe",
    "joined span_corruption": "6232f7ab91ac6834",
    "infilling": "5ad820b553990b96",
    "random infilling": "5800f81305f14b2f",
    "pairs": "70ae873c08627969",
    "causal_lm": "8a073930e62739f4",
}
PREFIX = [7, 8]


def make_config(name: str) -> Config:
    objective = OBJECTIVES[name]
    data = DataConfig(
        source="dates" if name == "pairs" else "installed-docs",
        seq_length=96,
        target_length=24 if name.endswith("span_corruption") else 96,
        batch_size=8,
    )
    return Config(seed=3, data=data, model=ModelConfig(architecture=ARCHITECTURES[objective.name]), objective=objective)


def make_batches(name: str) -> Batches:
    """Token i of the corpus is 105 + i."""
    rng = np.random.default_rng(0)
    document_lengths = np.full(300, 2) if name == "pairs" else rng.integers(1, 20, 80)
    sentence_lengths = rng.integers(1, 20, document_lengths.sum())
    split = Split(105 + np.arange(sentence_lengths.sum()), sentence_lengths, document_lengths)
    config = make_config(name)
    row_format = tasks.create_row_format(config.data, config.objective, SpecialIds(), PREFIX)
    return Batches(split, row_format, config.data, config.seed)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_batches_are_what_they_always_were(name: str) -> None:
    batches, digest = make_batches(name), hashlib.sha256()
    for step in (0, 5, 200):
        for key, array in sorted(batches(step).items()):
            digest.update(key.encode() + str(array.shape).encode() + array.tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_declared_shapes_are_those_of_a_batch(name: str) -> None:
    batch = make_batches(name)(0)
    assert {key: tasks.ArraySpec(array.shape[1:], array.dtype.type) for key, array in batch.items()} == tasks.shapes(
        make_config(name)
    )


def test_no_task_is_left_out_above() -> None:
    assert {objective.name for objective in OBJECTIVES.values()} == set(ARCHITECTURES)


def test_a_config_knows_the_architectures_before_a_task_is_imported() -> None:
    code = "from lm.config import ARCHITECTURES; before = dict(ARCHITECTURES); from lm import tasks; "
    code += "assert before == {name: tasks.get(name).architecture for name in ARCHITECTURES}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reading_data_needs_no_jax() -> None:
    """Every module of lm.tasks is imported, and rows of every task are made."""
    names = [module.name for module in pkgutil.iter_modules(tasks.__path__, "lm.tasks.")]
    assert len(names) >= len(ARCHITECTURES)
    code = f"""
import sys, {", ".join(names)}
from tests.tasks.test_registry import OBJECTIVES, make_batches
for name in OBJECTIVES:
    make_batches(name)(0)
sys.exit("jax" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_answers_are_those_that_the_objective_trained() -> None:
    answers = {name: tasks.of_run(make_config(name)).answers(make_config(name)) for name in OBJECTIVES}
    assert "next-sentence" in answers["nsp"]
    assert "next-sentence" not in answers["mlm"]
    assert "generate" in answers["causal_lm"]
    assert "translate" in answers["pairs"]


def test_what_cannot_be_registered() -> None:
    mlm = tasks.get("mlm")
    with pytest.raises(ValueError, match="a task named 'mlm' is registered already"):
        tasks.register(mlm)
    with pytest.raises(InputError, match=r"objective\.name is 'spans'; accepted: causal_lm, infilling, mlm, pairs"):
        tasks.get("spans")
    ARCHITECTURES["other"] = "decoder"
    try:
        with pytest.raises(ValueError, match=r"for 'encoder', but lm\.config\.ARCHITECTURES gives it 'decoder'"):
            tasks.register(dataclasses.replace(mlm, name="other"))
    finally:
        ARCHITECTURES.pop("other")
