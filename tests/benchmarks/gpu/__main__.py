"""Measures one GPU: attention, training, decoding and inference, beside transformers. Run it by gpu.sh.

Each part is a process of its own with a limit, the important ones first. While one part holds the GPU, the next one
imports and builds its programs. What a part has measured is written at once, so a part that is cut off keeps it. When
the budget is spent, the parts that are left are named and not run: `--parts` runs them in a second call, which finds
what the first one has compiled in DIR/cache.

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
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.gpu.table import table


class Part(NamedTuple):
    """A part: the module that measures, its argument, its limit in seconds once it holds the GPU, and flags of XLA."""

    module: str
    argument: str
    limit: int
    xla_flags: str = ""


PARTS = {
    "ceiling": Part("ceiling", "", 40),
    "attention": Part("attention", "", 100),
    "bert": Part("training", "bert", 110),
    "t5": Part("training", "t5", 120),
    "modernbert": Part("training", "modernbert", 100),
    "decoding": Part("decoding", "", 90),
    "inference": Part("inference", "", 70),
    "bert-float8": Part("training", "bert-float8", 110),
    "transformers-decoding": Part("peers", "decoding", 100),
    "transformers-bert": Part("peers", "bert", 130),
    "transformers-t5": Part("peers", "t5", 150),
    "kernels": Part("kernels", "", 100),
    "bert-scan": Part("training", "bert-scan", 90),
    "bert-cublas": Part("training", "bert", 110, "--xla_gpu_enable_triton_gemm=false"),
}


def has_gpu() -> bool:
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def environment(output: Path, *, smoke: bool) -> dict[str, str]:
    cache = output / "cache"
    return os.environ | {
        "GPU_BENCHMARK_OUTPUT": str(output),
        "GPU_BENCHMARK_SMOKE": "1" if smoke else "",
        "JAX_PLATFORMS": "cpu" if smoke else "cuda",
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # two parts are alive at a time
        "PYTHONUNBUFFERED": "1",
    }


def start(name: str, output: Path, environ: dict[str, str]) -> subprocess.Popen:
    part = PARTS[name]
    command = [sys.executable, "-m", f"tests.benchmarks.gpu.{part.module}", part.argument]
    with open(output / f"{name}.log", "w") as log:
        own = environ | {"GPU_BENCHMARK_PART": name, "GPU_BENCHMARK_LIMIT": str(part.limit)}
        own["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {part.xla_flags}".strip()
        return subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def end(process: subprocess.Popen) -> None:
    """Ends a part and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(names: list[str], output: Path, environ: dict[str, str], budget: float) -> dict[str, str]:
    """Runs the parts, at most two at a time, and returns how each ended."""
    deadline, waiting = time.monotonic() + budget, list(names)
    running: dict[str, subprocess.Popen] = {}
    ends: dict[str, str] = {}
    began: dict[str, float] = {}
    try:
        while waiting or running:
            while waiting and len(running) < 2:
                name = waiting.pop(0)
                running[name], began[name] = start(name, output, environ), time.monotonic()
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                end(running.pop(name))
                ends[name] = ended(process.returncode, output / f"{name}.log", PARTS[name].limit)
                print(f"{name}: {ends[name]}, {time.monotonic() - began[name]:.0f} s", flush=True)
            if time.monotonic() > deadline:
                return ends | {name: "not run: the budget is spent" for name in [*running, *waiting]}
            time.sleep(0.2)
    finally:
        for process in running.values():
            end(process)
    return ends


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
    with tempfile.NamedTemporaryFile() as lock:
        environ = environment(output, smoke=smoke) | {"GPU_BENCHMARK_LOCK": lock.name}
        ends = run(names, output, environ, flags.budget)
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
