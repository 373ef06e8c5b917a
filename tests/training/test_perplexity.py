"""evaluate.py gives the same numbers as the evaluation in training, and can evaluate a file."""

import dataclasses
import json

import numpy as np
import pytest

from lm import checkpoint, sharding, tasks
from lm.errors import InputError
from lm.tasks import members
from lm.tasks.members import make_members
from lm.training import loop, metrics, perplexity
from lm.training.program import compile_program

from .conftest import changed, make_corpus


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """A finished run whose last evaluation covered the held-out split, which does not fill its batches."""
    workdir = str(tmp_path_factory.mktemp("run") / "run")
    loop.train(changed(tiny_config, train={"steps": 3, "eval_batches": 100}), workdir)
    return workdir


def test_held_out_numbers_are_those_of_the_curve(run):
    found = perplexity.measure(run)
    last = metrics.read_metrics(run)[-1]
    assert found["step"] == last["step"] == 3
    for name in ("mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy"):
        assert found[name] == pytest.approx(last[f"eval/{name}"], abs=1e-5)
    assert found["mlm_perplexity"] == pytest.approx(np.exp(found["mlm_loss"]), rel=1e-5)
    assert 0 < found["mlm_baseline_accuracy"] < 0.5
    assert 0.5 <= found["nsp_baseline_accuracy"] <= 1


def test_every_held_out_example_counts_once(run, tiny_store):
    """Each pair has one next-sentence prediction; the last batch is not full, and no batch comes twice."""
    config = checkpoint.read_config(run)
    batches = members.batches(config, "", tiny_store, tiny_store.heldout)
    assert batches.rows_per_epoch % config.data.batch_size
    pairs = (batches.take(np.arange(batches.rows_per_epoch))["nsp_labels"] >= 0).sum()
    heldout = make_members(config, {"": tiny_store})
    objective = tasks.create_objective(config, tiny_store.tokenizer)
    program = compile_program(config, objective, sharding.make_mesh(config.mesh))
    seen = []
    program.eval_step = lambda params, batch, index: seen.append(int((batch["nsp_labels"] >= 0).sum())) or ({}, {})
    program.means = lambda *sums: {}
    loop.heldout_metrics(program, {}, heldout, 100)
    assert len(seen) == batches.batches_per_epoch
    assert sum(seen) == pairs


def test_a_file_can_be_evaluated(run, tmp_path):
    text = make_corpus(tmp_path / "other.txt", documents=20, seed=5)
    lines = [json.dumps({"text": document}) for document in text.read_text().split("\n\n")]
    (tmp_path / "other.jsonl").write_text("\n".join(lines))
    found = perplexity.measure(run, str(text))
    assert np.isfinite(found["mlm_loss"])
    assert perplexity.measure(run, str(tmp_path / "other.jsonl")) == found
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        perplexity.measure(run, str(tmp_path / "nowhere.txt"))


def test_a_folder_is_read_by_the_names_of_its_files(run, tmp_path):
    """Not as lines of text, whose characters would be those of JSON."""
    (tmp_path / "folder").mkdir()
    document = make_corpus(tmp_path / "other.txt", documents=20, seed=5).read_text().split("\n\n")
    (tmp_path / "folder/a.ndjson").write_text("\n".join(json.dumps({"text": each}) for each in document))
    assert perplexity.measure(run, str(tmp_path / "folder")) == perplexity.measure(run, str(tmp_path / "other.txt"))


def test_a_run_without_held_out_text_is_not_evaluated(tiny_config, tmp_path):
    data = dataclasses.replace(tiny_config.data, heldout_fraction=0.0, store="")
    config = changed(dataclasses.replace(tiny_config, data=data), train={"steps": 1})
    last = loop.train(config, str(tmp_path / "run"))
    assert np.isfinite(last["loss"])
    assert not any(name.startswith("eval/") for name in last)
