"""The flags of launch/serve.py that follow `--` on the command line of a launcher."""

import ast
import difflib
import functools
from collections.abc import Collection, Sequence

from lm.cluster.snapshot import ROOT
from lm.errors import InputError


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
