"""launch/predict.py says on stderr what it does while nothing is on stdout yet."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A model whose loading and first answers take until it is said that they do.
SCRIPT = """
import runpy, sys, threading, types
import lm, lm.inference
from lm.data import workers

said = threading.Event()

class Heard:
    def write(self, text):
        sys.__stderr__.write(text)
        if text.endswith("\\n"):
            said.set()

    def flush(self):
        sys.__stderr__.flush()

def until_said():
    assert said.wait(60)
    said.clear()

class Model:
    def pipeline(self, task, options):
        def answers(asked, number):
            if number == 0:
                until_said()
            return [{"embedding": [1.0]} for _ in asked]
        return answers

def load(path):
    until_said()
    return Model()

workers._ANNOUNCED_AFTER = 0.0
lm.load = load
sys.modules["lm.inference.predict"] = predict = types.ModuleType("predict")
predict.Options, predict.TOGETHER = dict, 1
lm.inference.predict = predict
sys.stderr = Heard()
sys.path.insert(0, "launch")
sys.argv = ["predict.py", "--checkpoint=runs/mine", "--task=embed"]
runpy.run_path("launch/predict.py", run_name="__main__")
"""


def test_loading_and_the_first_answers_are_announced() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, input="a\nb\n", capture_output=True, text=True, check=False)
    assert done.stderr == "loading runs/mine\ncompiling embed, then answering\n"
    assert (done.returncode, done.stdout) == (0, '{"embedding": [1.0]}\n' * 2)
