"""Ctrl-C: the first one ends a program in order, the second one at once, also while a compiler runs."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_INTERRUPTED = 130  # 128 + SIGINT
_QUICK = 1.0  # seconds that an orderly end may take without a word


@contextlib.contextmanager
def handled(
    first: Callable[[], None],
    again: Callable[[], None],
    handler: Callable[[int, FrameType | None], object] = lambda *_: None,
) -> Iterator[None]:
    """Calls `first` at the first Ctrl-C inside the block, and `again` at each later one, from a thread.

    Python handles a signal between two of its own instructions, and a compilation is one instruction of minutes. So
    the operating system's handler writes each signal to a pipe, from which the thread reads. Blocks may be nested: the
    innermost one gets the signals. Only the main thread may enter one.

    Args:
        first, again: must not raise.
        handler: what Python calls in the main thread, as soon as it can.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.signal(signal.SIGINT, handler)
    fd_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reading, first, again), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        signal.signal(signal.SIGINT, before)
        os.close(writing)
        thread.join()
        os.close(reading)


def _listen(reading: int, first: Callable[[], None], again: Callable[[], None]) -> None:
    asked = False
    while received := os.read(reading, 1):
        if received[0] == signal.SIGINT:
            (again if asked else first)()
            asked = True


@contextlib.contextmanager
def raised(last_words: str = "interrupted") -> Iterator[None]:
    """Raises KeyboardInterrupt in the block at the first Ctrl-C, and ends the process at the second.

    A block that goes on for more than a second after the first one is reported. A first Ctrl-C during an import ends
    the process at once: a module in C may print the exception and raise another one. Where Ctrl-C is ignored, as a
    shell arranges it for its background jobs, it stays ignored.

    Args:
        last_words: what is said where the process ends at once.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        if _imports(frame):
            say(last_words)
            os._exit(EXIT_INTERRUPTED)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    text = "interrupted: this ends when the running computation is done; Ctrl-C again ends at once"
    late = threading.Timer(_QUICK, say, [text])
    late.daemon = True
    try:
        with handled(late.start, _end_at_once, handler):
            yield
    finally:
        late.cancel()


def _imports(frame: FrameType | None) -> bool:
    """Returns whether a stack is in the middle of an import."""
    while frame is not None and "importlib._bootstrap>" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _end_at_once() -> None:
    say("interrupted again: ended at once")
    os._exit(EXIT_INTERRUPTED)


def say(text: str) -> None:
    """Prints a line on stderr."""
    print(text, file=sys.stderr, flush=True)
