"""Joins the processes of a run, makes them agree on errors, stops them at the same step and ends them together.

JAX detects Cloud TPU VMs, GKE, SLURM and Open MPI without any setting. Elsewhere three variables describe the run:

    LM_COORDINATOR=host:port   the address of process 0, the same for all
    LM_PROCESSES=N             the number of processes; 1 means one process even on a cluster
    LM_PROCESS=i               the index of this process, from 0

Without a cluster and without variables there is one process, and the functions here do nothing.
"""

import contextlib
import ctypes
import faulthandler
import itertools
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
from jax._src.distributed import global_state  # the key-value store of the coordinator has no public name
from jax.experimental import multihost_utils

from lm import cli, interrupts
from lm.errors import InputError

_VARIABLES = ("LM_COORDINATOR", "LM_PROCESSES", "LM_PROCESS")
_LOOPBACK = ("127.0.0.1", "localhost")
_SLOW_START_SECONDS = 30.0
# Matches JAX's errors when a collective or the coordinator fails because a process has ended.
_LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|heartbeat")
_GO_ON = "Run the same command again to go on from the last checkpoint."
_PATIENCE_MS = 7 * 24 * 3600 * 1000  # preparing a corpus may take days; a process that dies ends the wait much earlier

_agreements = itertools.count()


class Refused(InputError):
    """An `InputError` that every process raises, so only process 0 reports it."""


