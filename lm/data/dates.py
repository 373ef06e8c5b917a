"""Makes pairs of dates: written in many languages, and in ISO 8601.

    Dienstag, 3. November 2026 -> 2026-11-03        2026年11月3日 星期二 -> 2026-11-03

The days are those of 1900 to 2099. Each is written as Babel's Unicode CLDR defines it for one of the locales below, in
every form with day, month and a year of four digits: full, long, medium, short, and with abbreviated weekday or month.
The source does not name the locale.

There are no misspelt dates, relative dates, ranges, other calendars, years of two digits (1926 or 2026?), or numbers
with the month first (11/3/2026), which contradict the far more common 3/11/2026. Where two locales write different days
alike, neither is used.
"""

import datetime
import functools
import importlib
import re
from types import ModuleType

import numpy as np

from lm.data.pairs import Pair, one_line
from lm.data.workers import ParallelMap
from lm.errors import InputError

LOCALES = (
    *("ar", "bg", "ca", "cs", "da", "de", "el", "en_GB", "en_US", "es", "et", "fa", "fi", "fr", "he", "hi", "hu"),
    *("id", "it", "ja", "ko", "lt", "nb", "nl", "pl", "pt", "ro", "ru", "sk", "sl", "sv", "th", "tr", "uk", "vi"),
    *("zh_Hans", "zh_Hant"),
)
NUM_PAIRS = 200_000

_FIRST_DAY = datetime.date(1900, 1, 1)
_NUM_DAYS = (datetime.date(2100, 1, 1) - _FIRST_DAY).days
_SKELETONS = ("yMMMEd", "yMMMd", "yMMMMd", "yMd", "yMMMMEEEEd")
_QUOTED = re.compile(r"'[^']*'")
# Marks for the direction of the text. Nobody types them, and a tokenizer splits them into bytes.
_DIRECTION_MARKS = str.maketrans("", "", "\u061c\u200e\u200f")


def pairs(parallel_map: ParallelMap = map, count: int = NUM_PAIRS) -> list[Pair]:
    """Returns written dates and their ISO 8601 form, always the same ones in the same order.

    Args:
        parallel_map: applied to the locales.
        count: the number of pairs to draw, equally many in each locale. Fewer are returned: duplicates and ambiguous
            dates are left out.

    Returns:
        Pairs whose sources all differ.

    Raises:
        InputError: Babel is not installed.
    """
    _babel("core")
    share = -(-count // len(LOCALES))
    found = parallel_map(functools.partial(_written_in, count=share), LOCALES)
    targets: dict[str, set[str]] = {}
    for source, target in (pair for locale in found for pair in locale):
        targets.setdefault(source, set()).add(target)
    return [Pair(source, *meant) for source, meant in targets.items() if len(meant) == 1]


def patterns(locale: str) -> list[str]:
    """Returns the CLDR patterns of a locale that have a four-digit year, and the month first only as a name."""
    data = _babel("core").Locale.parse(locale)
    forms = [data.date_formats[name].pattern for name in ("full", "long", "medium", "short")]
    forms += [data.datetime_skeletons[name].pattern for name in _SKELETONS if name in data.datetime_skeletons]
    return [form for form in dict.fromkeys(forms) if _is_unambiguous(form)]


def _is_unambiguous(pattern: str) -> bool:
    letters = _QUOTED.sub("", pattern)
    if "yy" in letters:
        return False
    named_month = "MMM" in letters or "LLL" in letters
    return named_month or letters.index("d") < letters.index("M") or letters.index("y") < letters.index("M")


def written(date: datetime.date, pattern: str, locale: str) -> str:
    """Returns a day as a locale writes it, by a CLDR pattern."""
    text = _babel("dates").format_date(date, pattern, locale=locale)
    return one_line(text.translate(_DIRECTION_MARKS))


def _written_in(locale: str, count: int) -> list[tuple[str, str]]:
    """Returns random days in random forms of one locale: (as written, in ISO 8601)."""
    forms = patterns(locale)
    rng = np.random.default_rng(list(locale.encode()))
    chosen = zip(rng.integers(_NUM_DAYS, size=count), rng.integers(len(forms), size=count), strict=True)
    found = []
    for day, form in chosen:
        date = _FIRST_DAY + datetime.timedelta(days=int(day))
        found.append((written(date, forms[form], locale), date.isoformat()))
    return found


def _babel(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"babel.{module}")
    except ImportError as error:
        raise InputError("data.source=dates needs Babel; pip install -e '.[corpora]'.") from error
