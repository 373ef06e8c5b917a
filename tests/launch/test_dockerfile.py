"""The Dockerfile against hadolint's rules. tests/launch/image.sh builds it, by hand."""

import re
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import lm

ROOT = Path(__file__).parents[2]
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)


def test_the_dockerfile_breaks_no_rule() -> None:
    done = lint((ROOT / "launch" / "Dockerfile").read_text())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_setup_finds_the_version_in_the_files_that_it_is_copied_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (before,) = re.findall(r"^COPY setup\.py .*?^RUN pip", (ROOT / "launch" / "Dockerfile").read_text(), re.M | re.S)
    for *files, folder in (line.split() for line in re.findall(r"^COPY (.*)$", before, re.MULTILINE)):
        (tmp_path / folder).mkdir(exist_ok=True)
        for file in files:
            shutil.copy(ROOT / file, tmp_path / folder)
    given: dict[str, object] = {}
    setuptools = types.SimpleNamespace(find_packages=lambda **_: [], setup=given.update)
    monkeypatch.setitem(sys.modules, "setuptools", setuptools)
    runpy.run_path(str(tmp_path / "setup.py"))
    assert given["version"] == lm.__version__


def test_the_linter_can_refuse() -> None:
    done = lint("FROM debian:latest\nRUN cd /tmp && sudo apt-get install python3\n")
    assert done.returncode == 1
    assert {"DL3003", "DL3004", "DL3007"} <= set(done.stdout.split())
