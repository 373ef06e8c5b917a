"""A script without its extra says in one line what to install. tests/data and tests/inference hold it for readers."""

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
sys.argv = ["serve.py", "--checkpoint=runs/nowhere"]
runpy.run_path("launch/serve.py", run_name="__main__")
"""


def test_serving_without_its_packages_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", SERVE], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: this needs uvicorn; pip install -e '.[serve]'.\n"


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
