"""The Dockerfile against hadolint's rules. tests/launch/image.sh builds it, by hand."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, check=False)


def test_the_dockerfile_breaks_no_rule() -> None:
    done = lint((ROOT / "launch" / "Dockerfile").read_text())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_linter_can_refuse() -> None:
    done = lint("FROM debian:latest\nRUN cd /tmp && sudo apt-get install python3\n")
    assert done.returncode == 1
    assert {"DL3003", "DL3004", "DL3007"} <= set(done.stdout.split())
