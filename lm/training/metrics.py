"""Writes and reads the metrics of a run: metrics.jsonl, TensorBoard, a progress bar or log lines, loss.png."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import tensorstore as ts
from etils import epath
from tqdm import tqdm

from lm import storage
from lm.training import loss_picture
from lm.training.tensorboard import ScalarWriter

_METRICS = "metrics.jsonl"
_SECONDS_BETWEEN_UPLOADS = 60.0


class MetricWriter:
    """Writes the metrics of a run, on the process where `enabled` is true; elsewhere its methods do nothing.

    A resumed run continues the files of the workdir. Lines of steps after its checkpoint are dropped, so that the files
    equal those of an unbroken run.

    Objects in object storage cannot be appended to. For a remote workdir the files are written to a local folder and
    uploaded whole: once a minute, and by `sync` before a checkpoint, so that the checkpoint's lines are never lost.
    """

    def __init__(self, workdir: epath.PathLike, start_step: int, steps: int, enabled: bool = True):
        """Opens the files.

        Args:
            workdir: the folder of the run, local or remote.
            start_step: the step of the checkpoint that the run resumes from; 0 for a new run.
            steps: the number of steps of the whole run.
            enabled: whether this process writes.
        """
        self._enabled = enabled
        if not enabled:
            return
        self._workdir = str(workdir)
        self._remote = storage.is_remote(workdir)
        self._folder = Path(tempfile.mkdtemp(prefix="metrics-") if self._remote else workdir)
        self._uploads: list[ts.Future] = []
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
            disable=not sys.stderr.isatty(),  # in a log a bar would be one endless line
        )
        self._say(start_step)

    def progress(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._enabled:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line of metrics.jsonl, and the same numbers to TensorBoard and to the bar or log."""
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
        """Prints a line where there is no progress bar, because stderr is not a terminal."""
        if self._bar.disable:
            print(", ".join([f"train: step {step:,} of {self._steps:,}", *details]), file=sys.stderr, flush=True)

    def sync(self) -> None:
        """Uploads all lines to a remote workdir and waits for the upload. Call it before saving a checkpoint."""
        if self._enabled and self._remote:
            self._upload()
            self._wait()

    def _upload(self) -> None:
        """Starts uploading the files. It waits for an earlier upload, which might otherwise overwrite this one."""
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
        if picture := loss_picture.draw(read_metrics(self._workdir)):
            storage.write_key(self._workdir, "loss.png", picture)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl. An incomplete last line, left by a killed process, is dropped."""
    (content,) = storage.read_keys(str(workdir), [_METRICS])
    lines = []
    for line in (content or b"").decode().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
