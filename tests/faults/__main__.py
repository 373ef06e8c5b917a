"""What faults cost, as a table for RESULTS.md: python -m tests.faults --times=10 [--only=NAME,...]

A run of two processes with four CPU devices each is struck again and again, and each time started again with the same
command. In the end its curve is compared with that of a run that nothing happened to. A full disk needs root, for a
small tmpfs.
"""

import contextlib
import dataclasses
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import app, flags

import tests.conftest  # noqa: F401  what tests run under, the compile cache among it
from lm.config import CheckpointConfig, Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from lm.data import prepare
from tests.distributed.processes import Run, checkpoints, config_file, curve, last_step, reached, saving, train_command
from tests.training.conftest import make_corpus

_times = flags.DEFINE_integer("times", 10, "How often each fault strikes.", lower_bound=1)
_only = flags.DEFINE_list("only", None, "Names of the faults, by default all.")
_seed = flags.DEFINE_integer("seed", 0, "Decides the moments and places.")

ENDLESS = 10**6
EVERY = 4  # steps between checkpoints
SAVE_SECONDS = 0.2  # of a save, at most: a blow comes somewhere in this time
TMPFS = 32 << 20  # bytes
BLOCK = 4096
WORKERS = {1: 8, 2: 4, 4: 2}  # processes -> devices of each


@dataclasses.dataclass
class Strike:
    """What one strike did: exit codes, the last step that was written down, and what the user was told.

    Attributes:
        seconds: from the blow to the end of the last process.
    """

    codes: list[int]
    step: int
    message: str
    seconds: float


class Missed(Exception):
    """The blow came too late or too early to be the fault that was meant."""


@dataclasses.dataclass
class Victim:
    """A run that is struck: its command, its folder and the chance that decides where."""

    config: Path
    workdir: Path
    chance: random.Random
    processes: int = 2

    def command(self, steps: int) -> list[str]:
        return train_command(self.config, self.workdir, f"--config.train.steps={steps}")

    def start(self) -> Run:
        return Run(self.command(ENDLESS), self.processes, WORKERS[self.processes])

    def go_on(self, run: Run, least: int = EVERY, most: int = 3 * EVERY) -> None:
        """Waits until the run has written a checkpoint of its own, and has taken some more steps."""
        before = last_step(self.workdir)
        run.when(reached(self.workdir, before + self.chance.randint(least, most)))
        run.when(lambda: bool(checkpoints(self.workdir)) and checkpoints(self.workdir)[-1] > before)

    def end(self, run: Run) -> Strike:
        """What is left once all processes have ended."""
        struck = time.monotonic()
        codes = run.wait()
        return Strike(codes, last_step(self.workdir), message(run), time.monotonic() - struck)

    def preempt(self, run: Run) -> Strike:
        self.go_on(run)
        run.send(signal.SIGTERM)
        return self.end(run)


def message(run: Run) -> str:
    """The line for the user, of the first process that has one."""
    for index in range(len(run.processes)):
        found = re.findall(r"(?:error: |checkpoint \S+ is damaged|stopped at step).*", run.log(index))
        if found:
            return found[-1]
    return ""


def damage_named(run: Run) -> str:
    """What a process says of a damaged checkpoint, the one that could not read it first."""
    logs = "".join(run.log(index) for index in range(len(run.processes)))
    found = re.findall(r"checkpoint \S+ is damaged.*", logs)
    return min(found, key=lambda line: "another process" in line, default="")


def resumed_from(run: Run) -> int:
    found = re.findall(r"resuming from step (\d+)", run.log(0))
    return int(found[-1]) if found else 0


# --- faults: each takes a run that has just begun, and strikes


def preempted(victim: Victim, run: Run) -> Strike:
    return victim.preempt(run)


def killed(victim: Victim, run: Run) -> Strike:
    victim.go_on(run)
    run.send(signal.SIGKILL, victim.chance.randrange(len(run.processes)))
    return victim.end(run)


def killed_in_save(victim: Victim, run: Run) -> Strike:
    victim.go_on(run)
    run.when(lambda: not saving(victim.workdir)())
    run.when(saving(victim.workdir), every=0.001)
    time.sleep(victim.chance.uniform(0, SAVE_SECONDS))
    run.send(signal.SIGKILL, victim.chance.randrange(len(run.processes)))
    ended = victim.end(run)
    if not saving(victim.workdir)():
        raise Missed("the save was complete nevertheless")
    return ended


