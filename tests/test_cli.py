"""A script built on lm.cli prints the right messages and ends with the right exit codes."""

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from absl import flags

from lm import cli
from lm.config import Config, ModelConfig, TrainConfig, loading, reference, to_json
from lm.errors import InputError

ROOT = Path(__file__).parent.parent
SCRIPT = """
from absl import flags
from lm import cli, config, errors

_config = cli.define_config()
_workdir = flags.DEFINE_string("workdir", None, "Where the run lives.", required=True)
_kind = flags.DEFINE_enum("kind", "one", ["one", "two"], "Which.")
_picture = cli.define_picture("picture", "", "What to draw.", (".png", ".svg"))
_port = flags.DEFINE_integer("port", 80, "Where to listen.", lower_bound=1)

def main():
    match _workdir.value:
        case "print": print(config.to_json(_config()), end="")
        case "/proc/x/y": open(_workdir.value + "/file", "w")
        case "elsewhere": open("/proc/none/file", "w")
        case "much": print("好" * 9, flush=True)
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
    "invented": "from lm.config import *\ndef get_config():\n    c = Config()\n    c.train.step = 3\n    return c",
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


def test_the_package_itself_names_the_scripts() -> None:
    done = subprocess.run([sys.executable, "-m", "lm"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    scripts = {str(path.relative_to(ROOT)) for path in (ROOT / "launch").rglob("*.py") if path.name != "startup.py"}
    assert {line.split()[0] for line in done.stderr.splitlines()[1:]} == scripts
    assert "error: lm has no command of its own" in done.stderr


def test_the_help_of_a_script_shows_its_lines_as_they_are_written() -> None:
    """A backslash at the end of a line would join it with the next one: a command could not be copied."""
    for path in (ROOT / "launch").rglob("*.py"):
        source = path.read_text()
        shown = ast.get_docstring(ast.parse(source), clean=False)
        assert shown is not None
        assert shown == source[3 : source.index('"""', 3)].replace("\\\\", "\\"), path


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
        ("--workdir=x --config=good.py --kind=three", "--kind is 'three'; accepted: one, two."),
        (
            "--workdir=x --config=good.py --picture=a.b.c",
            "--picture is a.b.c; accepted: a file whose name ends in .png",
        ),
        ("--workdir=x --config=good.py --port=0", "--port is 0; accepted: a positive integer."),
        ("--workdir=x --config=good.py --port", "Missing value for flag --port"),
        ("--workdir=x stray --config=good.py", "unexpected argument 'stray'"),
        ("--workdir=x --flagfile=none.txt", "Unable to open flagfile"),
        ("--workdir=x --config.seed=1", "--config.seed has no config to change; give --config=FILE"),
        ("--workdir=x --config.seed=1 --config=good.py", "Found --config.seed=1 in argv before"),
        ("--workdir=x --config=good.py --config=good.py", "--config is given twice"),
        ("--workdir=wrong --config=good.py", "error: first line; second line\n"),
        ("--workdir=/proc/x/y --config=good.py", "'/proc/x/y/file' cannot be used: No such file or directory; give"),
        ("--workdir= --config=good.py", "--workdir is empty; give it a value"),
        ("--workdir=x --config=good.py --steps=3", "unknown flag --steps; did you mean --config.train.steps?"),
        ("--workdir=x --help_config", "--help_config has no config to show; give --config=FILE as well."),
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
        (
            "none/good.py",
            "which is not a file; accepted: a Python file with a get_config(), or the config.json of a run, or a name",
        ),
        ("", "which is not a file"),
        (".", "which is not a file"),
        ("syntax.py", "syntax.py:1: invalid syntax."),
        ("binary.py", "null bytes"),
        ("empty.py", "there is no get_config() in this file."),
        ("other_type.py", "get_config() returned dict; accepted: an lm.config.Config."),
        ("raises.py", "raises.py:2: FileNotFoundError: "),
        ("misspelt.py", "misspelt.py:3: TypeError: "),
        ("misspelt.py", "seed"),
        ("invented.py", "invented.py: train.step is set, but is not a field of the config; nearest: steps"),
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
    assert run(folder, "--workdir=elsewhere --config=good.py").returncode == 1  # no flag names that file


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_flags_of_the_script(folder: Path, flag: str) -> None:
    done = run(folder, flag)
    assert done.returncode == 0
    assert "--config: " in done.stdout
    assert "--workdir: " in done.stdout


def test_a_full_disk_is_one_line_and_text_is_utf8(folder: Path) -> None:
    command = [sys.executable, "script.py", "--config=good.py", "--workdir=much"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith("error: the disk is full")
    ascii_ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert subprocess.run(command, cwd=folder, capture_output=True, env=ascii_).stdout.decode() == "好" * 9 + "\n"


def test_importing_it_does_not_load_jax() -> None:
    code = "import sys, lm.cli; print([name for name in ('jax', 'flax', 'orbax') if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_every_setting_of_a_config_is_shown_with_its_value(folder: Path) -> None:
    """The script's own required flags are not needed for it."""
    done = run(folder, "--help_config --config=good.py --config.model.num_layers=3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config.train.steps=7 (default: 1000)\n    the number of the last step." in done.stdout
    assert "--config.model.num_layers=3 (default: 4)" in done.stdout
    assert done.stdout.count("--config.") == len([each for each in reference.settings() if "NAME" not in each.name])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("steps", ["train.steps"]),
        ("train.steps", ["train.steps"]),
        ("train.step", ["train.steps"]),
        ("lr", ["optim.learning_rate"]),
        ("learning-rate", ["optim.learning_rate"]),
        ("learning_rte", ["optim.learning_rate"]),
        ("batch_size", ["data.batch_size"]),
        ("nogated", ["model.gated"]),
        ("vocab_size", ["data.vocab_size", "model.vocab_size"]),
        ("entirely_else", []),
    ],
)
def test_a_setting_without_its_section_is_recognised(name: str, settings: list[str]) -> None:
    assert reference.called(name)[: len(settings) or 1] == settings


