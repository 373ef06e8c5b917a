"""Runs several processes of one run on this machine, as the hosts of a pod would."""

import contextlib
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO

from lm import interrupts
from lm.cli import EXIT_BROKEN_PIPE, EXIT_DONE, EXIT_PREEMPTED
from lm.errors import InputError

GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL
# What Gloo, which carries collectives between CPUs, says of each group of devices that found all its members.
_JOINED = re.compile(rb"\[Gloo\] Rank \d+ is connected to (\d+) peer ranks\. Expected number of .* is : (\d+)\s*$")


def environment(process: int, processes: int, port: int, devices: int) -> dict[str, str]:
    """Returns the environment variables of one process: its number, the coordinator's address, its CPU devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return {
        "LM_COORDINATOR": f"127.0.0.1:{port}",
        "LM_PROCESSES": str(processes),
        "LM_PROCESS": str(process),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags.strip(),  # the last value of a repeated flag counts
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def show(command: Sequence[str], processes: int, devices: int) -> None:
    """Prints the commands that `run` would start. The port is chosen at the start."""
    for process in range(processes):
        added = environment(process, processes, 0, devices)
        added["LM_COORDINATOR"] = "127.0.0.1:PORT"
        print(shlex.join(["env", *(f"{name}={value}" for name, value in added.items()), *command]))


def run(command: Sequence[str], processes: int, devices: int, grace: float = GRACE_SECONDS) -> int:
    """Runs `processes` copies of a command, joined through a free port. Output lines begin with the process's number.

    The first failure ends the other processes, with SIGTERM and, after `grace` seconds, with SIGKILL. A SIGTERM to this
    process, or Ctrl-C, sends SIGTERM to all of them; a second Ctrl-C ends them at once.

    Returns:
        0 when all succeed; the first exit code that is neither 0 nor 75 (128 + n for signal n); otherwise 75. A process
        whose output nobody reads any more counts as 141.

    Raises:
        InputError: there is no such command.
    """
    port = free_port()
    running: dict[int, subprocess.Popen[bytes]] = {}
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    with _forward_stop(running):
        try:
            for process in range(processes):
                added = environment(process, processes, port, devices)
                running[process] = _start(command, process, os.environ | added, ended)
            return _wait(running, ended, grace)
        finally:
            for process in running.values():
                process.kill()


def _wait(
    running: dict[int, subprocess.Popen[bytes]], ended: "queue.SimpleQueue[tuple[int, int]]", grace: float
) -> int:
    """Waits for all processes, removes each from `running` when it ends, and returns the common exit code."""
    result, deadline = EXIT_DONE, None
    while running:
        try:
            process, code = ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            for straggler in running.values():
                straggler.kill()
            deadline = None
            continue
        del running[process]
        if code == EXIT_PREEMPTED and result == EXIT_DONE:
            result = EXIT_PREEMPTED
        elif code not in (EXIT_DONE, EXIT_PREEMPTED) and result in (EXIT_DONE, EXIT_PREEMPTED):
            result = code
            if running:
                print(f"process {process} left with exit code {code}: ending the others", file=sys.stderr, flush=True)
            for other in running.values():
                other.terminate()
            deadline = time.monotonic() + grace
    return result


def _start(
    command: Sequence[str], number: int, variables: dict[str, str], ended: "queue.SimpleQueue[tuple[int, int]]"
) -> subprocess.Popen[bytes]:
    """Starts one process, with threads that forward its output and then put its exit code into `ended`.

    The process has a group of its own, so that Ctrl-C in the terminal reaches it through this process alone.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, process_group=0
        )
    except OSError as error:
        raise InputError(f"{command[0]!r} cannot be run: {error.strerror}; give a command after --.") from error
    assert process.stdout is not None
    assert process.stderr is not None
    streams = ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
    unread = threading.Event()
    pumps = [threading.Thread(target=_forward, args=(number, *pair, unread), daemon=True) for pair in streams]
    for pump in pumps:
        pump.start()

    def wait() -> None:
        code = process.wait()
        for pump in pumps:
            pump.join(timeout=1.0)  # a child of the process may keep the pipe open
        if unread.is_set():
            code = EXIT_BROKEN_PIPE
        ended.put((number, code if code >= 0 else 128 - code))

    threading.Thread(target=wait, daemon=True).start()
    return process


def _forward(number: int, source: IO[bytes], destination: IO[bytes], unread: threading.Event) -> None:
    """Forwards lines. If nobody reads them, it sets `unread` and closes the pipe, so that the process ends as well."""
    with source:
        for line in source:
            if (joined := _JOINED.match(line)) and joined[1] == joined[2]:
                continue
            try:  # one call a line, so that lines never mix
                destination.write(b"[%d] %s\n" % (number, line.rstrip(b"\r\n")))
                destination.flush()
            except OSError:
                return unread.set()


@contextlib.contextmanager
def _forward_stop(running: dict[int, subprocess.Popen[bytes]]) -> Iterator[None]:
    def forward(*_: object) -> None:
        for process in list(running.values()):
            process.terminate()

    def interrupt() -> None:
        interrupts.say("interrupted: the processes save and end; Ctrl-C again ends them at once")
        forward()

    def interrupt_again() -> None:
        for process in list(running.values()):
            process.kill()

    before = signal.signal(signal.SIGTERM, forward)
    try:
        with interrupts.handled(interrupt, interrupt_again):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
