"""Runs functions on the workers of a Ray cluster. A worker may be lost: another then does its work again.

Ray is imported only when it is asked for: `pip install -e '.[ray]'`.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib
import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, Protocol, TypeVar

from lm.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
_LOSSES = 8  # of one call, or of one worker before it answers a call: then the reason is in the call or in the cluster
_LEAVING = 10.0  # seconds that the threads get at the end


class Worker(Protocol):
    """Runs a function elsewhere and returns its result, or raises what it raises, or `Lost`."""

    def __call__(self, function: Callable[[], R], /) -> R: ...


class Lost(Exception):
    """A worker is gone. Its last call may be done, or not, or in part."""


@dataclasses.dataclass
class _Call:
    future: concurrent.futures.Future
    function: Callable[[], object]
    losses: int = 0


class Pool(concurrent.futures.Executor):
    """An executor of workers that may be lost. The call of a lost worker goes to the next one that is free.

    A call may therefore run twice, even at the same time where a worker is only cut off: its effect must be the same.
    """

    def __init__(self, start: Callable[[], Worker], num_workers: int):
        """Starts the workers; each answers calls as soon as it is there.

        Args:
            start: starts a worker, waits until it is ready and returns it, or raises `Lost`.
            num_workers: how many to start. A worker that is lost is started again.
        """
        self._start = start
        self._calls: collections.deque[_Call] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._broken: Exception | None = None
        self._living = num_workers
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(num_workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[R]:
        future: concurrent.futures.Future[R] = concurrent.futures.Future()
        with self._changed:
            if self._broken:
                raise self._broken
            self._calls.append(_Call(future, functools.partial(fn, *args, **kwargs)))
            self._changed.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Lets the workers end. Without `cancel_futures` they first do what is submitted."""
        with self._changed:
            while cancel_futures and self._calls:
                self._calls.popleft().future.cancel()
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads if wait else ():
            thread.join(_LEAVING)

    def _work(self) -> None:
        """Keeps one worker busy; runs in a thread of its own."""
        worker: Worker | None = None
        failed, lost = 0, Exception("none")
        while failed < _LOSSES and not self._closed:
            try:
                worker = worker or self._start()
                while (call := self._next()) is not None:
                    self._do(call, worker)
                    failed = 0
                return
            except Lost as error:
                worker, failed, lost = None, failed + 1, error
                if not self._closed:
                    reason = textwrap.shorten(str(error), 120)
                    print(f"a worker was lost, and what it did is done again: {reason}", file=sys.stderr, flush=True)
            except Exception as error:
                failed, lost = _LOSSES, error
        self._leave(lost)

    def _next(self) -> _Call | None:
        """Waits for a call; None at the end."""
        with self._changed:
            while not self._calls:
                if self._closed:
                    return None
                self._changed.wait()
            return self._calls.popleft()

    def _do(self, call: _Call, worker: Worker) -> None:
        if not call.losses and not call.future.set_running_or_notify_cancel():
            return
        try:
            call.future.set_result(worker(call.function))
        except Lost as error:
            call.losses += 1
            if call.losses < _LOSSES:
                with self._changed:
                    self._calls.appendleft(call)
                    self._changed.notify()
            else:
                call.future.set_exception(_given_up(f"{_LOSSES} workers were lost during the same work", error))
            raise
        except Exception as error:
            call.future.set_exception(error)

    def _leave(self, reason: Exception) -> None:
        """Gives this worker up; the last one fails every call."""
        with self._changed:
            self._living -= 1
            if not self._living:
                self._broken = _given_up("no worker could be kept alive", reason)
                while self._calls:
                    self._calls.popleft().future.set_exception(self._broken)


def _given_up(what: str, reason: Exception) -> RuntimeError:
    error = RuntimeError(f"{what}, perhaps because memory ran out; run again to continue. The last reason: {reason}")
    error.__cause__ = reason
    return error


# --- Ray


def check(runner: str) -> None:
    """Refuses what is no runner.

    Raises:
        InputError: it is none of local, ray and ray://HOST:PORT.
    """
    if runner not in ("local", "ray") and not (runner.startswith("ray://") and len(runner) > len("ray://")):
        raise InputError(f"--runner is {runner!r}; accepted: local, ray or ray://HOST:PORT.")


@contextlib.contextmanager
def executor(
    runner: str, num_workers: int | None, *, for_models: bool = False
) -> Iterator[concurrent.futures.Executor]:
    """Connects to a Ray cluster and starts workers there.

    Workers run in the folder of this process where their node has it, with this process's version of `lm`. They are
    ended with the block, whatever they do.

    Args:
        runner: `ray`: the cluster of RAY_ADDRESS, or the one that runs on this machine, or a new one here;
            `ray://HOST:PORT`: that cluster, as a client of it.
        num_workers: how many; by default one for each core of the cluster.
        for_models: each worker holds a model. The default is one for each GPU, or without GPUs one for each node that
            has a core.

    Raises:
        InputError: Ray is not installed, or the cluster does not answer.
    """
    ray = import_ray()
    with _connected(ray, runner):
        found: dict[str, float] = ray.cluster_resources()
        gpus = int(found.get("GPU", 0)) if for_models else 0
        nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())
        count = num_workers or (gpus or nodes if for_models else max(1, int(found.get("CPU", 1))))
        actor = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=0, scheduling_strategy="SPREAD")(_Actor)
        started: list[object] = []
        pool = Pool(functools.partial(_start, ray, actor, started), count)
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for each in started:
                ray.kill(each)
            pool.shutdown()


class _Actor:
    """A worker process."""

    def __init__(self, folder: str):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with contextlib.suppress(OSError):
            os.chdir(folder)

    def ready(self) -> bool:
        return True

    def call(self, function: Callable[[], R]) -> R:
        return function()


def _start(ray: ModuleType, actor, started: list[object]) -> Worker:
    handle = actor.remote(os.getcwd())
    started.append(handle)

    def get(reference: object):
        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            with contextlib.suppress(Exception):
                ray.kill(handle)
            raise Lost(str(error)) from error

    get(handle.ready.remote())
    return lambda function: get(handle.call.remote(function))


def import_ray() -> ModuleType:
    """Returns Ray.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError("--runner=ray needs ray; pip install -e '.[ray]'.") from error


@contextlib.contextmanager
def _connected(ray: ModuleType, runner: str) -> Iterator[None]:
    address = runner if "://" in runner else None
    code = str(Path(__file__).parents[1])
    try:
        ray.init(
            address,
            runtime_env={"py_modules": [code], "excludes": ["__pycache__"]},
            log_to_driver=False,
            logging_level="WARNING",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise InputError(f"Ray at {where} does not answer ({error}); start a cluster, or correct --runner.") from error
    try:
        yield
    finally:
        ray.shutdown()
