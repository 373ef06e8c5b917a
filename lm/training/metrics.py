"""Where the numbers of a run go: metrics.jsonl, TensorBoard, a progress bar and loss.png."""

import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

from lm import storage
from lm.config import Config
from lm.training.tensorboard import ScalarWriter

_METRICS = "metrics.jsonl"
_SECONDS_BETWEEN_UPLOADS = 60.0

# Dense bfloat16 peak of one device, FLOP/s, by the device kind that JAX reports. Sources: the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def model_flops(config: Config, predicted: int) -> float:
    """FLOPs of one row, forward and backward, counting what the model needs and not what is recomputed.

    Two a multiply-add and three passes: forward, and the gradients of inputs and of weights. Attention is
    counted whole in global layers, causal or not, and over the window in local ones.

    Args:
        predicted: positions that reach the vocabulary projection.
    """
    model = config.model
    width, inner = model.d_model, model.num_heads * model.width_per_head
    reads, writes = model.architecture != "decoder", model.architecture != "encoder"
    source = config.data.seq_length
    target = config.data.target_length if reads else source

    def stack(layers: int, length: int) -> float:
        per_token = 4 * width * inner + (3 if model.gated else 2) * width * model.d_ff
        local = min(length, 2 * model.window + 1)
        seen = sum(local if layer % model.global_every else length for layer in range(layers))
        return layers * length * per_token + 2 * length * seen * inner

    total = stack(model.num_layers, source) if reads else 0.0
    total += stack(model.decoder_depth, target) if writes else 0.0
    if reads and writes:
        total += model.decoder_depth * (2 * width * inner * (source + target) + 2 * source * target * inner)
    head = width * model.vocab_size + (0 if writes else width * width)
    return 6.0 * (total + predicted * head)


class MetricWriter:
    """Writes one process's metrics; the others construct it with `enabled=False`.

    A resumed run continues the files where the checkpoint stands: lines after `start_step` are dropped, so
    that the joined curve is the unbroken one.

    Nothing can be appended to an object. For a working directory on object storage the files are written to a local
    folder and copied whole: now and then for those who watch, and by `sync` before a checkpoint, so that no line that
    leads to it is lost.
    """

    def __init__(self, workdir: epath.PathLike, start_step: int, steps: int, enabled: bool = True):
        self._enabled = enabled
        if not enabled:
            return
        self._workdir = str(workdir)
        self._remote = storage.is_remote(workdir)
        self._folder = Path(tempfile.mkdtemp(prefix="metrics-") if self._remote else workdir)
        self._uploads: list[Any] = []
        self._uploaded = time.monotonic()
        kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        storage.write_key(str(self._folder), _METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = open(self._folder / _METRICS, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._board = ScalarWriter(self._folder / "tensorboard", start_step + 1)
        self._steps = steps
        self._bar = tqdm(
            total=steps,
            initial=start_step,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),  # a bar in a log is one endless line
        )
        self._say(start_step)

    def progress(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._enabled:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the same numbers to TensorBoard and the bar or log."""
        if not self._enabled:
            return
        with storage.errors(self._workdir):
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")
            self._board.write(step, metrics)
        shown = {name: metrics[name] for name in ("loss", "eval/loss", "tokens_per_second") if name in metrics}
        texts = {name: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" for name, value in shown.items()}
        self._bar.set_postfix(texts)
        self._say(step, *(f"{name} {text}" for name, text in texts.items()))
        if self._remote and time.monotonic() - self._uploaded > _SECONDS_BETWEEN_UPLOADS:
            self._upload()

    def _say(self, step: int, *details: str) -> None:
        """A line for a log; a terminal has the bar."""
        if self._bar.disable:
            print(", ".join([f"train: step {step:,} of {self._steps:,}", *details]), file=sys.stderr, flush=True)

    def sync(self) -> None:
        """Makes sure that all lines are where the working directory is, before a checkpoint counts on them."""
        if self._enabled and self._remote:
            self._upload()
            self._wait()

    def _upload(self) -> None:
        """Starts copying the files to object storage; an earlier copy ends first, or it might win."""
        self._wait()
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        with storage.errors(self._workdir):
            self._uploads = [
                storage.start_writing(self._workdir, path.relative_to(self._folder).as_posix(), path.read_bytes())
                for path in files
            ]
        self._uploaded = time.monotonic()

    def _wait(self) -> None:
        uploads, self._uploads = self._uploads, []
        with storage.errors(self._workdir):
            for upload in uploads:
                upload.result()

    def close(self) -> None:
        """Closes the files and draws loss.png."""
        if not self._enabled:
            return
        self._bar.close()
        with storage.errors(self._workdir):
            self._file.close()
            self._board.close()
        self.sync()
        if self._remote:
            shutil.rmtree(self._folder)
        plot_loss(self._workdir)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut short by a kill is left out."""
    (content,) = storage.read_keys(str(workdir), [_METRICS])
    lines = []
    for line in (content or b"").decode().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def plot_loss(workdir: epath.PathLike) -> None:
    """Draws WORKDIR/loss.png: each loss over steps, training thin and smoothed, evaluation as points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = read_metrics(workdir)
    names = sorted({name for line in lines for name in line if name.endswith("_loss") and "/" not in name})
    if not names:
        return
    figure, axes = plt.subplots(1, len(names), figsize=(6.4 * len(names), 4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        points = [(line["step"], line[name]) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        axis.plot(steps, values, color="tab:blue", alpha=0.3, linewidth=1)
        axis.plot(steps, _smooth(values), color="tab:blue", label="training (smoothed)")
        held = [(line["step"], line[f"eval/{name}"]) for line in lines if f"eval/{name}" in line]
        if held:
            axis.plot(*zip(*held, strict=True), "o-", color="tab:orange", markersize=4, label="held out")
        axis.set(title=name.removesuffix("_loss").upper() + " loss", xlabel="step", ylabel="nats per prediction")
        axis.grid(alpha=0.3)
        axis.legend()
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    storage.write_key(str(workdir), "loss.png", picture.getvalue())


def _smooth(values: tuple[float, ...], decay: float = 0.8) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed.append(total / weight)
    return smoothed
