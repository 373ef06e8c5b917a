"""Contenders that take turns, each in a process of its own.

In one process each would work with what the others leave behind: memory in pieces, threads that are still awake. A
training of one model meets neither.
"""

import atexit
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

_PROCESSES = multiprocessing.get_context("fork")  # flags that are parsed come along, and functions of any kind


class Contender:
    """A function in a process of its own, to be called again and again until its `end`, or that of the program."""

    def __init__(self, make: Callable[[], Callable[..., Any]]):
        """`make` makes the function, in the new process, when it is called first; this one must not have used JAX."""
        self._pipe, theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=_serve, args=(make, theirs))
        self._process.start()
        atexit.register(self.end)  # not a daemon: those may have no processes of their own
        theirs.close()

    def __call__(self, *args: Any) -> tuple[Any, float]:
        """What the function returns, and the seconds that it took; what it raises is a RuntimeError here."""
        self._pipe.send(args)
        try:
            result, seconds = self._pipe.recv()
        except EOFError:
            raise SystemExit("A contender's process was killed; is there enough memory for all of them?") from None
        if isinstance(result, Exception):
            raise result
        return result, seconds

    def end(self) -> None:
        """Ends the process, and frees its memory."""
        self._process.terminate()
        self._process.join()


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, called in a process of its own."""
    contender = Contender(lambda: function)
    result, _ = contender(*args)
    contender.end()
    return result


def _serve(make: Callable[[], Callable[..., Any]], pipe: Any) -> None:
    function = None
    while True:
        args = pipe.recv()
        start = time.perf_counter()
        try:
            function = function or make()
            result = function(*args)
        except Exception as error:
            result = RuntimeError(f"{type(error).__name__}: {error}")
        pipe.send((result, time.perf_counter() - start))
