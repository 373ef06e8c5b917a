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
