"""launch/evaluate.py prints one JSON object on stdout, and on stderr which lines it left out."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import runpy, sys, types

class Found:
    scores = {"de": {"examples": 2}}
    shown = []
    left_out = ["own.tsv, line 2 has 1 column", "own.tsv, line 4 has an empty source"]

sys.modules["lm.inference.comparison"] = comparison = types.ModuleType("comparison")
comparison.compare = lambda *_, **__: Found
sys.path.insert(0, "launch")
sys.argv = ["evaluate.py", "--checkpoint=runs/mine", "--metric=chrf", "--input=own.tsv"]
runpy.run_path("launch/evaluate.py", run_name="__main__")
"""


def test_lines_that_are_left_out_are_counted_and_named_on_stderr() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "left out 2 lines:\n  own.tsv, line 2 has 1 column\n  own.tsv, line 4 has an empty source\n"
    found = json.loads(done.stdout)
    assert found["de"] == {"examples": 2}
    assert len(found["left_out"]) == 2
