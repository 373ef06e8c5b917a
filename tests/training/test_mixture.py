"""One command prepares, trains and evaluates all tasks of a mixture."""

import dataclasses
from pathlib import Path

import pytest

from lm import checkpoint, sharding, tasks
from lm.config import Config, MixtureConfig, TaskConfig
from lm.data import mixture
from lm.tasks.members import make_members
from lm.training import loop, perplexity
from lm.training.program import compile_program

from .conftest import changed


@pytest.fixture(scope="module")
def config(tiny_config: Config, tiny_seq2seq: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Spans of the tiny corpus and pairs, 3:1, with a tokenizer of their own."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "pairs.tsv").write_text("".join(f"copy {i:03d} twice\t{i:03d} {i:03d}\n" for i in range(200)))
    tasks = {
        "spans": TaskConfig(source="text", path=tiny_config.data.path, rate=3),
        "pairs": TaskConfig(source="tsv", path=str(folder / "pairs.tsv"), objective="pairs", prefix="copy:"),
    }
    data = {"source": "installed-docs", "path": "", "store": str(folder / "store")}
    config = changed(tiny_seq2seq, data=data, train={"steps": 2})
    config = dataclasses.replace(config, mixture=MixtureConfig(tasks=tasks))
    mixture.prepare_stores(config, config.data.store, num_workers=1, progress=False)
    return config


def test_a_run_of_two_tasks_reports_each(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = loop.train(config, str(tmp_path))
    first, total, last = sorted(found[f"eval/{name}loss"] for name in ("", "spans/", "pairs/"))
    assert first < total == found["eval/loss"] < last
    evaluated = perplexity.measure(str(tmp_path))
    kinds = {"predictions", "seq2seq_loss", "seq2seq_accuracy", "seq2seq_baseline_accuracy", "seq2seq_perplexity"}
    assert {f"{task}/{kind}" for task in ("spans", "pairs") for kind in kinds} | {"step"} <= evaluated.keys()
    # A file is read as the first task reads it, whatever the run's own objective is.
    first_pairs = dict(reversed(config.mixture.tasks.items()))
    config = dataclasses.replace(checkpoint.read_config(tmp_path), mixture=MixtureConfig(tasks=first_pairs))
    monkeypatch.setattr(checkpoint, "read_config", lambda workdir: config)
    found = perplexity.measure(str(tmp_path), config.mixture.tasks["pairs"].path)
    assert found["predictions"] > 200
    assert found["seq2seq_loss"] > 0


def test_the_total_counts_each_task_by_its_rate(config: Config) -> None:
    """Three batches of spans weigh as much as the one of pairs that comes with them."""
    members = make_members(config, mixture.prepare_stores(config, config.data.store))
    assert {member.name: member.rows for member in members} == {"pairs": 1, "spans": 3}
    objective = tasks.create_objective(config, members[0].store.tokenizer)
    program = compile_program(config, objective, sharding.make_mesh(config.mesh))
    params = program.init()["params"]
    found = loop.heldout_metrics(program, params, members, 2)
    total = weights = 0.0
    for member in members:
        alone = loop.heldout_metrics(program, params, [dataclasses.replace(member, name="")], 2)
        assert found[f"eval/{member.name}/loss"] == pytest.approx(alone["eval/loss"], rel=1e-6)
        assert member.heldout is not None
        taken = min(2, member.heldout.batches_per_epoch)
        tokens = sum(int((member.heldout.once(index)["target_segments"] > 0).sum()) for index in range(taken))
        weight = member.rows * tokens / min(taken * config.data.batch_size, member.heldout.rows_per_epoch)
        total, weights = total + weight * alone["eval/seq2seq_cross_entropy"], weights + weight
    assert found["eval/seq2seq_cross_entropy"] == pytest.approx(total / weights, rel=1e-5)
