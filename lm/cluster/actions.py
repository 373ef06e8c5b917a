"""The actions of a launcher, which can be printed before they are carried out."""

import dataclasses
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable

from lm import storage
from lm.errors import InputError

END = "END_OF_INPUT"  # ends a here-document; no script of ours has this line


@dataclasses.dataclass(frozen=True)
class Write:
    """Writes a file, on this machine or in object storage.

    Attributes:
        shown: what a dry run prints instead of the content; empty: the content itself.
    """

    path: str
    content: bytes
    shown: str = ""

    def __str__(self) -> str:
        if self.shown:
            return f"# write {self.path}: {self.shown}"
        return f"cat >{shlex.quote(self.path)} <<'{END}'\n{self.content.decode()}{END}"

    def carry_out(self) -> None:
        folder, _, name = self.path.rpartition("/")
        storage.write_key(folder or ("/" if self.path.startswith("/") else "."), name, self.content)


@dataclasses.dataclass(frozen=True)
class Command:
    """Runs a program with `stdin` as its input. Printed, it is the line of shell that does the same.

    Attributes:
        environment: variables that are set for it.
    """

    argv: tuple[str, ...]
    stdin: str = ""
    environment: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        line = " ".join([*(f"{name}={shlex.quote(value)}" for name, value in self.environment), shlex.join(self.argv)])
        return f"{line} <<'{END}'\n{self.stdin}{END}" if self.stdin else line

    def carry_out(self) -> None:
        """Runs the program to its end.

        Raises:
            InputError: the program is not installed, or it failed; its own message is on stderr.
        """
        if code := self.exit_code():
            raise InputError(f"{self.argv[0]} failed with exit code {code}; the command was: {shlex.join(self.argv)}")

    def exit_code(self) -> int:
        """Runs the program to its end and returns its exit code. It inherits our stdout and stderr."""
        return self._run().returncode

    def output(self) -> subprocess.CompletedProcess[str]:
        """Runs the program to its end and returns what it printed."""
        return self._run(capture_output=True)

    def _run(self, capture_output: bool = False) -> subprocess.CompletedProcess[str]:
        stdin = None if self.stdin else subprocess.DEVNULL
        environment = {**os.environ, **dict(self.environment)}
        how = {"input": self.stdin or None, "stdin": stdin, "capture_output": capture_output, "env": environment}
        try:
            return subprocess.run(self.argv, encoding="utf-8", errors="replace", check=False, **how)
        except FileNotFoundError:
            require(self.argv[0])
            raise  # it is installed, but what interprets it is not


Action = Write | Command


def show(actions: Iterable[Action | str]) -> None:
    """Prints actions; a string is printed as a comment."""
    for action in actions:
        print(f"# {action}" if isinstance(action, str) else action)


def check(actions: Iterable[Action], workdir: str) -> None:
    """Checks that the programs of these actions are installed and their cluster answers, then the workdir's store.

    Raises:
        InputError: a program is missing, kubectl reaches no cluster, or the store refuses or does not answer.
    """
    commands = [action for action in actions if isinstance(action, Command)]
    for command in commands:
        require(command.argv[0])
    for command in [each for each in commands if each.argv[0] == "kubectl"][:1]:
        _require_cluster(command)
    storage.reach(workdir)


def _require_cluster(command: Command) -> None:
    """Asks the cluster of a call of kubectl once. Without one, kubectl itself prints a line for every object."""
    context = command.argv[1:3] if command.argv[1] == "--context" else ()
    asked = Command(("kubectl", *context, "get", "--raw=/version", "--request-timeout=20s")).output()
    if asked.returncode:
        why = (asked.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise InputError(
            f"kubectl reaches no cluster ({why}); choose one with --context or kubectl config use-context, or log in."
        )


_PACKAGES = {"serve": "Ray with pip install -e '.[ray,serve]'", "ray": "it with pip install -e '.[ray,serve]'"}


def require(program: str) -> None:
    """Raises InputError if a program is not installed here."""
    if shutil.which(program) is None:
        how = _PACKAGES.get(program, "it")
        raise InputError(f"{program} is not installed here; install {how}, or print with --dry_run.")


def carry_out(actions: Iterable[Action]) -> None:
    for action in actions:
        action.carry_out()
