"""A line of metrics says what the steps since the last line needed, and how long they took."""

import jax
import numpy as np
import pytest

from lm import families
from lm.config import Config, DataConfig, TrainConfig
from lm.flops import needed_flops
from lm.training import report as report_lib
from lm.training.report import Report


class Written:
    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []

    def progress(self, step: int) -> None:
        del step

    def write(self, step: int, values: dict[str, float]) -> None:
        self.lines.append((step, values))


def test_mfu_counts_what_the_batches_need(monkeypatch: pytest.MonkeyPatch):
    """Two steps of ten seconds each, of which this process reads half of the rows."""
    config = Config(
        data=DataConfig(vocab_size=64, seq_length=16, batch_size=4),
        model=families.bert(vocab_size=64, d_model=32, num_layers=2, num_heads=4, d_ff=48),
        train=TrainConfig(log_every=2),
    )
    monkeypatch.setattr(report_lib.accelerators, "peak_flops", lambda kind: 1e6)
    clock = iter(range(0, 100, 20))
    monkeypatch.setattr(report_lib.time, "monotonic", lambda: next(clock))
    written = Written()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    report = Report(config, mesh, 2, written, 0.0)  # type: ignore[arg-type]
    segments = np.zeros((2, 16), np.int32)
    segments[0, :5], segments[0, 5:9], segments[1, :14] = 1, 2, 1
    for step in (1, 2):
        report.add(step, {"skipped_steps": np.float32(0), "predictions": np.float32(6)}, {"segments": segments})  # type: ignore[dict-item]
    report.flush()
    ((step, values),) = written.lines
    lengths = np.array([[5, 4, 14] * 2])
    assert step == 2
    assert values["mfu"] == pytest.approx(2 * needed_flops(config, lengths, 0 * lengths, 6) / 20 / 1e6)
    assert values["padding_fraction"] == pytest.approx(1 - 23 / 32)
    assert "predictions" not in values
