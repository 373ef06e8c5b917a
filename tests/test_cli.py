"""A script built on lm.cli prints the right messages and ends with the right exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from absl import flags
from lm import cli, config, errors

_config = cli.define_config()
_workdir = flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)
_port = flags.DEFINE_integer("port", 80, "Where to listen.", lower_bound=1)

def main():
    match _workdir.value:
        case "print": print(config.to_json(_config()), end="")
        case "wrong": raise errors.InputError("first line;\\nsecond line")
        case "preempted": return cli.EXIT_PREEMPTED
        case "interrupted": raise KeyboardInterrupt
        case "fault": raise ValueError("a fault")

cli.run(main)
"""
CONFIGS = {
    "good": "from lm.config import *\ndef get_config():\n    return Config(train=TrainConfig(steps=7))",
    "syntax": "def get_config(:",
    "binary": "\0",
    "empty": "",
    "other_type": "def get_config():\n    return {}",
    "raises": "def get_config():\n    return open('/no/such/file')",
    "misspelt": "from lm.config import Config\ndef get_config():\n    return Config(sead=1)",
    "refused": "from lm.config import *\ndef get_config():\n    return Config(train=TrainConfig(steps=0))",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "script.py").write_text(SCRIPT)
    for name, source in CONFIGS.items():
        (folder / f"{name}.py").write_text(source)
    (folder / "flags.txt").write_text("--config.train.step=3\n")
    return folder


def run(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "script.py", *command.split()]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=60)


def assert_input_error(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert message in done.stderr
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "steps", "gated"),
    [
        ("--config=good.py", 7, False),
        ("--config good.py --config.train.steps 5 --config.model.gated", 5, True),
        ("-config=good.py -config.train.steps=5 --config.train.steps=6 --config.model.gated=true", 6, True),
        ("--config=good.py --noconfig.model.gated", 7, False),
    ],
)
def test_overrides_reach_the_config(folder: Path, command: str, steps: int, gated: bool) -> None:
    done = run(folder, f"--workdir=print {command}")
    assert (done.returncode, done.stderr) == (0, "")
    assert f'"steps": {steps},' in done.stdout
    assert f'"gated": {str(gated).lower()},' in done.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--config=good.py", "--workdir is missing"),
        ("--workdir=x", "--config is missing"),
        ("--workdri=x --config=good.py", "unknown flag --workdri; did you mean --workdir?"),
        ("--workdir=x --config=good.py --port=many", "--port is 'many'; accepted: a whole number."),
        ("--workdir=x --config=good.py --port=0", "--port=0: 0 is not a positive integer"),
        ("--workdir=x --config=good.py --port", "Missing value for flag --port"),
        ("--workdir=x stray --config=good.py", "unexpected argument 'stray'"),
        ("--workdir=x --flagfile=none.txt", "Unable to open flagfile"),
        ("--workdir=x --config.seed=1", "--config.seed has no config to change; give --config=FILE"),
        ("--workdir=x --config.seed=1 --config=good.py", "Found --config.seed=1 in argv before"),
        ("--workdir=x --config=good.py --config=good.py", "--config is given twice"),
        ("--workdir=wrong --config=good.py", "error: first line; second line\n"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(folder: Path, command: str, message: str) -> None:
    assert_input_error(run(folder, command), message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.train.step=3", "error: --config.train.step is not a field of the config; nearest: train.steps"),
        ("--config.num_layers=3", "nearest: model.num_layers."),
        ("--config.mesh.zzz=3", "accepted: mesh.data, mesh.fsdp, mesh.context, mesh.tensor."),
        ("--config.zzz=3", "accepted: seed, data, model,"),
        ("--config.mesh=build", "a section; set one of its fields: mesh.data,"),
        ("--config.model.width_per_head=3", "width_per_head is not a field"),
        ("--config.seed.x=3", "nearest: seed."),
        ("--flagfile=flags.txt", "nearest: train.steps"),
        ("--config.train.steps=abc", "--config.train.steps is 'abc'; accepted: a whole number."),
        ("--config.train.steps=1.5", "--config.train.steps is '1.5'; accepted: a whole number."),
        ("--config.optim.b1=abc", "--config.optim.b1 is 'abc'; accepted: a number."),
        ("--config.model.gated=2", "--config.model.gated is '2'; accepted: true or false."),
        ("--config.model.gated false", "unexpected argument 'false'"),
        ("--noconfig.train.steps", "only a true-or-false field"),
        ("--noconfig.model.gated=1", "does not take an argument"),
        ("--config.train.steps=0", "train.steps is 0; it must be at least 1."),
        ("--config.optim.b1=nan", "optim.b1 is nan; it must lie between"),
    ],
)
def test_wrong_overrides_are_one_line_and_exit_code_2(folder: Path, override: str, message: str) -> None:
    assert_input_error(run(folder, f"--workdir=print --config=good.py {override}"), message)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("god.py", "--config is 'god.py', which is not a file; did you mean good.py?"),
        ("none/good.py", "which is not a file; accepted: a Python file with a get_config()."),
        ("", "which is not a file"),
        (".", "which is not a file"),
        ("syntax.py", "syntax.py:1: invalid syntax."),
        ("binary.py", "null bytes"),
        ("empty.py", "there is no get_config() in this file."),
        ("other_type.py", "get_config() returned dict; accepted: an lm.config.Config."),
        ("raises.py", "raises.py:2: FileNotFoundError: "),
        ("misspelt.py", "misspelt.py:3: TypeError: "),
        ("refused.py", "refused.py:3: train.steps is 0; it must be at least 1."),
    ],
)
def test_wrong_config_files_are_one_line_and_exit_code_2(folder: Path, path: str, message: str) -> None:
    assert_input_error(run(folder, f"--workdir=print --config={path}"), message)
    assert_input_error(run(folder, f"--workdir=print --config={path} --config.seed=1"), message)


def test_exit_codes_of_main(folder: Path) -> None:
    preempted = run(folder, "--workdir=preempted --config=good.py")
    assert (preempted.returncode, preempted.stderr) == (75, "")
    interrupted = run(folder, "--workdir=interrupted --config=good.py")
    assert (interrupted.returncode, interrupted.stderr) == (130, "interrupted\n")
    fault = run(folder, "--workdir=fault --config=good.py")
    assert fault.returncode == 1
    assert fault.stderr.startswith("Traceback")
    assert fault.stderr.endswith("ValueError: a fault\n")


def test_help_lists_the_flags_of_the_script(folder: Path) -> None:
    done = run(folder, "--help")
    assert done.returncode == 0
    assert "--config: " in done.stdout
    assert "--workdir: " in done.stdout


def test_importing_it_does_not_load_jax() -> None:
    code = "import sys, lm.cli; print([name for name in ('jax', 'flax', 'orbax') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
