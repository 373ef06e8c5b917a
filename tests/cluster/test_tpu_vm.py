"""The life of a run on TPU VMs, against a gcloud that keeps its machines in a folder and runs their scripts here."""

import gzip
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lm.accelerators import Topology
from lm.cluster import tpu_vm
from lm.cluster.actions import Write
from lm.cluster.snapshot import Snapshot
from lm.errors import InputError

# State of the queued resource: the file `state`. What the next training does: the first line of `turns`.
GCLOUD = """#!{python}
import os, pathlib, subprocess, sys
world = pathlib.Path({world!r})
state, calls = world / "state", world / "calls"
verb = sys.argv[4] if sys.argv[1] == "compute" else sys.argv[2]
with open(calls, "a") as file:
    file.write(verb + chr(10))
if verb == "create":
    state.write_text("PROVISIONING")
elif verb == "describe" and (away := world / "away").exists():
    left = int(away.read_text())
    away.write_text(str(left - 1)) if left else away.unlink()
    sys.exit("ERROR: the network is away")
elif verb == "describe" and not state.exists():
    sys.exit("ERROR: NOT_FOUND: Resource was not found" if (world / "login").exists() else "ERROR: no account")
elif verb == "describe":
    print(state.read_text())
    if state.read_text() == "PROVISIONING":
        state.write_text("ACTIVE")
elif verb == "delete":
    state.unlink()
elif verb == "ssh":
    script = next(word for word in sys.argv if word.startswith("--command=")).removeprefix("--command=")
    home = world / "machine"
    home.mkdir(exist_ok=True)
    sys.exit(subprocess.run(["bash", "-c", script], env=os.environ | {{"HOME": str(home)}}).returncode)
elif verb == "cat":
    sys.stdout.buffer.write(pathlib.Path(sys.argv[3]).read_bytes())
elif verb == "cp":
    pathlib.Path(sys.argv[4]).write_bytes(pathlib.Path(sys.argv[3]).read_bytes())
"""
PYTHON3 = """#!/bin/bash
echo "$@" >>{world}/installs
if [ "$3" = venv ]; then mkdir -p .venv/bin && cp {world}/train .venv/bin/python; fi
"""
TRAIN = """#!/bin/bash
turn="$(head -n 1 {world}/turns)"
sed -i 1d {world}/turns
echo "turn $turn of $(basename "$PWD") with $*"
case "$turn" in
  away) echo 5 >{world}/away; exit 255 ;;
  gone) echo 1000 >{world}/away; exit 255 ;;
  suspended) echo SUSPENDED >{world}/state; exit 1 ;;
  *) exit "$turn" ;;
esac
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "bin"
    tools.mkdir()
    for path, text in ((tools / "gcloud", GCLOUD), (tools / "python3", PYTHON3), (tmp_path / "train", TRAIN)):
        path.write_text(text.format(world=str(tmp_path), python=sys.executable))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "login").touch()
    return tmp_path


REQUEST = tpu_vm.Request(name="run", zone="zone", topology=Topology.parse("v5e:4x4"), spot=True)
EMPTY_TAR = gzip.compress(bytes(10240))


def supervise(world: Path, *turns: str, keep: bool = False) -> tuple[int, list[str]]:
    """Trains on machines that do one thing after another; the exit code, and what gcloud was asked to do."""
    (world / "turns").write_text("\n".join(turns) + "\n")
    folder = f"{world}/run/launch/abc"
    files = (Write(f"{folder}/code.tar.gz", EMPTY_TAR, "code"),)
    run = Snapshot(folder, files, ("launch/train.py", "--config=x.py", f"--workdir={world}/run"), ())
    code = tpu_vm.supervise(REQUEST, run, keep, poll=0.0)
    return code, [verb for verb in (world / "calls").read_text().split() if verb not in ("describe", "cat", "cp")]


def test_a_run_is_trained_and_its_machines_are_returned(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert supervise(world, "0") == (0, ["create", "ssh", "ssh", "delete"])
    shown = capfd.readouterr().out
    assert f"turn 0 of abc with launch/train.py --config=x.py --workdir={world}/run" in shown
    (log,) = (world / "run/launch/abc").glob("*.log")
    assert log.read_text() in shown.replace(f"[{os.uname().nodename}] ", "")


def test_a_preempted_run_is_submitted_again(world: Path) -> None:
    code, verbs = supervise(world, "suspended", "75", "0")
    assert code == 0
    assert verbs == ["create", "ssh", "ssh", "delete", "create", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert (world / "installs").read_text().count("uv venv") == 1  # a machine that is still there is not set up again


def test_a_lost_connection_is_taken_up_again(world: Path) -> None:
    assert supervise(world, "255", "0") == (0, ["create", "ssh", "ssh", "ssh", "ssh", "delete"])


@pytest.mark.parametrize("code", [1, 2])
def test_a_failure_is_the_end_and_machines_are_returned(world: Path, code: int) -> None:
    assert supervise(world, str(code), "0") == (code, ["create", "ssh", "ssh", "delete"])


def test_machines_may_be_kept_and_used_again(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert supervise(world, "0", keep=True)[1] == ["create", "ssh", "ssh"]
    assert f"return it with: {REQUEST.delete()}" in capfd.readouterr().err
    assert supervise(world, "0")[1] == ["create", "ssh", "ssh", "ssh", "ssh", "delete"]


def test_without_a_login_nothing_is_asked_for(world: Path) -> None:
    (world / "login").unlink()
    with pytest.raises(InputError, match="gcloud cannot describe run: ERROR: no account"):
        supervise(world, "0")
    assert "create" not in (world / "calls").read_text()


def test_a_network_that_is_away_for_a_while_ends_nothing(world: Path) -> None:
    assert supervise(world, "away", "0") == (0, ["create", "ssh", "ssh", "ssh", "ssh", "delete"])
    with pytest.raises(InputError, match=r"the network is away; it may still be rented, and is returned with: gcloud"):
        supervise(world, "gone")


def test_a_process_is_found_again(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A second connection follows the training that is there and does not start another."""
    (world / "state").write_text("ACTIVE")
    machine = world / "machine/lm/abc"
    (machine / ".venv/bin").mkdir(parents=True)
    (machine / "installed").touch()
    (machine / "log").write_text("started before\n")
    (machine / "code").write_text("0")
    os.utime(machine / "log", (0, 0))
    training = subprocess.Popen(["sleep", "60"])
    (machine / "pid").write_text(str(training.pid))

    def end_when_followed() -> None:
        while (machine / "log").stat().st_mtime == 0:  # the script touches it once it has looked for the process
            time.sleep(0.01)
        training.kill()
        training.wait()

    (world / "turns").write_text("3\n")
    run = Snapshot(f"{world}/run/launch/abc", (), ("launch/train.py",), ())
    (world / "run/launch/abc").mkdir(parents=True)
    threading.Thread(target=end_when_followed, daemon=True).start()
    assert tpu_vm.supervise(REQUEST, run, keep=True, poll=0.0) == 0
    assert "started before" in capfd.readouterr().out
    assert (world / "turns").read_text() == "3\n"
