"""Reports metrics, throughput and MFU while a run trains, and ends a run that diverges."""

import contextlib
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from lm import accelerators
from lm.config import Config
from lm.data import batches
from lm.flops import needed_flops
from lm.training.metrics import MetricWriter
from lm.training.step import Metrics


class Diverged(Exception):
    """The loss or its gradient was not finite for too many steps in a row."""


class Report:
    """Reads the metrics of a step while the next step computes, and writes a line every `train.log_every` steps."""

    def __init__(self, config: Config, mesh: Mesh, rows: int, writer: MetricWriter, skipped: float):
        """Starts the clock.

        Args:
            config: the config of the run.
            mesh: the mesh of all devices.
            rows: how many rows of a batch this process reads.
            writer: writes the lines.
            skipped: how many steps were skipped so far because their loss or gradient was not finite.
        """
        self._config = config
        self._writer = writer
        self._pending: tuple[int, Metrics] | None = None
        self._extra: dict[str, float] = {}
        self._bad = 0  # steps in a row that were skipped
        self._skipped = skipped  # the count before the pending step
        self._began = time.monotonic()
        self._tokens = self._places = 0
        self.last: dict[str, float] = {}
        self._lengths: tuple[np.ndarray, np.ndarray] | None = None  # of the pending step's examples
        self._flops = 0.0  # needed since the last line
        peak = accelerators.peak_flops(mesh.devices.flat[0].device_kind)
        self._peak = peak and peak * mesh.size
        self._shards = config.data.batch_size / rows

    def add(self, step: int, metrics: Metrics, rows: dict[str, np.ndarray]) -> None:
        """Takes the metrics of a step that was just dispatched, and reads the metrics of the step before."""
        self.flush()
        self._pending = (step, metrics)
        tokens, places = batches.count_tokens(rows)
        self._tokens += int(tokens * self._shards)
        self._places += int(places * self._shards)
        if self._peak:
            self._lengths = batches.example_lengths(rows)

    def extend(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of an evaluation to the line of the last step."""
        self._extra = metrics

    def flush(self) -> None:
        """Waits for the pending step, and writes its line if it is due.

        Raises:
            Diverged: after `train.max_bad_steps` skipped steps in a row.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        predicted = values.pop("predictions")
        if self._lengths:
            self._flops += self._shards * needed_flops(self._config, *self._lengths, predicted / self._shards)
        self._pending = None
        self._writer.progress(step)
        self._bad = self._bad + 1 if values["skipped_steps"] > self._skipped else 0
        self._skipped = values["skipped_steps"]
        if self._extra or step % self._config.train.log_every == 0 or step == self._config.train.steps:
            self.last = {**values, **self._rates(), **self._extra}
            self._extra = {}
            self._writer.write(step, self.last)
        if self._bad >= self._config.train.max_bad_steps:
            raise Diverged(
                f"the loss or its gradient was not finite for {self._bad} steps in a row, up to step {step}; lower "
                "optim.learning_rate, lengthen optim.warmup_steps, or look at the data of these steps."
            )

    @contextlib.contextmanager
    def off_the_clock(self) -> Iterator[None]:
        """Stops the clock inside the `with` block."""
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began

    def _rates(self) -> dict[str, float]:
        """Returns throughput, padding and MFU since the last line.

        MFU counts what the model needs for these batches: real tokens, attention within each example, and the
        predicted positions. See `needed_flops`.
        """
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        rates = {"tokens_per_second": self._tokens / seconds, "padding_fraction": 1 - self._tokens / self._places}
        if self._peak:
            rates["mfu"] = self._flops / seconds / self._peak
        self._tokens = self._places = 0
        self._flops = 0.0
        return rates
