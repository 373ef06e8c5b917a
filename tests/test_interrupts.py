"""Ctrl-C outside of the training loop says where the work stands; a second one ends the process at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lm import interrupts

ROOT = Path(__file__).parent.parent

SCRIPTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").rglob("*.py") if path.name != "startup.py")

# Presses Ctrl-C where a script begins to import one of the modules that are named.
AT_IMPORT = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name in modules:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
modules = sys.argv[1].split(",")
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name=os.environ.get("NAME", "__main__"))
"""
LARGE = "jax,tensorstore"  # what a script imports when it has read its flags
# Goes on after KeyboardInterrupt, as a compiler does, into which Python cannot raise it.
COMPUTING = """
import contextlib, signal, threading
from lm import cli

def main():
    with contextlib.suppress(KeyboardInterrupt):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        print("computing", flush=True)
        threading.Event().wait()
    threading.Event().wait()

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run(main)
"""
CONFIG = "--config=configs/mini.py"


@pytest.mark.parametrize(
    ("script", "flags", "before", "said"),
    [
        ("train.py", [CONFIG, "--workdir=OUT"], "", "no step is lost; run the same command again to go on"),
        ("prepare.py", [CONFIG, "--out=OUT"], "preparing OUT\n", "run the same command again to go on with what is"),
        (
            "plan.py",
            [CONFIG, "--topology=v5e:2x2"],
            "compiling for v5e:2x2 on this machine; a large model takes minutes\n",
            "no plan is written",
        ),
        ("predict.py", ["--checkpoint=OUT", "--task=embed"], "", "each answer that is written is whole"),
        ("evaluate.py", ["--checkpoint=OUT"], "", "nothing was measured to the end"),
    ],
)
def test_each_script_says_where_it_stands(
    script: str, flags: list[str], before: str, said: str, tmp_path: Path
) -> None:
    """And preparing and planning have said what they do by then."""
    out = str(tmp_path / "out")
    given = [flag.replace("OUT", out) for flag in flags]
    command = [sys.executable, "-c", AT_IMPORT, LARGE, f"launch/{script}", *given]
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")
    before = before.replace("OUT", out)
    assert done.stderr.startswith(f"{before}interrupted: {said}")
    assert done.stderr.count("\n") == before.count("\n") + 1
    assert not Path(out).exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_prints_a_traceback_while_it_is_imported(script: str) -> None:
    command = [sys.executable, "-c", AT_IMPORT, "absl", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_spawned_process_leaves_ctrl_c_to_its_parent() -> None:
    command = [sys.executable, "-c", AT_IMPORT, "absl", "launch/train.py"]
    environment = {**os.environ, "NAME": "__mp_main__"}  # so a spawned process calls the script that it imports
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_is_answered_while_a_compiler_runs() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMPUTING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        assert process.stdout.readline() == "computing\n"
        process.send_signal(signal.SIGINT)
        waiting = "interrupted: this ends when the running computation is done; Ctrl-C again ends at once\n"
        assert process.stderr.readline() == waiting
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "interrupted again: ended at once\n"
    assert process.returncode == 130


def test_python_does_not_end_under_the_threads_of_a_compiler() -> None:
    """It would free what they use. What has been printed is kept."""
    script = (
        "import atexit; from lm import cli\n"
        "def main():\n    print('kept')\n    raise KeyboardInterrupt\n"
        "atexit.register(print, 'Python ends')\ncli.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "kept\n", "interrupted\n")


def test_blocks_are_nested() -> None:
    def inner() -> None:
        with interrupts.handled(lambda: None, lambda: None):
            os.kill(os.getpid(), signal.SIGINT)

    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    with interrupts.raised():
        inner()  # which does not raise
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, inherited) is signal.default_int_handler


def test_where_a_shell_ignores_it_it_stays_ignored() -> None:
    inherited = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.raised():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.signal(signal.SIGINT, inherited) is signal.SIG_IGN
