"""The flags of launch/serve.py that follow `--` on the command line of a launcher."""

import ast
import difflib
import functools
import re
from collections.abc import Collection, Sequence

from lm import storage
from lm.cluster.snapshot import ROOT
from lm.config.paths import named_models, split_step
from lm.errors import InputError

DEADLINE = 60  # seconds: --deadline of launch/serve.py, unless the options say another


def check(options: Sequence[str], ours: Collection[str] = ()) -> None:
    """Refuses what launch/serve.py would refuse later, on every replica.

    Args:
        options: the words after `--`.
        ours: flags that the launcher sets itself.

    Raises:
        InputError: a word is no flag, or none of launch/serve.py.
    """
    accepted = _flags() - set(ours)
    for option in options:
        name = option.lstrip("-").partition("=")[0]
        if option.startswith("--") and accepted & {name, name.removeprefix("no")}:
            continue
        near = difflib.get_close_matches(name, accepted - {name})
        hint = (
            f"nearest: --{near[0]}" if near else f"accepted: --FLAG=VALUE of launch/serve.py except {', '.join(ours)}"
        )
        raise InputError(f"after -- there is {option!r}; {hint}.")


def require_runs(checkpoint: str) -> None:
    """Refuses models that are not there, before replicas look for them.

    Raises:
        InputError: a path of `PATH` or `NAME=PATH,NAME=PATH` holds no run, or not the checkpoint that it names.
    """
    for _, path in named_models(checkpoint):
        workdir, step = split_step(path.rstrip("/"))
        keys = ["config.json", *([f"checkpoints/{step}/_CHECKPOINT_METADATA"] if step else [])]
        for key, content in zip(keys, storage.read_keys(workdir, keys), strict=True):
            if content is None:
                raise InputError(f"--checkpoint is {path}, and there is no {workdir}/{key}; give a run that is there.")


def values(options: Sequence[str], name: str) -> list[str]:
    """Returns the values that options give a flag."""
    return [option.partition("=")[2] for option in options if option.startswith(f"--{name}=")]


def deadline(options: Sequence[str]) -> float:
    """Returns the seconds after which a server with these options gives a request up.

    Raises:
        InputError: the options say something that is no number.
    """
    given = values(options, "deadline")
    if given and not re.fullmatch(r"\d+(\.\d*)?|\.\d+", given[-1]):
        raise InputError(f"--deadline is {given[-1]!r}; accepted: a number of seconds.")
    return float(given[-1]) if given else DEADLINE


@functools.cache
def _flags() -> frozenset[str]:
    """Returns the names of the flags that the script defines. Importing it would define them here."""
    calls = (node for node in ast.walk(ast.parse((ROOT / "launch/serve.py").read_text())) if isinstance(node, ast.Call))
    defines = (
        node.args[0]
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr.lower().startswith("define_") and node.args
    )
    return frozenset(str(name.value) for name in defines if isinstance(name, ast.Constant))
