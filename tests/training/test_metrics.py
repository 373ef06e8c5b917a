"""One process writes the metrics of a run, and each line of them also goes to the log or the progress bar."""

from pathlib import Path

import numpy as np
import pytest

from lm.training.loss_picture import draw, smooth
from lm.training.metrics import MetricWriter, read_metrics


def test_a_log_has_a_line_for_each_line_of_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    writer = MetricWriter(tmp_path, 1000, 2000)
    for step in range(1001, 1021):
        writer.progress(step)
    writer.write(1020, {"loss": 3.14159, "tokens_per_second": 12345.6, "gradient_norm": 1.0})
    writer.close()
    assert capsys.readouterr().err.splitlines() == [
        "train: step 1,000 of 2,000",
        "train: step 1,020 of 2,000, loss 3.142, tokens_per_second 12,346",
    ]
    assert [line["step"] for line in read_metrics(tmp_path)] == [1020]


def test_the_processes_that_do_not_report_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    writer = MetricWriter(tmp_path, 0, 10, enabled=False)
    writer.progress(1)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 19, 20, 400])
def test_a_smoothed_curve_does_not_lag(count: int):
    """The mean of as many points before as after each keeps a straight line, from its first point to its last."""
    line = np.linspace(9.0, 2.0, count)
    np.testing.assert_allclose(smooth(line), line, rtol=1e-12)
    noise = np.random.default_rng(0).normal(size=400)
    assert np.std(smooth(noise)) < np.std(noise) / 4


def test_a_loss_that_is_not_finite_leaves_a_gap_in_its_curve():
    lines = [{"step": step, "mlm_loss": 5.0 - 0.1 * step, "eval/mlm_loss": 6.0} for step in range(1, 30)]
    bad = {"step": 10, "mlm_loss": float("inf"), "nsp_loss": float("nan"), "eval/mlm_loss": float("nan")}
    assert draw([*lines[:9], bad, *lines[10:]]) == draw([*lines[:9], *lines[10:]])
    assert draw([bad]) is None
