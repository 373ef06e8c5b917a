"""A script without its extra says in one line what to install. tests/data and tests/inference hold it for readers."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lm import cli
from lm.accelerators import Topology
from lm.config import MeshConfig
from lm.errors import InputError
from lm.plan.mesh import described_mesh

ROOT = Path(__file__).parent.parent
SERVE = """
import runpy, sys
sys.modules["uvicorn"] = None
sys.path.insert(0, "launch")
sys.argv = ["serve.py", "--checkpoint=runs/nowhere"]
runpy.run_path("launch/serve.py", run_name="__main__")
"""

# Runs a script in a Python that lacks a module.
LACKS = """
import os, runpy, sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name == lacking:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

lacking, *sys.argv = sys.argv[1:]
if lacking == "lm":
    sys.prefix = sys.base_prefix  # no environment is active
sys.meta_path.insert(0, Lacking())
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_serving_without_its_packages_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", SERVE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: this needs uvicorn; pip install -e '.[serve]'.\n"


@pytest.mark.parametrize(
    ("command", "lacking"),
    [("train.py", "lm"), ("cluster/slurm.py", "absl"), ("evaluate.py --checkpoint=nowhere", "jax")],
)
def test_a_python_without_the_packages_is_named(command: str, lacking: str) -> None:
    how = "activate the environment with `source" if lacking == "lm" else "install it, or what the project needs"
    words = [sys.executable, "-c", LACKS, lacking, *f"launch/{command}".split()]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {sys.executable} (Python 3.")
    assert f") lacks the package {lacking}; {how}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_script_imports_startup_first() -> None:
    for path in (ROOT / "launch").rglob("*.py"):
        if path.name != "startup.py":
            first = next(node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import))
            assert [alias.name for alias in first.names] == ["startup"], path


@pytest.mark.parametrize("lacking", ["lm.cli", "absl.flags"])
def test_a_package_without_one_of_its_modules_is_a_fault(lacking: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LACKS, lacking, "launch/train.py"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


def test_planning_without_the_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology. See https://...")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    with pytest.raises(InputError, match=re.escape("pip install -e '.[plan]'")):
        described_mesh(MeshConfig(), Topology.parse("v5e:2x2"))


def test_the_extras_are_those_of_setup() -> None:
    setup = (ROOT / "setup.py").read_text()
    for package, extra in cli._EXTRAS.items():
        declared = re.search(rf'"{extra}": \[(.*?)\]', setup, re.DOTALL)
        assert declared is not None
        assert f'"{package}>=' in declared[1]