def test_other_names_are_names_of_settings() -> None:
    known = {each.name for each in reference.settings()}
    assert set(reference._OTHER_NAMES.values()) <= known
    assert not {name.rpartition(".")[2] for name in known} & reference._OTHER_NAMES.keys()


def test_a_config_of_the_project_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(cli.__file__).parents[1]
    monkeypatch.chdir(root)
    assert cli.find_config("quickstart") == cli.find_config("quickstart.py") == "configs/quickstart.py"
    monkeypatch.chdir(tmp_path)
    assert cli.find_config("quickstart") == str(root / "configs/quickstart.py")
    (tmp_path / "quickstart.py").touch()
    assert cli.find_config("quickstart.py") == "quickstart.py"  # a file that is there comes first
    assert cli.find_config("none") == "none"
    with pytest.raises(InputError, match="which is not a file; did you mean quickstart"):
        cli._load_config("quikstart")


@pytest.mark.parametrize(
    ("define", "bounds", "accepted"),
    [
        (flags.DEFINE_integer, {"lower_bound": 1}, "a positive integer"),
        (flags.DEFINE_integer, {"lower_bound": 0}, "a non-negative integer"),
        (flags.DEFINE_integer, {"lower_bound": 5}, "an integer >= 5"),
        (flags.DEFINE_integer, {"upper_bound": -9}, "an integer <= -9"),
        (flags.DEFINE_integer, {"lower_bound": 1, "upper_bound": 9}, "an integer in the range [1, 9]"),
        (flags.DEFINE_float, {"lower_bound": 0.5}, "a number >= 0.5"),
    ],
)
def test_every_bound_of_a_number_is_said_in_the_same_words(
    define: Callable[..., object], bounds: dict[str, float], accepted: str
) -> None:
    values = flags.FlagValues()
    define("size", None, "", flag_values=values, **bounds)
    with pytest.raises(flags.IllegalFlagValueError) as refused:
        values(["script", "--size=-8"])
    assert cli._illegal_value(str(refused.value)) == f"--size is -8; accepted: {accepted}."


def test_a_file_that_is_written_at_the_end_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "there.png").touch()
    parser = cli._PathParser((".png",), written=True)
    for path in ("", "a.png", f"{tmp_path}/new.png", f"{tmp_path}/there.png"):
        assert parser.parse(path) == path
    (tmp_path / "folder.png").mkdir()
    for path in (f"{tmp_path}/none/a.png", f"{tmp_path}/folder.png", f"{tmp_path}/there.png/a.png", "s3://a/b.png"):
        with pytest.raises(ValueError, match="it is not a file of this machine that can be written, in a folder"):
            parser.parse(path)
    assert cli._PathParser().parse(f"{tmp_path}/none/a") == f"{tmp_path}/none/a"


def test_a_misspelt_field_names_the_nearest() -> None:
    with pytest.raises(TypeError) as caught:
        Config(sead=1)  # pyright: ignore[reportCallIssue]
    assert "seed" in str(caught.value) + loading.nearest_keyword(caught.value)
    with pytest.raises(TypeError) as caught:
        TrainConfig(zzz=1)  # pyright: ignore[reportCallIssue]
    assert "accepted: steps," in str(caught.value) + loading.nearest_keyword(caught.value)
    with pytest.raises(TypeError) as caught:
        ModelConfig(embedding_scale=True)  # pyright: ignore[reportCallIssue]
    assert "; nearest: scale_embedding, " in loading.nearest_keyword(caught.value)


def test_the_config_of_a_run_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    run = Config(train=TrainConfig(steps=7))
    path.write_text(to_json(run))
    assert loading.load(str(path)) == run
    path.write_text(to_json(Config(model=ModelConfig(vocab_size=512))))  # its tokenizer has fewer pieces than asked for
    loading.load(str(path)).check_vocabulary()
    for content, said in (("{", r"json is not valid JSON \("), ('{"model_type": "bert"}', "a Hugging Face folder")):
        path.write_text(content)
        with pytest.raises(InputError, match=said):
            loading.load(str(path))


def test_a_launchers_help_lists_the_flags_that_launchers_share() -> None:
    command = [sys.executable, "launch/cluster/slurm.py", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=Path(cli.__file__).parents[1]).stdout
    assert all(
        f"--{name}: " in shown or f"--[no]{name}: " in shown for name in ("config", "workdir", "name", "dry_run")
    )


def test_the_guide_lists_every_setting() -> None:
    """After a change of a setting: python -m lm.config.reference."""
    guide = (Path(cli.__file__).parents[1] / "configs/README.md").read_text()
    assert reference.into_guide(guide) == guide
    assert guide.count("\n| `") > 100
    for each in reference.settings():
        assert each.text, each.name
