"""Paths as users write them."""

import os
import re

from lm.errors import InputError


def expand(path: str) -> str:
    """Returns a path with `~` and environment variables replaced, as a shell does.

    A shell leaves them alone in `--flag=~/folder` and between quotes. A path that exists as it is written stays so.

    Raises:
        InputError: there is no such user or variable.
    """
    remote = "://" in path
    if not remote and os.path.exists(path):
        return path
    expanded = os.path.expandvars(path if remote else os.path.expanduser(path))
    if missing := re.match(r"~[^/]*", expanded) or re.search(r"\$([A-Za-z_]\w*|\{\w+\})", expanded):
        kind = "user" if missing[0].startswith("~") else "environment variable"
        raise InputError(f"{path!r} names {missing[0]}, but there is no such {kind}; correct the path, or set it.")
    return expanded


def split_step(path: str) -> tuple[str, str]:
    """Splits `WORKDIR/checkpoints/N` into working directory and step; the step of `WORKDIR` is empty."""
    match = re.fullmatch(r"(.+)/checkpoints/(\d+)/?", path)
    return (match[1], match[2]) if match else (path, "")


def named_models(checkpoints: str, flag: str = "--checkpoint", only: str = "") -> list[tuple[str, str]]:
    """Returns the name and path of each model of `PATH`, or of `NAME=PATH,NAME=PATH`.

    What stands before the first `=` is a name where it has only letters, digits, dots, - and _; otherwise the `=`
    belongs to the path. A model without a name is called by the last part of its path that is no step, or `only` if it
    is the only one and `only` is not empty. `~` and environment variables in paths are replaced.

    Raises:
        InputError: a name or a path is missing or unknown, or two models have one name.
    """
    found: dict[str, str] = {}
    for part in checkpoints.split(","):
        name, equals, path = part.partition("=")
        if not equals or not re.fullmatch(r"[\w.-]*", name):
            path = part
            last = split_step(path)[0].rstrip("/").rpartition("/")[2]
            name = only if only and path == checkpoints else last
        if not name or not path:
            raise InputError(f"{flag} has {part!r}; accepted: PATH, or NAME=PATH,NAME=PATH.")
        path = expand(path)
        if name in found:
            raise InputError(f"{flag} has two models named {name!r}; name them apart: NAME=PATH,NAME=PATH.")
        found[name] = path
    return list(found.items())
