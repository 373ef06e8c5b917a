"""Runs are compared: their last metrics, what differs in their settings, and one picture."""

import dataclasses
import json
from pathlib import Path

import pytest

from lm import checkpoint
from lm.config import Config
from lm.errors import InputError
from lm.training import compared

from .conftest import changed


def make_run(path: Path, config: Config, losses: list[float]) -> str:
    lines = [{"step": step, "loss": loss, "mlm_loss": loss} for step, loss in enumerate(losses, 1)]
    lines[-1] |= {"eval/mlm_loss": losses[-1] + 0.5, "tokens_per_second": 12_345.0}
    path.mkdir()
    checkpoint.write_config(path, config)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_runs_are_shown_side_by_side(tmp_path: Path) -> None:
    slow = make_run(tmp_path / "slow", Config(), [5.0, 4.5])
    fast = make_run(tmp_path / "fast", changed(Config(), optim={"learning_rate": 0.5}), [5.0, 4.0, 3.25])
    runs = compared.read([slow, fast])
    rows = {line.split("  ")[0]: line.split()[-2:] for line in compared.table(runs).splitlines() if line}
    assert rows["step"] == ["2", "3"]
    assert rows["mlm_loss"] == ["4.5", "3.25"]
    assert rows["eval/mlm_loss"] == ["5", "3.75"]
    assert rows["tokens_per_second"] == ["12,345", "12,345"]
    assert runs.settings == {"optim.learning_rate": [1e-4, 0.5]}
    assert rows["optim.learning_rate"] == ["0.0001", "0.5"]
    assert compared.picture(runs).startswith(b"\x89PNG")
    assert "no setting differs" in compared.table(compared.read([slow, slow]))


def test_losses_that_do_not_compare_are_said_to(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", Config(), [5.0])
    other = make_run(tmp_path / "other", changed(Config(), objective={"mask_rate": 0.3}), [5.0])
    assert "do not compare" not in compared.table(compared.read([one, one]))
    said = "losses do not compare between these runs: they differ in "
    assert compared.table(compared.read([one, other])).endswith(f"\n\n{said}objective.mask_rate")
    (tmp_path / "other/tokenizer.model").write_bytes(b"another")
    assert compared.table(compared.read([one, other])).endswith(f"{said}tokenizer and objective.mask_rate")


@pytest.mark.parametrize("name", ["运行", "\U0001f9ff"])
def test_a_picture_names_runs_in_any_script(tmp_path: Path, name: str) -> None:
    """Or numbers them, where no font has their characters. A missing glyph gives a warning, an error here."""
    assert compared.picture(compared.read([make_run(tmp_path / name, Config(), [5.0, 4.5])])).startswith(b"\x89PNG")


def test_columns_are_aligned_under_names_in_any_script(tmp_path: Path) -> None:
    names = [make_run(tmp_path / name, Config(), [5.0, 4.5]) for name in ("运行一", "ラン", "run")]
    heads, steps, *_ = compared.table(compared.read(names)).splitlines()
    wide = {character for character in heads if character in "运行一ラン"}
    assert len(wide) == 5
    shown = "".join(f"{character}_" if character in wide else character for character in heads)  # a cell a column
    places = [shown.index("".join(f"{c}_" if c in wide else c for c in name)) for name in names]
    assert [place for place, character in enumerate(steps) if character == "2"] == places


def test_a_loss_that_is_not_finite_is_not_drawn(tmp_path: Path) -> None:
    broken = make_run(tmp_path / "run", Config(), [5.0, float("nan"), 4.5, 4.0])
    runs = compared.read([broken])
    finite = [line for line in runs.metrics[0] if line["step"] != 2]
    assert compared.picture(runs) == compared.picture(dataclasses.replace(runs, metrics=[finite]))
    with pytest.raises(InputError, match="have no finite loss"):
        compared.picture(compared.read([make_run(tmp_path / "lost", Config(), [float("inf")])]))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json, so it is no working directory"):
        compared.read([str(tmp_path)])
    checkpoint.write_config(tmp_path, Config())
    with pytest.raises(InputError, match=r"has no line in metrics\.jsonl yet"):
        compared.read([str(tmp_path)])
