"""What every part uses: its turn on the GPU, its figures, and how to time. It imports no JAX by itself."""

import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SMOKE = bool(os.environ.get("GPU_BENCHMARK_SMOKE"))
OUTPUT = Path(os.environ.get("GPU_BENCHMARK_OUTPUT", "."))
PART = os.environ.get("GPU_BENCHMARK_PART", "")


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Says that the part has compiled what it measures, and waits until it holds the GPU alone.

    The part's limit begins then. A part that exceeds it is ended by the alarm's signal.
    """
    (OUTPUT / f"{PART}.compiled").touch()
    if not sys.stdin.readline():
        raise SystemExit("the benchmark has ended")
    signal.alarm(int(os.environ["GPU_BENCHMARK_LIMIT"]))
    yield
    signal.alarm(0)


def record(what: str, **figures: Any) -> None:
    """Writes figures at once: a part that is cut off later keeps them."""
    line = {"part": PART, "what": what, **figures}
    print(line, flush=True)
    with open(OUTPUT / "results.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")


def seconds(call: Callable[[], Any], wait: Callable[[Any], Any], *, calls: int = 10, turns: int = 5) -> float:
    """Returns the median over turns of the seconds of one call. A turn of several calls waits once, at its end."""
    calls, turns = (1, 2) if SMOKE else (calls, turns)
    wait(call())
    found = []
    for _ in range(turns):
        start = time.perf_counter()
        for _ in range(calls - 1):
            call()
        wait(call())
        found.append((time.perf_counter() - start) / calls)
    return statistics.median(found)


def attempt(what: str, measure: Callable[[], Any]) -> Any:
    """Measures or compiles. What fails is recorded as a line, and the part goes on with None."""
    try:
        return measure()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        record(what, error=f"{type(error).__name__}: {lines[0][:300]}")
        return None
