"""Compares the held-out losses of runs that read the corpus in windows with those of runs that read it in one.

    python -m tests.benchmarks.window_curves --folder=/tmp/curves [--scale=0.1] [--picture=FILE]

The run is `configs/mini.py`. A window holds a tenth of the corpus, or all of it; each with three seeds. A scale below 1
makes steps, warm-up and corpus smaller by the same factor, so that a run still sees 0.8 epochs. The corpus is then
every n-th of the embedded documents, in their order, so that neighbours are still of one package. A window has fifty
blocks.
An interrupted comparison goes on where it was. Each run prints its held-out losses, and the last line has the mean over
the seeds of both, the largest distance between two seeds of one window, and the difference of the means.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from lm import cli
from lm.config import Config, DataConfig
from lm.data import corpus, prepare
from lm.data import store as stores
from lm.training import loop, metrics

_folder = flags.DEFINE_string("folder", None, "Where the store and the runs are.", required=True)
_scale = flags.DEFINE_float("scale", 1.0, "Of steps and corpus.", lower_bound=0.01, upper_bound=1.0)
_seeds = flags.DEFINE_integer("seeds", 3, "Runs of each kind.", lower_bound=2)
_picture = flags.DEFINE_string("picture", "", "Where to draw the held-out losses.")

_WINDOWS = 10
_BLOCKS = 500  # 50 in a window, as windows of 100 million tokens have
_EVALUATIONS = 8


def make_store(folder: Path) -> DataConfig:
    """Writes the corpus and its store, unless they are there; returns the section that reads it."""
    file = folder / "corpus.jsonl"
    if not file.exists():
        every = round(1 / _scale.value)
        documents = list(corpus.documents(DataConfig()))[::every]
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    data = dataclasses.replace(mini().data, source="jsonl", path=str(file), store=f"{folder}/store")
    data.heldout_fraction = 0.05
    stores.BLOCK_TOKENS = round(1.1e7 * _scale.value / _BLOCKS)
    prepare.prepare(data, data.store, num_workers=1)
    return data


def mini() -> Config:
    from configs import mini

    return mini.get_config()


def run(folder: Path, data: DataConfig, windows: int, seed: int) -> list[float]:
    """Trains one run; returns its held-out losses in the order of the steps."""
    config = mini()
    tokens = stores.Store.open(data.store).train.num_tokens
    config.data = dataclasses.replace(data, window_tokens=tokens // windows if windows > 1 else 10 * tokens)
    config.seed = seed
    config.train.steps = round(config.train.steps * _scale.value)
    config.train.eval_every = config.train.steps // _EVALUATIONS
    config.optim.warmup_steps = round(config.optim.warmup_steps * _scale.value)
    config.checkpoint.every = config.train.eval_every
    workdir = folder / f"windows-{windows}-seed-{seed}"
    loop.train(config, str(workdir))
    return [line["eval/mlm_loss"] for line in metrics.read_metrics(workdir) if "eval/mlm_loss" in line]


def draw(found: dict[int, np.ndarray], path: str) -> None:
    """The held-out losses of all runs, one colour a kind."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for (windows, losses), colour in zip(found.items(), ("tab:blue", "tab:orange"), strict=True):
        steps = np.linspace(0, 2000 * _scale.value, losses.shape[1] + 1)[1:]
        for number, curve in enumerate(losses):
            label = f"{windows} window{'s' * (windows > 1)}" if not number else None
            axis.plot(steps, curve, color=colour, linewidth=1, label=label)
    axis.set(xlabel="step", ylabel="held-out loss, nats")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    folder = Path(_folder.value)
    data = make_store(folder)
    curves: dict[int, list[list[float]]] = {1: [], _WINDOWS: []}
    for seed in range(_seeds.value):
        for windows, of_kind in curves.items():
            of_kind.append(run(folder, data, windows, seed))
            losses = [round(loss, 4) for loss in of_kind[-1]]
            print(json.dumps({"windows": windows, "seed": seed, "heldout_losses": losses}), flush=True)
    found = {windows: np.array(of_kind) for windows, of_kind in curves.items()}
    summary: dict[str, Any] = {f"mean_{windows}": losses.mean(axis=0) for windows, losses in found.items()}
    summary |= {f"spread_{windows}": np.ptp(losses, axis=0) for windows, losses in found.items()}
    summary["difference"] = summary[f"mean_{_WINDOWS}"] - summary["mean_1"]
    print(json.dumps({name: values.round(4).tolist() for name, values in summary.items()}), flush=True)
    if _picture.value:
        draw(found, _picture.value)


if __name__ == "__main__":
    cli.run(main)
