"""Starts runs of several processes on this machine, and signals, stops and kills them."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from lm import config as config_lib
from lm.cluster import local
from lm.config import Config

ROOT = Path(__file__).parents[2]


class Run:
    """Processes of one run, each with CPU devices of its own; their stderr is kept."""

    def __init__(self, command: Sequence[str], processes: int, devices: int):
        """Starts them. One process is started as users start it: no variable says that it is alone."""
        port = local.free_port()
        self._logs = [tempfile.TemporaryFile("w+") for _ in range(processes)]  # noqa: SIM115
        for log in self._logs:
            weakref.finalize(self, log.close)
        self.processes = []
        for index, log in enumerate(self._logs):
            added = local.environment(index, processes, port, devices)
            if processes == 1:
                added = {name: value for name, value in added.items() if not name.startswith("LM_")}
            self.processes.append(
                subprocess.Popen(command, cwd=ROOT, env=os.environ | added, stdout=subprocess.DEVNULL, stderr=log)
            )

    def runs(self) -> bool:
        """Whether no process has ended."""
        return all(process.poll() is None for process in self.processes)

    def when(self, condition: Callable[[], bool], every: float = 0.02) -> None:
        """Waits until `condition`, asked `every` so many seconds, holds, or a process has ended."""
        while self.runs() and not condition():
            time.sleep(every)

    def send(self, signal: int, index: int = -1) -> None:
        self.processes[index].send_signal(signal)

    def wait(self) -> list[int]:
        """Waits for all; their exit codes, -n for signal n."""
        return [process.wait() for process in self.processes]

    def log(self, index: int) -> str:
        """What a process wrote to stderr so far, a line each time that the progress bar moved."""
        self._logs[index].seek(0)
        return self._logs[index].read().replace("\r", "\n")


def config_file(config: Config, folder: Path) -> Path:
    """The config as a file for launch scripts."""
    path = folder / "tiny.py"
    values = json.loads(config_lib.to_json(config))
    path.write_text(f"from lm import config\n\ndef get_config():\n    return config.from_dict({values!r})\n")
    return path


def train_command(config: Path, workdir: Path, *overrides: str) -> list[str]:
    script = str(ROOT / "launch" / "train.py")
    start = [sys.executable, "-m", "tests.distributed.cached", script]
    return [*start, f"--config={config}", f"--workdir={workdir}", *overrides]


def curve(workdir: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of each line of the metrics."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines]


def checkpoints(workdir: Path) -> list[int]:
    """The steps of all complete checkpoints, ascending."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def last_step(workdir: Path) -> int:
    """The step of the last whole line of the metrics, 0 where there is none."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:  # the end is enough, and may be asked for often
        file.seek(max(0, path.stat().st_size - 4096))
        found = re.findall(rb'^{"step": (\d+),.*}$', file.read(), re.MULTILINE)
    return int(found[-1]) if found else 0


def reached(workdir: Path, step: int) -> Callable[[], bool]:
    """True once the metrics of `step` are written."""
    return lambda: last_step(workdir) >= step


def saving(workdir: Path) -> Callable[[], bool]:
    """True while a checkpoint is being written and has not got its final name."""
    return lambda: any((workdir / "checkpoints").glob("*.orbax*"))
