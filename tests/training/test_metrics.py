"""One process writes the metrics of a run, and each line of them also goes to the log or the progress bar."""

from pathlib import Path

import pytest

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
