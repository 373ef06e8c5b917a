"""The date that is written is the date of the target, whatever the language."""

import datetime
import re
import sys

import pytest

from lm.data import dates
from lm.data.pairs import Pair
from lm.errors import InputError

pytest.importorskip("babel")
from babel import Locale
from babel.dates import format_date

COUNT = 20_000

# Written by hand, from how the languages write: independent of the library that makes the data.
KNOWN = {
    "de": ("Dienstag, 3. November 2026", "3. November 2026", "03.11.2026"),
    "en_GB": ("Tuesday, 3 November 2026", "03/11/2026"),
    "en_US": ("Tuesday, November 3, 2026", "Nov 3, 2026"),
    "fr": ("mardi 3 novembre 2026", "03/11/2026"),
    "ru": ("вторник, 3 ноября 2026 г.",),
    "ja": ("2026年11月3日火曜日", "2026/11/03"),
    "ko": ("2026년 11월 3일 화요일",),
    "zh_Hans": ("2026年11月3日星期二", "2026年11月3日", "2026/11/3"),
    "zh_Hant": ("2026年11月3日 星期二",),
    "ar": ("3/11/2026",),
}


@pytest.fixture(scope="module")
def found() -> list[Pair]:
    return dates.pairs(count=COUNT)


def test_sources_differ_and_every_target_is_a_day_in_iso_8601(found: list[Pair]):
    assert len({pair.source for pair in found}) == len(found)
    assert 0.95 * COUNT < len(found) <= 1.01 * COUNT
    for pair in found:
        date = datetime.date.fromisoformat(pair.target)
        assert date.isoformat() == pair.target
        assert 1900 <= date.year < 2100


def test_the_numbers_of_a_source_are_those_of_its_target(found: list[Pair]):
    """The year and the day stand in the source as digits, and so does a month without a name."""
    for pair in found:
        date = datetime.date.fromisoformat(pair.target)
        numbers = [int(number) for number in re.findall(r"\d+", pair.source)]
        assert date.year in numbers, pair
        assert date.day in numbers, pair
        assert len(numbers) < 3 or date.month in numbers, pair


def test_a_date_that_is_numbers_only_is_year_month_day_or_day_month_year(found: list[Pair]):
    orders = set()
    for pair in found:
        if match := re.fullmatch(r"(\d+)[-/.]\s?(\d+)[-/.]\s?(\d+)\.?", pair.source):
            first, month, last = map(int, match.groups())
            order = "ymd" if first >= 1900 else "dmy"
            year, day = (first, last) if order == "ymd" else (last, first)
            assert pair.target == datetime.date(year, month, day).isoformat(), pair
            orders.add(order)
    assert orders == {"ymd", "dmy"}


@pytest.mark.parametrize("locale", KNOWN)
def test_forms_known_by_hand_are_among_those_of_the_locale(locale: str):
    day = datetime.date(2026, 11, 3)
    written = {dates.written(day, form, locale) for form in dates.patterns(locale)}
    assert set(KNOWN[locale]) <= written


def test_no_two_locales_write_different_days_alike():
    """A day of every month and weekday: no abbreviation means one month here and another there."""
    meant: dict[str, set[datetime.date]] = {}
    for locale in dates.LOCALES:
        for form in dates.patterns(locale):
            for month in range(1, 13):
                for number in range(1, 8):
                    day = datetime.date(2026, month, number)
                    meant.setdefault(dates.written(day, form, locale), set()).add(day)
    assert {text: days for text, days in meant.items() if len(days) > 1} == {}


def test_year_of_two_digits_and_numeric_month_first_are_left_out():
    us = Locale.parse("en_US")
    short = us.date_formats["short"].pattern
    assert format_date(datetime.date(2026, 11, 3), short, locale=us) == "11/3/26"
    assert short not in dates.patterns("en_US")
    assert us.datetime_skeletons["yMd"].pattern == "M/d/y"
    assert "M/d/y" not in dates.patterns("en_US")


def test_the_data_is_the_same_every_time_and_names_20_languages(found: list[Pair]):
    assert dates.pairs(count=COUNT) == found
    assert len({locale.split("_")[0] for locale in dates.LOCALES}) >= 20
    assert all(dates.patterns(locale) for locale in dates.LOCALES)
    chinese = [pair for pair in found if re.search(r"星期|[周週][一二三四五六日]", pair.source)]
    assert len(chinese) > COUNT // 100


def test_without_babel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "babel.core", None)
    with pytest.raises(InputError, match=r"data.source=dates needs Babel; pip install -e '.\[corpora\]'"):
        dates.pairs(count=10)
