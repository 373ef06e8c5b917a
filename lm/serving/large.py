"""Answers of many numbers: up to which size they are given, and how the event loop stays free meanwhile."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from lm.serving.refusals import Refusal

MOST = 1 << 22  # numbers of an answer; they are some 80 MB of JSON
AT_ONCE = 1 << 15  # numbers that the event loop itself turns into JSON: some 15 ms

T = TypeVar("T")


def check(count: int, name: str, numbers: int) -> None:
    """Refuses a request whose answer would be too large, before anything of it waits.

    Args:
        count: of what is answered.
        name: what it is.
        numbers: that each one is answered with.

    Raises:
        Refusal: there are too many.
    """
    if count > (most := MOST // numbers):
        raise Refusal("too large", f"the request has {count} {name}; this server answers at most {most} at a time.")


async def apart(function: Callable[[], T], numbers: int) -> T:
    """Returns what a function returns, which is called in a thread if it works through many numbers."""
    return function() if numbers <= AT_ONCE else await asyncio.to_thread(function)
