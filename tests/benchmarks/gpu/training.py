"""One training step, forward, backward and AdamW: sequences a second, MFU, memory, time to compile.

    python -m tests.benchmarks.gpu.training bert|t5|modernbert[-float8|-scan]

`step` has rows of one sequence, `step, packed` rows of four; the program is the same.
"""

import sys
import time
from typing import Any

import jax
import numpy as np

from lm import accelerators, sharding, tasks
from lm.config import MeshConfig
from lm.flops import needed_flops
from lm.tasks import UntrainedVocabulary
from lm.training.program import Definition, define
from tests.benchmarks.gpu import cases, kernels
from tests.benchmarks.gpu.turn import attempt, record, seconds, turn


def definition(name: str) -> Definition:
    """Returns what is trained; `-float8` and `-scan` change how it is computed."""
    model, _, how = name.partition("-")
    config = cases.make(model)
    if how == "float8":
        config.train.dtype = "float8"
    if how == "scan":
        config.train.unroll = 1
    objective = tasks.create_objective(config, UntrainedVocabulary(config.model.vocab_size))
    return define(config, objective, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))


class Steps:
    """Compiled training steps, one after another, from a random state."""

    def __init__(self, made: Definition):
        self.made = made
        with jax.set_mesh(made.mesh):
            start = time.perf_counter()
            lowered = made.lower_step()
            self.traced = time.perf_counter() - start
            start = time.perf_counter()
            self.step = lowered.compile()
            self.compiled = time.perf_counter() - start
            self.init = made.lower_init().compile()
        self.state: dict[str, Any] = {}

    def put(self, batch: dict[str, np.ndarray]):
        with jax.set_mesh(self.made.mesh):
            return sharding.place_rows(self.made.mesh, self.made.config.data.batch_size, batch)

    def take(self, batch):
        with jax.set_mesh(self.made.mesh):
            self.state, metrics = self.step(self.state or self.init(), batch)
        return metrics


def main() -> None:
    name = sys.argv[1]
    steps = Steps(definition(name))
    config = steps.made.config
    with turn():
        rows = config.data.batch_size
        predicted = rows * steps.made.objective.max_positions
        peak = accelerators.peak_flops(jax.devices()[0].device_kind)
        for what, parts in (("step", 1), ("step, packed", 4)):
            batch = steps.put(cases.batch(config, parts))
            spent = seconds(lambda batch=batch: steps.take(batch), jax.block_until_ready, calls=5, turns=4)
            loss = float(steps.take(batch)["loss"])
            figures = {"per_s": rows / spent, "ms": 1e3 * spent, "loss": loss}
            if peak:
                figures["mfu"] = needed_flops(config, *cases.lengths(config, parts), predicted) / spent / peak
            stats = jax.devices()[0].memory_stats() or {}
            figures["gib"] = stats.get("peak_bytes_in_use", 0) / 2**30
            record(what, rows=rows, **figures, trace_s=steps.traced, compile_s=steps.compiled)
        if name in ("bert", "t5"):
            batch = steps.put(cases.batch(config, 1))
            attempt("kernels", lambda: kernels.profile(lambda: steps.take(batch)))


if __name__ == "__main__":
    main()
