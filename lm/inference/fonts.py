"""Fonts that have the characters of a text, so that a picture never shows empty boxes for them."""

import contextlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from matplotlib import font_manager

from lm.errors import InputError

_DEFAULT = "DejaVu Sans"  # comes with matplotlib
_PACKAGE, _FILE = "pylopdf_fonts_zh_cn", "NotoSansSC-Regular.otf"  # the [fonts] extra
_BOXES = "Last Resort"  # families of these names draw a box for every character


def families(texts: Iterable[str]) -> list[str]:
    """Font families that have every character of `texts` between them, for matplotlib to try in this order.

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
                f"no font of this machine has {shown}; for Chinese: pip install -e .[fonts], or on Debian "
                "apt-get install fonts-wqy-microhei; for other scripts a font that has them."
            )
        chosen.append(best)
        missing -= found[best]
    return chosen


def _entries(name: str = "") -> list[font_manager.FontEntry]:
    """The upright fonts of usual weight, one for each family, or of one family."""
    upright = [
        entry
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.variant == "normal" and entry.weight in (400, "normal", "regular", "book")
    ]
    found = {entry.name: entry for entry in reversed(upright) if not entry.name.startswith(_BOXES)}
    return [found[name]] if name else list(found.values())


def _register() -> None:
    """Makes known what was installed since matplotlib listed the fonts, which it does once."""
    paths = set(font_manager.findSystemFonts())
    package = importlib.util.find_spec(_PACKAGE)
    if package and package.origin:
        paths.add(str(Path(package.origin).with_name(_FILE)))
    for path in sorted(paths - {entry.fname for entry in font_manager.fontManager.ttflist}):
        with contextlib.suppress(Exception):  # whatever a broken file raises, it is no font for us
            font_manager.fontManager.addfont(path)


def _characters(entry: font_manager.FontEntry) -> set[str]:
    try:
        font = font_manager.get_font(font_manager.FontPath(entry.fname, entry.index))
    except (OSError, RuntimeError):  # listed but gone, or not what it seemed
        return set()
    return set(map(chr, font.get_charmap()))
