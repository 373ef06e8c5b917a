"""A pytest plugin: a worker of pytest-xdist that dies fails the run, and the run shows why. launch/test.sh loads it.

pytest captures what a worker writes, and the capture is lost with the worker. The plugin runs the test that killed it
once more, in one process and without capture, and shows the end of its output.
"""

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import Scheduling
    from xdist.workermanage import WorkerController

SECONDS = 300  # that the second run may take
LINES = 40  # of its output that are shown

DIED = pytest.StashKey[list[str]]()  # names of workers
EXPLAINED = pytest.StashKey[list[str]]()  # tests that killed one


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: "WorkerController", error: object | None) -> None:
    if error:
        node.config.stash.setdefault(DIED, []).append(node.gateway.id)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport, sched: "Scheduling") -> None:
    config: pytest.Config = sched.config  # pyright: ignore[reportAttributeAccessIssue]
    explained = config.stash.setdefault(EXPLAINED, [])
    why = f"For the reason see {explained[0]}." if explained else run_alone(config, config.rootpath, crashitem)
    explained.append(crashitem)
    report.longrepr = f"{report.longrepr}\n{why}"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.stash.get(DIED, []) and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    died = config.stash.get(DIED, [])
    if not died:
        return
    terminalreporter.section("workers died", red=True, bold=True)
    terminalreporter.write_line(f"{', '.join(died)} died: the run has failed, and tests may not have run.")
    if not config.stash.get(EXPLAINED, []):  # no test ran in them
        collection = [*config.args, "--collect-only"]
        terminalreporter.write_line(run_alone(config, config.invocation_params.dir, *collection))


def run_alone(config: pytest.Config, folder: Path, *arguments: str) -> str:
    """Returns how pytest ends in one process without capture, and the end of its output."""
    command = [sys.executable, "-m", "pytest", "-n0", "-s", "-q", *arguments]
    if config.getoption("--peers", default=False):
        command.append("--peers")
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            timeout=SECONDS,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except subprocess.TimeoutExpired:
        return f"Run alone, it had not ended after {SECONDS} seconds."
    if done.returncode == 0:
        return (
            "Run alone, it passes. A worker is also killed when memory runs out; `dmesg` then names the process.\n"
            f"To run it alone: {' '.join(command[1:])}"
        )
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    before, _, _ = done.stdout.partition("Fatal Python error")  # then the stack, which the worker has shown as well
    output = "\n".join(before.splitlines()[-LINES:])
    return f"Run alone, it ends with {how}. The end of its output:\n{output}"
