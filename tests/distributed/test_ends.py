"""Runs of several processes are refused, preempted, killed or hang; all processes end, and a run can be resumed."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm import distributed
from lm.config import Config
from lm.errors import InputError
from tests.training.conftest import changed, tiny_config  # noqa: F401

from .processes import Run, checkpoints, config_file, curve, reached, train_command

ENDLESS = "--config.train.steps=100000"


@pytest.fixture(scope="module")
def config(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    config = changed(
        tiny_config,
        mesh={"data": 1, "fsdp": 8},
        optim={"schedule": "constant"},  # so that a longer run begins as a shorter one
        checkpoint={"every": 5, "keep": 2},
    )
    return config_file(config, tmp_path_factory.mktemp("config"))


def test_wrong_input_is_one_line_of_one_process(config: Path, tmp_path: Path):
    run = Run(train_command(config, tmp_path / "run", "--config.data.store=", "--config.data.path=none.txt"), 2, 4)
    assert run.wait() == [2, 2]
    assert run.log(0).startswith("error: 'none.txt' matches nothing")
    assert run.log(0).count("\n") == 1
    assert run.log(1) == ""


def test_a_run_goes_on_after_a_kill_and_a_preemption_and_on_other_processes(config: Path, tmp_path: Path):
    workdir = tmp_path / "run"

    # kill -9 of one process ends the other.
    run = Run(train_command(config, workdir, ENDLESS), 2, 4)
    run.when(lambda: reached(workdir, 7)() and 5 in checkpoints(workdir))
    run.send(signal.SIGKILL, 1)
    assert run.wait() == [1, -signal.SIGKILL]
    # The sum that the other one takes part in fails. In jaxlib 0.12 it may wait instead, until heartbeats are missed.
    assert re.search("error: process 0 of 2 (has lost another process|was ended by JAX)", run.log(0))

    # SIGTERM to one saves the same step in both.
    run = Run(train_command(config, workdir, ENDLESS), 2, 4)
    run.when(reached(workdir, 13))
    run.send(signal.SIGTERM, 1)
    assert run.wait() == [75, 75], run.log(0)
    (resumed,) = [line for line in run.log(0).splitlines() if line.startswith("resuming from step")]
    assert int(resumed.split()[-1]) >= 5
    (notice,) = [line for line in run.log(0).splitlines() if "run the same command again" in line]
    stopped = checkpoints(workdir)[-1]
    assert f"stopped at step {stopped}, saved" in notice
    assert "stopped at" not in run.log(1)
    assert [step for step, *_ in curve(workdir)] == list(range(1, stopped + 1))

    # Another number of processes goes on with it.
    last = stopped + 3
    run = Run(train_command(config, workdir, f"--config.train.steps={last}"), 1, 8)
    assert run.wait() == [0], run.log(0)
    assert f"resuming from step {stopped}" in run.log(0)

    unbroken = tmp_path / "unbroken"
    run = Run(train_command(config, unbroken, f"--config.train.steps={last}"), 2, 4)
    assert run.wait() == [0, 0], run.log(0)
    assert curve(workdir)[:stopped] == curve(unbroken)[:stopped]
    np.testing.assert_allclose(curve(workdir)[stopped:], curve(unbroken)[stopped:], rtol=1e-6)


def test_where_the_first_process_is_killed_the_others_say_so_and_end():
    """JAX aborts them, as they have lost its coordinator."""
    script = (
        "import sys, threading\nfrom lm import distributed\ndistributed.initialize(heartbeat_timeout=10)\n"
        "print('joined', file=sys.stderr, flush=True)\nthreading.Event().wait()\n"
    )
    run = Run([sys.executable, "-c", script], 2, 1)
    run.when(lambda: all("joined" in run.log(index) for index in (0, 1)))
    run.send(signal.SIGKILL, 0)
    assert run.wait() == [-signal.SIGKILL, 1]
    assert run.log(1).splitlines()[-1] == (
        "error: process 1 of 2 was ended by JAX for the reason above; most likely another process is gone. "
        "Run the same command again to go on from the last checkpoint."
    )


def test_a_hung_process_shows_its_stacks_and_ends():
    script = (
        "import threading\nfrom lm import distributed\nwith distributed.watchdog(1):\n    threading.Event().wait()\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Timeout")
    assert 'File "<string>", line 4 in <module>' in result.stderr


def test_a_process_that_goes_on_is_left_alone():
    script = (
        "import time\nfrom lm import distributed\nwith distributed.watchdog(1) as alive:\n"
        "    for _ in range(8):\n        time.sleep(0.2)\n        alive()\nwith distributed.watchdog(0):\n    pass\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LM_COORDINATOR": "somewhere"}, "LM_COORDINATOR is 'somewhere'; accepted: host:port"),
        ({"LM_PROCESSES": "many"}, "LM_PROCESSES is 'many'; accepted: a whole number"),
        ({"LM_PROCESSES": "2", "LM_PROCESS": "2"}, "accepted: LM_PROCESS from 0 to LM_PROCESSES - 1"),
        ({"LM_PROCESSES": "2"}, "LM_PROCESSES=2 LM_PROCESS=, and JAX detects no cluster"),
    ],
)
def test_wrong_variables_are_refused(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("jax.distributed.initialize", _no_cluster)
    with pytest.raises(InputError, match=message):
        distributed.initialize(heartbeat_timeout=10)


def _no_cluster(*_, **__) -> None:
    raise ValueError("JAX knows no cluster here")


@pytest.mark.parametrize("variables", [{}, {"LM_PROCESSES": "1", "SLURM_NTASKS": "2"}])
def test_one_process_needs_nobody(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("jax.distributed.initialize", _no_cluster)
    distributed.initialize(heartbeat_timeout=10)
    assert not distributed.several()
    assert distributed.is_primary()
    with pytest.raises(InputError, match="as it was"), distributed.agreement():
        raise InputError("as it was")
