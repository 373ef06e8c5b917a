"""A run that is killed and resumed equals a run that was never killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lm import config as config_lib
from lm.config import Config

from .conftest import changed

ROOT = Path(__file__).parents[2]
STEPS = 30
# A program for two devices is compiled and loaded in less time than one for eight; eight are resumed in test_ends.py.
TWO_DEVICES = {"XLA_FLAGS": re.sub(r"(device_count)=\d+", r"\1=2", os.environ["XLA_FLAGS"])}


def make_command(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    """The training command of a config file, for a workdir. An epoch has several windows."""
    schedule = {"schedule": "constant"}  # so that a longer run begins as a shorter one
    data = {"window_tokens": 800}
    config = changed(config, data=data, train={"steps": STEPS}, optim=schedule, checkpoint={"every": 5, "keep": 2})
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    values = json.loads(config_lib.to_json(config))
    file.write_text(f"from lm import config\n\ndef get_config():\n    return config.from_dict({values!r})\n")
    script = str(ROOT / "launch" / "train.py")
    return lambda workdir: [sys.executable, script, f"--config={file}", f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def command(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], list[str]]:
    return make_command(tiny_config, tmp_path_factory)


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | TWO_DEVICES, check=False)


def curve(workdir: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["gradient_norm"]) for line in lines]


def checkpoints(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def stop(command: list[str], when: Callable[[], bool], how: int) -> int:
    """Starts the command, sends it a signal as soon as `when` is true, and returns its exit code."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | TWO_DEVICES, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not when():
        time.sleep(0.001)
    process.send_signal(how)
    return process.wait()


def reached(workdir: Path, step: int) -> Callable[[], bool]:
    path = workdir / "metrics.jsonl"
    return lambda: path.exists() and path.read_text().count("\n") >= step


def saving(workdir: Path, step: int) -> Callable[[], bool]:
    """True while checkpoint `step` is being written and has not got its final name."""
    folder = workdir / "checkpoints"
    return lambda: any(path.name.startswith(f"{step}.orbax") for path in folder.glob(f"{step}.*"))


@pytest.fixture(scope="module")
def unbroken(command: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    result = run(command(workdir))
    assert result.returncode == 0, result.stderr
    assert len(curve(workdir)) == STEPS
    return workdir


def test_a_run_that_is_stopped_at_any_moment_goes_on_bitwise(command, unbroken, tmp_path):
    workdir = tmp_path / "run"
    for moment in (reached(workdir, 3), saving(workdir, 10)):
        assert stop(command(workdir), moment, signal.SIGKILL) == -signal.SIGKILL
    assert stop(command(workdir), reached(workdir, 17), signal.SIGTERM) == 75
    saved = checkpoints(workdir)[-1]
    assert saved >= 17
    result = run(command(workdir))
    assert result.returncode == 0, result.stderr
    assert f"resuming from step {saved}" in result.stderr
    assert curve(workdir) == curve(unbroken)
    assert checkpoints(workdir) == [25, 30]


def test_an_encoder_decoder_goes_on_bitwise_too(tiny_seq2seq, tmp_path_factory, tmp_path):
    command = make_command(tiny_seq2seq, tmp_path_factory)
    unbroken, workdir = tmp_path / "unbroken", tmp_path / "run"
    assert run(command(unbroken)).returncode == 0
    assert (
        stop(
            command(workdir), lambda: reached(workdir, 7)() and (workdir / "checkpoints" / "5").exists(), signal.SIGKILL
        )
        == -9
    )
    result = run(command(workdir))
    assert result.returncode == 0, result.stderr
    assert "resuming from step" in result.stderr
    assert len(curve(workdir)) == STEPS
    assert curve(workdir) == curve(unbroken)


def test_a_finished_run_has_nothing_to_do_and_a_longer_one_goes_on(command, unbroken, tmp_path):
    workdir = shutil.copytree(unbroken, tmp_path / "run")
    again = run(command(workdir))
    assert again.returncode == 0, again.stderr
    assert curve(workdir) == curve(unbroken)
    longer = run([*command(workdir), f"--config.train.steps={STEPS + 2}"])
    assert longer.returncode == 0, longer.stderr
    assert [step for step, *_ in curve(workdir)] == list(range(1, STEPS + 3))
    assert curve(workdir)[:STEPS] == curve(unbroken)


def test_another_config_is_refused_by_field(command, unbroken):
    result = run([*command(unbroken), "--config.model.d_ff=96"])
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "model.d_ff (64 -> 96)" in result.stderr
    assert "--workdir" in result.stderr
