"""What travels to the machines of a run: the tracked files as they are now, and nothing that git does not know."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lm.accelerators import Topology
from lm.cluster import actions, gke, slurm, snapshot
from lm.config import Config
from lm.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name, content in {
        "launch/train.py": "print('committed')",
        "launch/run.sh": "#!/bin/sh",
        "removed.py": "",
        "configs/new.py": "a config that git does not know yet",
        "lm/forgotten.py": "a module that git does not know yet",
        "key.json": "a secret",
        ".gitignore": "*.log",
        "run.log": "ignored",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "launch/run.sh").chmod(0o755)
    for arguments in (["init", "-q"], ["add", "launch", "removed.py", ".gitignore"]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    (root / "launch/train.py").write_text("print('changed')")
    (root / "removed.py").unlink()
    return root


def take(checkout: Path, *overrides: str) -> snapshot.Snapshot:
    arguments = [f"--config={checkout}/configs/new.py", *overrides]
    return snapshot.take(Config(seed=3), arguments, str(checkout.parent / "run"), root=checkout)


def test_tracked_files_and_the_config_file_travel(checkout: Path, tmp_path: Path) -> None:
    run = take(checkout, "--config.seed=3")
    actions.carry_out(run.files)
    code = snapshot.unpack(run.code, cache=tmp_path / "cache")
    files = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert files == {".gitignore", "configs/new.py", "launch/run.sh", "launch/train.py"}
    assert (code / "launch/train.py").read_text() == "print('changed')"
    assert (code / "launch/run.sh").stat().st_mode & 0o111 == 0o111
    assert run.untracked == ("lm/forgotten.py",)
    assert json.loads(Path(run.folder, "config.json").read_text())["seed"] == 3
    assert run.train == (
        "launch/train.py",
        "--config=configs/new.py",
        "--config.seed=3",
        f"--workdir={tmp_path / 'run'}",
    )


def test_a_snapshot_is_known_by_its_content(checkout: Path, tmp_path: Path) -> None:
    before = take(checkout)
    assert take(checkout) == before
    assert take(checkout, "--config.seed=4").id != before.id
    (checkout / "launch/train.py").write_text("print('again')")
    assert take(checkout).id != before.id


def test_it_is_unpacked_once_whoever_is_first(checkout: Path, tmp_path: Path) -> None:
    run = take(checkout)
    actions.carry_out(run.files)
    command = [sys.executable, "-m", "lm.cluster.snapshot", run.code]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {process.communicate(timeout=60)[0] for process in both}
    assert outputs == {f"{tmp_path}/cache/lm/code/{run.id}\n"}
    assert [path.name for path in (tmp_path / "cache/lm/code").iterdir()] == [run.id]


def test_a_config_outside_the_checkout_is_refused(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(InputError, match="is outside of the code; move it into"):
        snapshot.take(Config(), [f"--config={tmp_path}/mine.py"], "gs://bucket/run", root=checkout)


def test_no_checkout_is_refused_and_a_missing_git_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(InputError, match="is no git checkout"):
        snapshot.take(Config(), [f"--config={tmp_path}/mine.py"], "gs://bucket/run", root=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="git is not installed here"):
        snapshot.take(Config(), [f"--config={tmp_path}/mine.py"], "gs://bucket/run", root=tmp_path)


def test_a_command_that_fails_is_named_with_its_code() -> None:
    with pytest.raises(InputError, match="sh failed with exit code 3; the command was: sh -c 'exit 3'"):
        actions.Command(("sh", "-c", "exit 3")).carry_out()
    with pytest.raises(InputError, match="nonesuch is not installed here"):
        actions.Command(("nonesuch",)).carry_out()


def test_what_is_shown_can_be_pasted_into_a_shell() -> None:
    command = actions.Command(("sed", "s/a b/$HOME's/"), stdin="a b\n$HOME\n")
    shell = subprocess.run(["bash", "-c", str(command)], capture_output=True, text=True, check=True)
    assert shell.stdout == command.output().stdout == "$HOME's\n$HOME\n"


@pytest.mark.parametrize("launcher", ["gke", "slurm"])
def test_a_machine_runs_the_code_of_the_snapshot(launcher: str, checkout: Path, tmp_path: Path) -> None:
    """Not that of the checkout, nor of the package that is installed; and SLURM's stays where data paths are right."""
    (checkout / "lm").mkdir(exist_ok=True)
    (checkout / "lm/__init__.py").write_text("")
    script = "import lm, os, sys\nprint(lm.__file__, os.getcwd(), *sys.argv[1:], sep='|')"
    (checkout / "launch/train.py").write_text(script)
    subprocess.run(["git", "add", "lm/__init__.py"], cwd=checkout, check=True)
    run = take(checkout, "--config.data.path=it's mine")
    actions.carry_out(run.files)
    if launcher == "gke":
        machines = gke.Tpus(Topology.parse("v5e:4x4"))
        (jobs,) = gke.jobset(gke.Job("run", "default", "image", machines), run)["spec"]["replicatedJobs"]
        (container,) = jobs["template"]["spec"]["template"]["spec"]["containers"]
        command = container["command"]
    else:
        command = ["bash", "-c", slurm.process(run, sys.executable)]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    code = tmp_path / "cache/lm/code" / run.id
    folder, config = (code, "configs/new.py") if launcher == "gke" else (tmp_path, code / "configs/new.py")
    shown = f"{code}/lm/__init__.py|{folder}|--config={config}|--config.data.path=it's mine|--workdir={run.workdir}\n"
    assert (done.stdout, done.stderr) == (shown, "")
