"""launch/cluster/local.py as a user runs it: processes join, their output is told apart, one failure ends all."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCAL = [sys.executable, "launch/cluster/local.py"]
JOIN = """
import os, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(
    os.environ["LM_COORDINATOR"], int(os.environ["LM_PROCESSES"]), int(os.environ["LM_PROCESS"])
)
print("process", jax.process_index(), "of", jax.process_count(), "with", jax.local_device_count(), jax.device_count())
"""
# Leaves with the code that its number names; "wait" says so and waits for the signal, then leaves with 75.
LEAVE = """
import os, signal, sys, threading
number = int(os.environ["LM_PROCESS"])
how = sys.argv[1 + number]
if how == "wait":
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    print("waiting", flush=True)
    asked.wait()
    sys.exit(75)
if how == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("waiting", flush=True)
    signal.pause()
if how.startswith("-"):
    os.kill(os.getpid(), -int(how))
sys.stderr.write(f"leaving with {how}" + chr(10) + "and no newline at the end")
sys.exit(int(how))
"""


def run(*flags: str, script: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*LOCAL, *flags, "--", sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_processes_join_and_each_line_says_whose_it_is() -> None:
    done = run("--processes=2", "--devices=3", script=JOIN)
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if "process" in line) == [
        "[0] process 0 of 2 with 3 6",
        "[1] process 1 of 2 with 3 6",
    ]


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (("0", "0"), 0),
        (("75", "75"), 75),
        (("0", "75"), 75),
        (("wait", "3"), 3),  # the rest is asked to end; that it then says 75 hides nothing
        (("-9", "wait"), 137),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure(leave: tuple[str, ...], code: int) -> None:
    done = run(f"--processes={len(leave)}", script=LEAVE, arguments=leave)
    assert done.returncode == code
    assert ("ending the others" in done.stderr) == ("wait" in leave)


def test_output_keeps_its_stream_and_its_last_line() -> None:
    done = run("--processes=1", script=LEAVE, arguments=("0",))
    assert (done.stdout, done.stderr) == ("", "[0] leaving with 0\n[0] and no newline at the end\n")


def test_processes_whose_output_nobody_reads_end() -> None:
    """As in a shell with `| head -3`. `yes` writes until its pipe is closed."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([*LOCAL, "--processes=2", "--", "yes"], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert {process.stdout.readline() for _ in range(3)} <= {"[0] y\n", "[1] y\n"}
    process.stdout.close()
    try:
        assert process.wait(60) == 141
    finally:
        process.kill()
    assert process.stderr is not None
    with process.stderr as errors:
        assert "Traceback" not in errors.read()


def test_gloos_words_are_left_out_where_all_members_are_found() -> None:
    gloo = "[Gloo] Rank 0 is connected to {} peer ranks. Expected number of connected peer ranks is : 3"
    script = f"print({gloo.format(3)!r}); print({gloo.format(2)!r}); print('[Gloo] failed')"
    done = run("--processes=1", script=script)
    assert done.stdout == f"[0] {gloo.format(2)}\n[0] [Gloo] failed\n"


def test_one_that_does_not_answer_is_killed() -> None:
    command = [sys.executable, "-c", LEAVE, "deaf", "4"]
    code = f"import sys\nfrom lm.cluster import local\nsys.exit(local.run({command!r}, 2, 1, grace=0.2))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_notice_goes_to_all_as_sigterm(sent: signal.Signals) -> None:
    command = [*LOCAL, "--processes=3", "--", sys.executable, "-c", LEAVE, "wait", "wait", "wait"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    alarm = threading.Timer(60, process.kill)
    alarm.start()
    assert process.stdout is not None
    assert {process.stdout.readline() for _ in range(3)} == {"[0] waiting\n", "[1] waiting\n", "[2] waiting\n"}
    process.send_signal(sent)
    assert process.wait() == 75
    alarm.cancel()
    process.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "there is no command; give it after --"),
        (["--processes=2", "--", "/no/such/program"], "'/no/such/program' cannot be run: No such file or directory"),
        (["--processes=0", "--", "true"], "--processes is 0; accepted: a positive integer"),
        (["stray", "--", "true"], "unexpected argument 'stray'"),
    ],
)
def test_what_is_given_wrongly_is_one_line(arguments: list[str], message: str) -> None:
    done = subprocess.run([*LOCAL, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