def damaged(how: Callable[[Path, random.Random], None]) -> Callable[[Victim, Run], Strike]:
    """Harms a file of the newest checkpoint; each as often as it takes blocks of a disk."""

    def strike(victim: Victim, run: Run) -> Strike:
        ended = victim.preempt(run)
        folder = victim.workdir / "checkpoints" / str(checkpoints(victim.workdir)[-1])
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
        (file,) = victim.chance.choices(files, [-(-path.stat().st_size // BLOCK) for path in files])
        print(f"harmed: {file.relative_to(victim.workdir)}", file=sys.stderr, flush=True)
        how(file, victim.chance)
        return ended

    return strike


def flip_byte(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def on_processes(count: int) -> Callable[[Victim, Run], Strike]:
    """Goes on with another number of processes, and back again the next time."""

    def strike(victim: Victim, run: Run) -> Strike:
        ended = victim.preempt(run)
        victim.processes = count if victim.processes == 2 else 2
        return ended

    return strike


def second_run(victim: Victim, run: Run) -> Strike:
    victim.go_on(run)
    second = Run(victim.command(ENDLESS), 1, 8)
    refused = victim.end(second)
    ended = victim.preempt(run)  # the first one has not noticed
    assert ended.codes == [75, 75], ended
    return dataclasses.replace(refused, step=ended.step)


def disk_full(victim: Victim, run: Run) -> Strike:
    victim.go_on(run)
    filler = victim.workdir.parent / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    ended = victim.end(run)
    filler.unlink()
    return ended


FAULTS: dict[str, tuple[str, Callable[[Victim, Run], Strike]]] = {
    "preempted": ("SIGTERM to one of two processes", preempted),
    "killed": ("kill -9 of one of two processes", killed),
    "killed-in-save": ("kill -9 of one during a save", killed_in_save),
    "flipped": ("a flipped bit in the newest checkpoint", damaged(flip_byte)),
    "truncated": ("a truncated file in the newest checkpoint", damaged(truncate)),
    "half": ("half the processes on resume, and back", on_processes(1)),
    "double": ("double the processes on resume, and back", on_processes(4)),
    "second-run": ("a second run in the folder", second_run),
    "disk-full": ("disk full", disk_full),
}


# --- table


@contextlib.contextmanager
def folder_for(name: str) -> Iterator[Path]:
    """Where a run is struck: a temporary folder, or for a full disk a tmpfs of its own."""
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{name}-"))
    mounted = name == "disk-full"
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={TMPFS}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def strike_again_and_again(name: str, config: Path, times: int, reference: "Reference") -> str:
    """A row of the table."""
    what, strike = FAULTS[name]
    with folder_for(name) as folder:
        victim = Victim(config, folder / "run", random.Random(f"{name} {_seed.value}"))
        strikes: list[Strike] = []
        lost: list[int] = []
        run = victim.start()
        while len(strikes) < times:
            try:
                struck = strike(victim, run)
            except Missed as missed:
                print(f"{name}: {missed}; once more", file=sys.stderr, flush=True)
                run = victim.start()
                continue
            run = victim.start()
            run.when(lambda run=run: "train:" in run.log(0))  # the bar: nothing more will be said of the start
            assert run.runs(), f"it does not go on: {run.log(0)}"
            lost.append(struck.step - resumed_from(run))
            if damage := damage_named(run):
                struck.message = damage
            strikes.append(struck)
            print(f"{name}: {struck}, {lost[-1]} steps lost", file=sys.stderr, flush=True)
        assert victim.preempt(run).codes == [75] * len(run.processes), run.log(0)
        equal = compare(curve(victim.workdir), reference)
    codes = " or ".join(sorted({", ".join(map(str, each.codes)) for each in strikes}))
    messages = [each.message for each in strikes if each.message]
    said = re.sub(r"/\S*/(?=run\b)", "", messages[0]) if messages else "none"
    slowest = max(each.seconds for each in strikes)
    return f"| {what} | {times} | {min(lost)} to {max(lost)} | {equal} | {codes} | {slowest:.0f} s | {said} |"


@dataclasses.dataclass
class Reference:
    """The curve of two processes that nothing happens to; made as long as somebody asks."""

    config: Path
    folder: Path
    curve: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)

    def first(self, steps: int) -> list[tuple[int, float, float]]:
        if len(self.curve) < steps:
            workdir = self.folder / f"unbroken{steps}"
            run = Run(train_command(self.config, workdir, f"--config.train.steps={steps}"), 2, 4)
            assert run.wait() == [0, 0], run.log(0)
            self.curve = curve(workdir)
        return self.curve[:steps]


def compare(found: list[tuple[int, float, float]], reference: Reference) -> str:
    expected = reference.first(len(found))
    if found == expected:
        return "yes"
    assert [step for step, *_ in found] == [step for step, *_ in expected], "steps are missing"
    first = next(a[0] for a, b in zip(found, expected, strict=True) if a != b)
    print(f"the curve differs from step {first} on", file=sys.stderr, flush=True)
    return f"to {max(abs(a[1] / b[1] - 1) for a, b in zip(found, expected, strict=True)):.0e}"


def make_config(folder: Path) -> Config:
    """A two-layer BERT with dropout, sharded over eight devices."""
    data = DataConfig(
        source="text",
        path=str(make_corpus(folder / "corpus.txt")),
        store=str(folder / "store"),
        vocab_size=448,
        seq_length=32,
        batch_size=16,
        max_segments=4,
        heldout_fraction=0,
    )
    prepare.prepare(data, data.store, num_workers=1, progress=False)
    return Config(
        data=data,
        model=ModelConfig(vocab_size=448, d_model=64, num_layers=2, num_heads=8, d_ff=128, max_length=32),
        optim=OptimConfig(schedule="constant", warmup_steps=2),
        mesh=MeshConfig(data=1, fsdp=8),
        train=TrainConfig(log_every=1, heartbeat_timeout=20, hang_timeout=600),
        checkpoint=CheckpointConfig(every=EVERY, keep=3),
    )


def main(argv: list[str]) -> None:
    del argv
    wanted = _only.value or list(FAULTS)
    if unknown := set(wanted) - set(FAULTS):
        sys.exit(f"error: --only={','.join(sorted(unknown))}; accepted: {', '.join(FAULTS)}.")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        config = config_file(make_config(Path(folder)), Path(folder))
        reference = Reference(config, Path(folder))
        print("| fault | times | steps lost | curve bitwise | exit code | all ended within | message |")
        print("|---|---:|---:|---|---|---:|---|", flush=True)
        for name in wanted:
            print(strike_again_and_again(name, config, _times.value, reference), flush=True)


if __name__ == "__main__":
    app.run(main)
