"""Which Python launch/environment.sh takes, with Pythons that only say that they are one."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")
DIRNAME = shutil.which("dirname")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder whose bin is the whole PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dirname").symlink_to(str(DIRNAME))
    return tmp_path


def python(path: Path, code: int = 0) -> str:
    """A program that ends with this code, whatever it is asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{BASH}\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


def call(home: Path, function: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A function of environment.sh in the home folder."""
    return subprocess.run(
        [str(BASH), "-c", f"set -euo pipefail; source {ROOT}/launch/environment.sh; {function}"],
        env={"HOME": str(home), "PATH": str(home / "bin"), **variables},
        capture_output=True,
        text=True,
    )


def newer(home: Path) -> str:
    return call(home, "find_newer_python 3.11").stdout.strip()


def test_without_a_newer_python_none_is_found(home: Path) -> None:
    python(home / "bin/python3.11")
    assert newer(home) == ""


def test_the_newest_python_is_found_on_the_path(home: Path) -> None:
    python(home / "bin/python3.12")
    python(home / "bin/python3.13")
    assert newer(home) == "python3.13"


def test_pythons_that_pyenv_does_not_select_are_found(home: Path) -> None:
    python(home / "bin/python3.12")
    python(home / "bin/python3.13", code=127)  # pyenv's stand-in for a version that is not selected
    assert newer(home) == "python3.12"
    hidden = python(home / ".pyenv/versions/3.13.0/bin/python3.13")
    assert newer(home) == hidden


def test_an_older_python_is_not_newer(home: Path) -> None:
    python(home / "bin/python3.12")
    assert call(home, "find_newer_python 3.13").stdout == ""


def test_the_environment_of_a_named_python_is_its_own(home: Path) -> None:
    assert call(home, "environment_name").stdout == ".venv\n"
    python(home / "bin/python3.13")
    (home / "bin/python3.13").write_text(f"#!{BASH}\n[[ $2 = *print* ]] && echo 3.13 || true\n")
    assert call(home, "environment_name", PYTHON="python3.13").stdout == ".venv-3.13\n"


def test_a_name_that_is_no_python_is_refused(home: Path) -> None:
    done = call(home, "environment_name", PYTHON="python2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "PYTHON=python2 is not a Python 3.11 or newer" in done.stderr
