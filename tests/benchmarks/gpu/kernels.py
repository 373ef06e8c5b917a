"""The most expensive kernels of a training step, from the profiler's trace."""

import collections
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tests.benchmarks.gpu.turn import SMOKE, record

SHOWN = 10


def profile(take: Callable[[], Any]) -> None:
    """Records the time of a step's kernels: all of them, and the ten most expensive ones."""
    jax.block_until_ready(take())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(take())
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
    record("kernels", kernels=sum(count.values()), busy_ms=total / 1e6)
    for kernel, nanoseconds in spent.most_common(SHOWN):
        record(f"kernel {kernel[:80]}", ms=nanoseconds / 1e6, share=nanoseconds / total, calls=count[kernel])
