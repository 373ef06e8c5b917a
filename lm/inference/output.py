"""Where launch/predict.py writes its answers: a file of its own, or stdout."""

import contextlib
import fcntl
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import IO

from absl import flags

from lm import cli
from lm.errors import InputError
from lm.inference.requests import Answer


class Output:
    """Writes answers, a line of JSON each, and counts them. What a file had before stays until the first of them."""

    def __init__(self, file: IO[str], is_file: bool):
        self._file, self._is_old = file, is_file
        self.answers = self.errors = 0

    def write(self, answers: Iterable[Answer]) -> None:
        if self._is_old:
            self._file.truncate(0)
            self._is_old = False
        for answer in answers:
            self._file.write(json.dumps(answer, ensure_ascii=False) + "\n")
            self.answers += 1
            self.errors += "error" in answer
        self._file.flush()


@contextlib.contextmanager
def opened(output: flags.FlagHolder[str], given: flags.FlagHolder[str]) -> Iterator[Output]:
    """Yields what writes to the file that a flag names; - is stdout. Says at the end what a file got.

    Args:
        output: names the file.
        given: names the file of the requests.

    Raises:
        InputError: both are one file, another command writes to it, or it cannot be opened.
    """
    with contextlib.suppress(OSError):
        if os.path.samefile(output.value, given.value):
            raise InputError(
                f"--{output.name} and --{given.name} are both {given.value!r}; give another --{output.name}."
            )
    with cli.opened(output, "a", sys.stdout) as file:
        is_file = file is not sys.stdout and stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        if is_file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another command writes to --{output.name}={output.value}; give another.") from None
            except OSError:  # some file systems have no locks
                pass
        made = Output(file, is_file)
        yield made
        made.write(())  # where there was no request
    if is_file:
        print(f"{output.value}: {made.answers:,} answers, {made.errors:,} of them errors", file=sys.stderr)