def initialize(heartbeat_timeout: int) -> None:
    """Joins the other processes of this run, if there are any. Call it before any device is used.

    Args:
        heartbeat_timeout: seconds without a heartbeat after which a process counts as dead and the others end.

    Raises:
        InputError: the variables are wrong, or incomplete while JAX detects no cluster, or the coordinator cannot
            listen at its address.
    """
    coordinator, count, index = _settings()
    if count == 1:
        return
    local = coordinator is not None and coordinator.rpartition(":")[0] in _LOOPBACK
    with _slow_start():
        try:
            jax.distributed.initialize(
                coordinator,
                count,
                index,
                heartbeat_timeout_seconds=heartbeat_timeout,
                coordinator_bind_address=coordinator if local else None,
            )
        except ValueError as error:
            if coordinator or count is not None or index is not None:
                wanted = ", ".join(_VARIABLES)
                raise InputError(f"{_given()}, and JAX detects no cluster; set all of {wanted}.") from error
        except jax.errors.JaxRuntimeError as error:
            raise InputError(f"{_given()}: {error}; accepted: an address of process 0 with a free port.") from error
    if several():
        ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
    """Reports in one line that JAX ends this process because the coordinator is gone.

    JAX aborts from a thread of its own. It has a callback for this case, but jaxlib 0.10.2 cannot call a Python
    function there. We handle SIGABRT instead.
    """
    if threading.get_native_id() in {thread.native_id for thread in threading.enumerate()}:
        faulthandler.dump_traceback()  # a Python thread aborted: not JAX
        return
    print(
        f"error: process {global_state.process_id} of {global_state.num_processes} was ended by JAX for the reason "
        f"above; most likely another process is gone. {_GO_ON}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(cli.EXIT_FAULT)


@contextlib.contextmanager
def _slow_start() -> Iterator[None]:
    """Reports a wait that takes long: a process may be missing, or the address may be wrong."""
    text = f"still waiting for the other processes of the run ({_given()})"
    timer = threading.Timer(_SLOW_START_SECONDS, print, [text], {"file": sys.stderr, "flush": True})
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _settings() -> tuple[str | None, int | None, int | None]:
    """Returns the coordinator, the number of processes and the index of this one; None for an unset variable."""
    coordinator, *numbers = (os.environ.get(name) for name in _VARIABLES)
    if coordinator and not coordinator.rpartition(":")[2].isdecimal():
        raise InputError(f"LM_COORDINATOR is {coordinator!r}; accepted: host:port of process 0.")
    for name, value in zip(_VARIABLES[1:], numbers, strict=True):
        if value and not value.isdecimal():
            raise InputError(f"{name} is {value!r}; accepted: a whole number.")
    count, index = (int(value) if value else None for value in numbers)
    if count is not None and not (index or 0) < count:
        raise InputError(f"{_given()}; accepted: LM_PROCESS from 0 to LM_PROCESSES - 1.")
    return coordinator or None, count, index


def _given() -> str:
    return " ".join(f"{name}={os.environ.get(name, '')}" for name in _VARIABLES)


def several() -> bool:
    """Returns whether this run has more than one process."""
    return global_state.client is not None and global_state.num_processes > 1


def is_primary() -> bool:
    """Returns whether this is process 0, which alone writes logs, metrics, the config and the token store."""
    return global_state.process_id == 0


def say(message: object) -> None:
    """Prints a line of progress on stderr, in process 0 only."""
    if is_primary():
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def agreement() -> Iterator[None]:
    """Makes all processes leave a block together. If one raises `InputError`, all of them fail.

    Nothing in the block may wait for another process.

    Raises:
        Refused: in every process, with the message of the first process that raised `InputError`.
    """
    error = None
    try:
        yield
    except InputError as caught:
        if not several():
            raise
        error = caught
    found = [text for text in _exchange("" if error is None else str(error)) if text]
    if found:
        raise Refused(found[0]) from error


def _exchange(text: str) -> list[str]:
    """Returns the texts of all processes in their order, after waiting for all of them."""
    client, here = global_state.client, global_state.process_id
    if client is None:
        return [text]
    key = f"lm/agreement/{next(_agreements)}"
    client.key_value_set(f"{key}/{here:08}", text)
    client.wait_at_barrier(key, _PATIENCE_MS)
    return [value for _, value in sorted(client.key_value_dir_get(key))]


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM, a preemption notice, and Ctrl-C into a flag that the loop reads after every step.

    A second Ctrl-C ends the process at once.

    Yields:
        A function that takes the number of the last step and returns whether to stop after it. After a signal to any
        process it returns True in all processes at the same step, a few steps later.
    """
    asked = threading.Event()
    several_processes = global_state.client is not None

    def interrupt() -> None:
        say("interrupted: saving after this step; Ctrl-C again ends at once, without saving")
        os.kill(os.getpid(), signal.SIGTERM)

    def interrupt_again() -> None:
        interrupts.say("interrupted again: ended without saving")
        os._exit(cli.EXIT_INTERRUPTED)

    with interrupts.handled(interrupt, interrupt_again):
        if several_processes:  # JAX handles SIGTERM
            yield multihost_utils.reached_preemption_sync_point
            return
        before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
        try:
            yield lambda step: asked.is_set()
        finally:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def watchdog(seconds: int) -> Iterator[Callable[[], None]]:
    """Ends a process that hangs, with the stacks of all threads on stderr and exit code 1.

    Args:
        seconds: the longest time between two calls of the yielded function; 0 means no limit.

    Yields:
        A function that the block must call regularly.
    """
    if not seconds:
        yield lambda: None
        return

    def alive() -> None:
        faulthandler.dump_traceback_later(seconds, exit=True)  # written in C: works while Python hangs

    alive()
    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def fail_fast(*expected: type[Exception]) -> Iterator[None]:
    """Ends this process at once if the block raises and the run has several processes.

    The other processes wait for this one in a collective or a checkpoint. Cleaning up here, or waiting for them at
    exit, would hang all of them. They end when they see that this process has ended.

    Args:
        expected: exceptions that every process raises at the same step. These propagate.
    """
    try:
        yield
    except Refused:
        if not is_primary():
            sys.exit(cli.EXIT_INPUT)
        raise
    except expected:
        raise
    except Exception as error:
        if not several():
            raise
        _end(error)


def _end(error: Exception) -> NoReturn:
    if isinstance(error, InputError):
        print("error:", error, file=sys.stderr)
    elif isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
        print(
            f"error: process {global_state.process_id} of {global_state.num_processes} has lost another process; see "
            f"the log of that one. {_GO_ON}",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(cli.EXIT_INPUT if isinstance(error, InputError) else cli.EXIT_FAULT)
