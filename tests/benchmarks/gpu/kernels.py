"""The ten most expensive kernels of a step of BERT large and of T5 large, from the profiler's trace."""

import collections
import tempfile
from pathlib import Path

import jax

from tests.benchmarks.gpu import cases
from tests.benchmarks.gpu.training import Steps, definition
from tests.benchmarks.gpu.turn import SMOKE, attempt, record, turn


def profile(name: str) -> None:
    steps = Steps(definition(name))
    batch = steps.put(cases.batch(steps.made.config, 1))
    jax.block_until_ready(steps.take(batch))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(steps.take(batch))
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    spent: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for plane in data.planes:
        if not (plane.name.startswith("/device:GPU") or SMOKE):
            continue
        for line in plane.lines:
            if not (line.name.startswith("Stream") or SMOKE):
                continue
            for event in line.events:
                spent[event.name] += event.duration_ns
                count[event.name] += 1
    total = sum(spent.values()) or 1
    record(f"{name} step", kernels=sum(count.values()), busy_ms=total / 1e6)
    for kernel, nanoseconds in spent.most_common(10):
        record(f"{name}: {kernel[:80]}", ms=nanoseconds / 1e6, share=nanoseconds / total, calls=count[kernel])


def main() -> None:
    with turn():
        for name in ("bert", "t5"):
            attempt(name, lambda name=name: profile(name))


if __name__ == "__main__":
    main()
