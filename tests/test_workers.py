"""A worker that dies fails the run and is explained, whenever it dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ABORT = 'import os; os.write(2, b"the reason\\n"); os.abort()\n'
PASSES = "def test_passes(): pass\n"


def run(folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    """Tests of these files in one worker."""
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.workers",
            "-p",
            "no:cacheprovider",
            "-n1",
            "--max-worker-restart=0",
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    "source",
    [f"def test_dies(): {ABORT}", ABORT + PASSES],
    ids=["in a test", "in the collection"],
)
def test_a_dead_worker_fails_the_run_with_its_reason(tmp_path: Path, source: str) -> None:
    done = run(tmp_path, test_dies=source)
    assert done.returncode == 1, done.stdout
    assert "ends with SIGABRT" in done.stdout
    assert "\nthe reason\n" in done.stdout


def test_a_worker_that_dies_after_its_tests_fails_the_run(tmp_path: Path) -> None:
    dies = f'def pytest_sessionfinish(session):\n  if hasattr(session.config, "workerinput"): {ABORT}'
    done = run(tmp_path, conftest=dies, test_passes=PASSES)
    assert done.returncode == 1, done.stdout
    assert "gw0 died" in done.stdout


def test_workers_that_live_change_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, test_passes=PASSES)
    assert (done.returncode, "died" in done.stdout) == (0, False), done.stdout
