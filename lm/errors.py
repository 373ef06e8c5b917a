"""What the user is told when the input is wrong."""

import difflib
import re
from collections.abc import Collection


class InputError(Exception):
    """The user's input is wrong: one line that says what was given, what is accepted, what to do."""


def nearest(name: str, known: Collection[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Returns the names that may be meant: of the same words in another order, then those that are spelled alike.

    Args:
        name: what was given.
        known: what is accepted.
        count: most names to return.
        cutoff: how much alike the spelling has to be, up to 1.
    """
    words = sorted(re.split(r"[._-]", name))
    turned = [each for each in known if sorted(re.split(r"[._-]", each)) == words]
    return list(dict.fromkeys([*turned, *difflib.get_close_matches(name, known, count, cutoff)]))[:count]
