"""Measures one GPU: attention, training, decoding and inference, beside transformers. Run it by gpu.sh.

Each part is a process of its own with a limit. First all parts compile what they measure, several at a time: compilers
leave most cores idle. Then each has the GPU alone, the important ones first. What a part has measured is written at
once, so a part that is cut off keeps it. When the budget is spent, the parts that are left are named and not run:
`--parts` runs them in a second call, which finds what the first one has compiled in DIR/cache.

DIR/results.json holds the figures, DIR/PART.log what a part printed. This file and `turn.py` import no JAX.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.gpu.table import table


class Part(NamedTuple):
    """A part: the module that measures, its argument, and its limit in seconds once it holds the GPU."""

    module: str
    argument: str
    limit: int


PARTS = {
    "ceiling": Part("ceiling", "", 40),
    "attention": Part("attention", "", 60),
    "bert": Part("training", "bert", 40),
    "t5": Part("training", "t5", 40),
    "modernbert": Part("training", "modernbert", 40),
    "decoding": Part("decoding", "", 30),
    "inference": Part("inference", "", 30),
    "bert-float8": Part("training", "bert-float8", 40),
    "transformers-decoding": Part("peers", "decoding", 60),
    "transformers-bert": Part("peers", "bert", 40),
    "transformers-t5": Part("peers", "t5", 40),
    "bert-scan": Part("training", "bert-scan", 40),
}
# A compilation keeps about two cores busy.
AT_ONCE = max(2, (os.cpu_count() or 2) // 2)


def has_gpu() -> bool:
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def environment(output: Path, *, smoke: bool) -> dict[str, str]:
    cache = output / "cache"
    return os.environ | {
        "GPU_BENCHMARK_OUTPUT": str(output),
        "GPU_BENCHMARK_SMOKE": "1" if smoke else "",
        "JAX_PLATFORMS": "cpu" if smoke else "cuda,cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # all parts are alive at a time
        "PYTHONUNBUFFERED": "1",
    }


def start(name: str, output: Path, environ: dict[str, str]) -> subprocess.Popen:
    part = PARTS[name]
    command = [sys.executable, "-m", f"tests.benchmarks.gpu.{part.module}", part.argument]
    own = environ | {"GPU_BENCHMARK_PART": name, "GPU_BENCHMARK_LIMIT": str(part.limit)}
    (output / f"{name}.compiled").unlink(missing_ok=True)
    with open(output / f"{name}.log", "w") as log:
        return subprocess.Popen(
            command, env=own, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def end(process: subprocess.Popen) -> None:
    """Ends a part and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(names: list[str], output: Path, environ: dict[str, str], budget: float) -> dict[str, str]:
    """Runs the parts and returns how each ended."""
    began = time.monotonic()
    running: dict[str, subprocess.Popen] = {}
    try:
        ends = compile_all(names, output, environ, began + 0.6 * budget, running)
        print(f"compiled, {time.monotonic() - began:.0f} s", flush=True)
        for name in [name for name in names if name in running]:
            left = began + budget - time.monotonic()
            ends[name] = measure(name, running[name], output, left) if left > 0 else "not run: the budget is spent"
            print(f"{name}: {ends[name]}, {time.monotonic() - began:.0f} s", flush=True)
    finally:
        for process in running.values():
            end(process)
    return ends


def compile_all(
    names: list[str], output: Path, environ: dict[str, str], deadline: float, running: dict[str, subprocess.Popen]
) -> dict[str, str]:
    """Starts the parts, and waits until they have compiled. Adds those that have to `running`.

    Returns how the others ended.
    """
    # Those of transformers first: they compile longest.
    waiting, ends = sorted(names, key=lambda name: not name.startswith("transformers")), {}
    compiling: set[str] = set()
    while waiting or compiling:
        while waiting and len(compiling) < AT_ONCE:
            compiling.add(name := waiting.pop(0))
            running[name] = start(name, output, environ)
        for name in sorted(compiling):
            if (output / f"{name}.compiled").exists():
                compiling.remove(name)
            elif running[name].poll() is not None:
                compiling.remove(name)
                end(process := running.pop(name))
                ends[name] = ended(process.returncode, output / f"{name}.log", 0)
        if time.monotonic() > deadline:
            for name in compiling:
                end(running.pop(name))
            late = dict.fromkeys(compiling, "cut off: it compiled too long")
            return ends | late | dict.fromkeys(waiting, "not run: the others compiled too long")
        time.sleep(0.1)
    return ends


def measure(name: str, process: subprocess.Popen, output: Path, left: float) -> str:
    """Gives a part the GPU, for at most `left` seconds, and returns how it ended."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
        process.stdin.write(b"go\n")
        process.stdin.flush()
        process.wait(timeout=left)
    if process.poll() is None:
        end(process)
        return "cut off: the budget is spent"
    end(process)
    return ended(process.returncode, output / f"{name}.log", PARTS[name].limit)


def ended(code: int, log: Path, limit: int) -> str:
    """Returns how a part ended, in a few words: the last line of its log that names an error."""
    if code == 0:
        return "done"
    if code == -signal.SIGALRM:
        return f"cut off after {limit} s"
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)] or lines
    return f"failed ({code}): {errors[-1][:200]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/gpu", type=Path, help="folder of the results (runs/gpu)")
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--budget", default=465.0, type=float, help="seconds for all parts")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, to see that every part runs")
    flags = parser.parse_args()
    names = flags.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--parts has {', '.join(unknown)}; accepted: {', '.join(PARTS)}")
    smoke = flags.smoke or not has_gpu()
    output = flags.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    lines = output / "results.jsonl"
    lines.unlink(missing_ok=True)
    print("No GPU: tiny sizes on the CPU; the figures mean nothing." if smoke else "One GPU.", flush=True)
    began = time.monotonic()
    ends = run(names, output, environment(output, smoke=smoke), flags.budget)
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    result = {"smoke": smoke, "seconds": time.monotonic() - began, "ends": ends, "results": found}
    (output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    text = table(found, ends)
    (output / "table.md").write_text(text)
    print(f"\n{text}\n{result['seconds']:.0f} s; {output}/results.json")
    if any(end.startswith("failed") for end in ends.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
