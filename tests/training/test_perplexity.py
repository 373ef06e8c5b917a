"""evaluate.py gives the same numbers as the evaluation in training, and can evaluate a file."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from lm import checkpoint, sharding, tasks
from lm.config import Config, MixtureConfig, ModelConfig, ObjectiveConfig, TaskConfig
from lm.errors import InputError
from lm.tasks import heads, members
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
    assert found["mask_rate"] == 0.15  # of the config, as in training
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


def test_a_share_of_masked_tokens_can_be_given(run, tiny_seq2seq):
    """So that the losses of two models can be compared: each predicts the same number of tokens."""
    found, more = perplexity.measure(run), perplexity.measure(run, mask_rate=0.3)
    assert more["mask_rate"] == 0.3
    assert more["predictions"] == pytest.approx(2 * found["predictions"], rel=0.1)
    spans = perplexity._masking(tiny_seq2seq, 0.4)
    assert spans[0].objective.mask_rate == 0.4
    assert spans[1] == {"mask_rate": 0.4}
    pairs = changed(tiny_seq2seq, data={"source": "dates", "path": ""}, objective={"name": "pairs"})
    assert perplexity._masking(pairs, None) == (pairs, {})
    with pytest.raises(InputError, match=r"--mask_rate has no effect: objective.name is pairs; leave it out"):
        perplexity._masking(pairs, 0.4)


def test_heads_without_training_are_not_measured(run, tmp_path):
    """Their losses would be those of random weights."""
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "checkpoints/3").rename(folder / "checkpoints/0")  # untrained heads are those of an import
    heads.write_untrained(str(folder), ["nsp"])
    found = perplexity.measure(str(folder))
    assert "mlm_loss" in found
    assert "nsp_loss" not in found
    heads.write_untrained(str(folder), ["mlm"])
    with pytest.raises(InputError, match="fill-mask needs the head 'mlm'"):
        perplexity.measure(str(folder))


def test_files_are_read_as_the_first_task_of_a_mixture_reads_its_own(tmp_path):
    mixed = {
        "spans": TaskConfig(store="a", objective="span_corruption", prefix="fill: "),
        "records": TaskConfig(
            objective="pairs", source="jsonl", path="a", field="src", target_field="tgt", prefix="x: "
        ),
    }
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.jsonl").write_text('{"src": "a", "tgt": "b"}')

    def read(name: str, tasks: dict[str, TaskConfig]) -> tuple[Config, str]:
        model, objective = ModelConfig(architecture="encoder-decoder"), ObjectiveConfig(name="span_corruption")
        run = Config(model=model, objective=objective, mixture=MixtureConfig(tasks=tasks))
        return perplexity._on_files(run, str(tmp_path / name))

    config, prefix = read("a.txt", mixed)
    assert (config.data.source, config.objective.name, prefix) == ("text", "span_corruption", "fill: ")
    config, prefix = read("a.jsonl", dict(reversed(mixed.items())))
    assert (config.data.field, config.data.target_field, prefix) == ("src", "tgt", "")


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
    with pytest.raises(InputError, match=r"run/store' holds out no text to evaluate on; give --input=FILE"):
        perplexity.measure(str(tmp_path / "run"))
    (tmp_path / "run/store/manifest.json").unlink()  # as for an imported model, which has no store
    with pytest.raises(InputError, match=r"no token store at .* to take held-out text from; give --input=FILE"):
        perplexity.measure(str(tmp_path / "run"))
