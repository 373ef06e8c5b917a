"""The requests of a day, from a file or from a rate."""

import csv
import dataclasses
import math
import re

import numpy as np

from lm.errors import InputError

DAY = 86400.0
_STEP = 60.0  # seconds in which a rate is taken as constant


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Requests in the order of their arrival.

    Attributes:
        arrivals: seconds.
        tokens: what each request costs: tokens to read, or for a model that writes, to write.
    """

    arrivals: np.ndarray
    tokens: np.ndarray


def read_trace(path: str, tokens: int, seed: int = 0) -> Traffic:
    """Reads a CSV file with a header: `time,tokens`, a request a line; or `time,rate`, requests a second from then on.

    Times are seconds, from any moment on, such as Unix times. The day begins at the first one.

    Args:
        tokens: mean of a request's tokens, where the file has none.

    Raises:
        InputError: there is no such file, or it has other columns, or a line of it has no such numbers.
    """
    try:
        with open(path, newline="") as file:
            lines = list(csv.reader(file))
        columns = [name.strip() for name in lines[0]] if lines else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--trace is {path!r}, which cannot be read ({error}); give a CSV file.") from None
    if sorted(columns) not in (["time", "tokens"], ["rate", "time"]):
        raise InputError(f"--trace is {path!r} with the columns {columns}; accepted: time,tokens or time,rate.")
    values = _numbers(path, lines, columns.index("time"))
    times, others = values[:, columns.index("time")], values[:, 1 - columns.index("time")]
    times = times - times[0]
    if "tokens" in columns:
        return Traffic(times, np.maximum(1, others).astype(int))
    if len(times) < 2:
        raise InputError(f"--trace is {path!r} with one line; the last line of a file of rates says when they end.")
    return _poisson(times, others, tokens, seed)


def _numbers(path: str, lines: list[list[str]], time: int) -> np.ndarray:
    """Returns the two numbers of each line below the header, whose column `time` rises.

    Raises:
        InputError: a line is another; it is named.
    """
    values, last = [], -math.inf
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        try:
            pair = [float(cell) for cell in line]
        except ValueError:
            pair = []
        if len(pair) != 2 or not all(map(math.isfinite, pair)) or pair[time] < last or pair[1 - time] < 0:
            raise InputError(
                f"--trace is {path!r}, whose line {number} is {','.join(line)!r}; accepted: two numbers a line, with "
                "rising times, and no tokens or rate below 0."
            )
        values.append(pair)
        last = pair[time]
    if not values:
        raise InputError(f"--trace is {path!r}, which has no line below its header; give a line for each request.")
    return np.array(values)


def from_rate(text: str, tokens: int, seed: int = 0) -> Traffic:
    """Returns a day of `--rate`: `20` requests a second, or `2:20`, from the quietest to the busiest hour and back.

    Raises:
        InputError: it is neither.
    """
    if not (match := re.fullmatch(r"(\d+(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?", text)):
        raise InputError(f"--rate is {text!r}; accepted: requests a second, such as 20, or 2:20 for night and day.")
    low = float(match[1])
    high = float(match[2] or low)
    times = np.arange(0.0, DAY + _STEP, _STEP)
    return _poisson(times, low + (high - low) * 0.5 * (1 - np.cos(2 * np.pi * times / DAY)), tokens, seed)


def _poisson(times: np.ndarray, rates: np.ndarray, tokens: int, seed: int) -> Traffic:
    """Draws arrivals of a Poisson process whose rate changes at given times; tokens are exponential, at least 1."""
    random = np.random.default_rng(seed)
    seconds = np.diff(times)
    counts = random.poisson(rates[:-1] * seconds)
    arrivals = np.repeat(times[:-1], counts) + np.repeat(seconds, counts) * random.random(counts.sum())
    arrivals.sort()
    return Traffic(arrivals, 1 + random.exponential(max(tokens - 1, 1e-9), len(arrivals)).round().astype(int))
