"""What a launcher does, as a list that can be shown before it is carried out."""

import dataclasses
import shlex
import subprocess
from collections.abc import Iterable

from lm import storage
from lm.errors import InputError

END = "END_OF_INPUT"  # marks the end of a here-document; no script of ours has such a line


@dataclasses.dataclass(frozen=True)
class Write:
    """A file to be written, on this machine or in object storage.

    Attributes:
        shown: what a dry run says of the content; empty: the content itself.
    """

    path: str
    content: bytes
    shown: str = ""

    def __str__(self) -> str:
        if self.shown:
            return f"# write {self.path}: {self.shown}"
        return f"cat >{shlex.quote(self.path)} <<'{END}'\n{self.content.decode()}{END}"

    def carry_out(self) -> None:
        with storage.errors(self.path):
            path = storage.as_path(self.path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.content)


@dataclasses.dataclass(frozen=True)
class Command:
    """A program to be run, with `stdin` as its input; printed as the line of shell that does the same."""

    argv: tuple[str, ...]
    stdin: str = ""

    def __str__(self) -> str:
        line = shlex.join(self.argv)
        return f"{line} <<'{END}'\n{self.stdin}{END}" if self.stdin else line

    def carry_out(self) -> None:
        """Runs it to its end.

        Raises:
            InputError: when the program is not installed, or fails; it has said why on stderr.
        """
        if code := self.exit_code():
            raise InputError(f"{self.argv[0]} failed with exit code {code}; the command was: {shlex.join(self.argv)}")

    def exit_code(self) -> int:
        """Runs it to its end, its output going where ours goes."""
        return self._run().returncode

    def output(self) -> subprocess.CompletedProcess[str]:
        """Runs it to its end and keeps what it prints."""
        return self._run(capture_output=True)

    def _run(self, **options: bool) -> subprocess.CompletedProcess[str]:
        given = {"input": self.stdin} if self.stdin else {"stdin": subprocess.DEVNULL}
        try:
            return subprocess.run(self.argv, text=True, check=False, **given, **options)  # pyright: ignore
        except FileNotFoundError:
            raise InputError(f"{self.argv[0]} is not installed here; install it, or print with --dry_run.") from None


Step = Write | Command


def show(steps: Iterable[Step | str]) -> None:
    """Prints what would be done; a string is a comment."""
    for step in steps:
        print(f"# {step}" if isinstance(step, str) else step)


def carry_out(steps: Iterable[Step]) -> None:
    for step in steps:
        step.carry_out()
