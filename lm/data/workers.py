"""Spreads the preparation of a corpus over processes."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_ANNOUNCED_AFTER, _REPEATED_AFTER = 0.8, 20.0  # seconds


class ParallelMap(Protocol):
    """An ordered `map`, such as the built-in one or an executor's."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]: ...


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only; respects the limits of a container or job
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def executor(num_workers: int, *, thread: bool = True) -> Iterator[concurrent.futures.Executor]:
    """Starts worker processes; for one worker a thread, unless `thread` is false. Ctrl-C ends the processes.

    Processes are spawned, never forked: the parent may hold JAX's threads or an accelerator.
    """
    if num_workers == 1 and thread:
        started: concurrent.futures.Executor = concurrent.futures.ThreadPoolExecutor(1)
    else:
        context = multiprocessing.get_context("spawn")
        started = concurrent.futures.ProcessPoolExecutor(num_workers, context, initializer=_start_worker)
    try:
        yield started
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    except concurrent.futures.BrokenExecutor as error:
        raise RuntimeError("a worker process died, perhaps because memory ran out; run again to continue.") from error
    finally:
        started.shutdown(cancel_futures=True)


@contextlib.contextmanager
def announced(what: str, enabled: bool = True, *, at_once: bool = False) -> Iterator[None]:
    """Says on stderr what is being done, if it takes longer than a second, and every 20 s that it goes on.

    Args:
        what: is being done.
        enabled: whether it is said.
        at_once: say it at the start.
    """
    if not enabled:
        yield
        return
    if at_once:
        print(what, file=sys.stderr, flush=True)
    done = threading.Event()
    thread = threading.Thread(target=_announce, args=(what, done, at_once), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _announce(what: str, done: threading.Event, said: bool) -> None:
    began = time.monotonic()
    if not said:
        if done.wait(_ANNOUNCED_AFTER):
            return
        print(what, file=sys.stderr, flush=True)
    while not done.wait(_REPEATED_AFTER):
        print(f"{what}: {time.monotonic() - began:.0f} s so far", file=sys.stderr, flush=True)


def _start_worker() -> None:
    """Keeps a worker to one core, and ends it when its parent is killed, rather than let it write on or wait.

    A terminal sends Ctrl-C to the workers too; the parent decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
