"""Compares the losses of two checkouts, step by step: a change that should not change numbers shows the same ones.

    git worktree add /tmp/before COMMIT
    python -m tests.benchmarks.same_losses --before=/tmp/before

Both train each of the configs for the same steps, with this Python, from the same token store, which the earlier
checkout prepares. The later one also resumes from what the earlier one has saved, and evaluates it. Any difference of
more than 1e-6 of the loss at the first step, or 1e-5 at another, ends the script with exit code 1.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).parent.parent.parent
_before = flags.DEFINE_string("before", None, "The earlier checkout.", required=True)
_steps = flags.DEFINE_integer("steps", 20, "Steps of each run.", lower_bound=2)
_keep = flags.DEFINE_string("keep", "", "A folder for stores and runs that stays; empty: one that does not.")
_only = flags.DEFINE_list("only", [], "Configs to run; empty: all.")

# Config -> what is reduced.
SMALLER = ["model.num_layers=2", "model.num_decoder_layers=2", "data.batch_size=8", "data.vocab_size=8192"]
RUNS: dict[str, list[str]] = {
    "quickstart": [],
    "mini": [],
    "t5_small": [*SMALLER, "data.source=installed-docs", "data.path=", "mesh.fsdp=1"],
    "dates": [],
    "mixture": [],
}
FIRST, LATER = 1e-6, 1e-5


def call(checkout: Path, script: str, *arguments: str) -> str:
    """Runs a script of a checkout, and gives what it printed."""
    command = [sys.executable, f"launch/{script}.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(command)}\n{done.stderr[-3000:]}")
    return done.stdout


def train(checkout: Path, config: str, folder: Path, workdir: Path, steps: int) -> list[float]:
    """The losses of a run."""
    settings = [
        f"data.store={folder / 'store'}",
        f"train.steps={steps}",
        "train.log_every=1",
        "train.eval_batches=1",
        f"checkpoint.every={steps}",
        *RUNS[config],
    ]
    flags_given = [f"--config.{setting}" for setting in settings]
    call(checkout, "train", f"--config=configs/{config}.py", f"--workdir={workdir}", *flags_given)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def compare(before: list[float], after: list[float]) -> float:
    """The largest relative difference, once the bounds hold."""
    assert len(before) == len(after) > 0, (len(before), len(after))
    differences = [abs(one - other) / abs(one) for one, other in zip(before, after, strict=True)]
    for step, difference in enumerate(differences, start=1):
        if difference > (FIRST if step == 1 else LATER):
            raise SystemExit(f"step {step}: {before[step - 1]} before, {after[step - 1]} after")
    return max(differences)


def main(_: list[str]) -> None:
    before, steps = Path(_before.value).resolve(), _steps.value
    with tempfile.TemporaryDirectory() as temporary:
        for config in _only.value or RUNS:
            folder = Path(_keep.value or temporary).resolve() / config
            old, new, resumed = (folder / name for name in ("before", "after", "resumed"))
            losses = train(before, config, folder, old, steps)
            difference = compare(losses, train(ROOT, config, folder, new, steps))
            print(f"{config}: {losses[0]:.6f} to {losses[-1]:.6f}, differs by at most {difference:.1e}", flush=True)
            subprocess.run(["cp", "-r", old, resumed], check=True)
            further = train(before, config, folder, old, steps + 5), train(ROOT, config, folder, resumed, steps + 5)
            print(f"{config}: resumed from the earlier checkpoint, differs by at most {compare(*further):.1e}")


if __name__ == "__main__":
    app.run(main)
