"""Finds fonts that have the characters of a text, so that a picture shows no empty boxes."""

import contextlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from matplotlib import font_manager

from lm.errors import InputError

_DEFAULT = "DejaVu Sans"  # comes with matplotlib
_PACKAGE, _FILE = "pylopdf_fonts_zh_cn", "NotoSansSC-Regular.otf"  # the [fonts] extra
_BOXES = "Last Resort"  # families whose names begin so draw a box for every character


def families(texts: Iterable[str]) -> list[str]:
    """Returns font families that together have every character of `texts`, in the order for matplotlib to try.

    Raises:
        InputError: no font of this machine has some character.
    """
    missing = {character for text in texts for character in text}
    missing -= _characters(_entries(_DEFAULT)[0])
    chosen = [_DEFAULT]
    if missing:
        _register()
    found = {entry.name: _characters(entry) for entry in _entries()} if missing else {}
    while missing:
        best = max(found, key=lambda name: len(missing & found[name]), default="")
        if not best or not missing & found[best]:
            shown = " ".join(sorted(missing)[:10])
            raise InputError(
                f"no font of this machine has {shown}; for Chinese: pip install -e '.[fonts]', or on Debian "
                "apt-get install fonts-wqy-microhei; for other scripts install a font that has them."
            )
        chosen.append(best)
        missing -= found[best]
    return chosen


def _entries(name: str = "") -> list[font_manager.FontEntry]:
    """Returns the upright font of usual weight of each family, or of the family `name` alone."""
    upright = [
        entry
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.variant == "normal" and entry.weight in (400, "normal", "regular", "book")
    ]
    found = {entry.name: entry for entry in reversed(upright) if not entry.name.startswith(_BOXES)}
    return [found[name]] if name else list(found.values())


def _register() -> None:
    """Registers fonts that were installed after matplotlib made its list of fonts, which it makes only once."""
    paths = set(font_manager.findSystemFonts())
    package = importlib.util.find_spec(_PACKAGE)
    if package and package.origin:
        paths.add(str(Path(package.origin).with_name(_FILE)))
    for path in sorted(paths - {entry.fname for entry in font_manager.fontManager.ttflist}):
        with contextlib.suppress(Exception):  # a broken file may raise anything; we skip it
            font_manager.fontManager.addfont(path)


def _characters(entry: font_manager.FontEntry) -> set[str]:
    try:
        font = font_manager.get_font(font_manager.FontPath(entry.fname, entry.index))
    except (OSError, RuntimeError):  # the file is gone, or is not a font
        return set()
    return set(map(chr, font.get_charmap()))
