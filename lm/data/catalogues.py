"""Message catalogues of gettext: English messages and their translations.

A catalogue is a .mo or .po file, its language the name of the folder above LC_MESSAGES; a .po elsewhere says it
in its header or by its name (`de.po`). What is read of a message: its singular and the first plural form, without
context, whitespace as single spaces.

What the data is: what programs say, from menu entries to paragraphs of help, with `%s` and markup as they stand.
What it is not: prose, or one translator's style. Left out are messages that are untranslated, fuzzy or obsolete;
headers; sources without a word; messages of over 500 characters, most of them tables of options; and translations
equal to their message: names, codes and what nobody translated yet, all of which teach to copy. Where programs
translate a message differently, the most frequent translation is taken.
"""

import collections
import glob
import importlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lm.config import DataConfig
from lm.data import files
from lm.data.pairs import Pair, one_line, translation_source
from lm.errors import InputError

_SUFFIXES = (".mo", ".po")
_SYSTEM = "/usr/share/locale"
_LONGEST = 500  # characters of a message
_WORD = re.compile(r"[A-Za-z]{2}")
# "?pollution:Pol" and "Menu|Open" name a context that the translation leaves out.
_QUALIFIER = re.compile(r"\?[^:]*:|[^\s|]+\|")
_MNEMONIC = re.compile(r"[_&~](?=[^\W_])(?!(?:amp|lt|gt|quot|apos|nbsp);)")
_EAST_ASIAN_MNEMONIC = re.compile(r" ?[(（][_&~][A-Za-z0-9][)）]")


def pairs(config: DataConfig, parallel_map: Callable[..., Iterable[Any]] = map) -> list[Pair]:
    """Translations from English to `data.languages`, each message once for a language.

    Args:
        config: `path` and `languages` are read; without a path it is the catalogues of this machine.
        parallel_map: an ordered `map`; each catalogue is a unit of work.

    Returns:
        Pairs in the order of the English messages. Messages of the same words are one group.

    Raises:
        InputError: a catalogue cannot be read, or a language has none.
    """
    _polib()
    wanted = dict.fromkeys(filter(None, (_tag(name) for name in config.languages.split(","))))
    paths = files.paths(config, _SUFFIXES) if config.path else _of_this_machine()
    languages = {path: _language(path) for path in paths}
    known = {language for language in languages.values() if language}
    if missing := [language for language in wanted if language not in known]:
        raise InputError(
            f"data.languages has {', '.join(missing)}, for which there is no catalogue in "
            f"{config.path or 'this machine'!r}; there is: {', '.join(sorted(known)) or 'none'}."
        )
    chosen = [path for path in paths if languages[path] in wanted]
    votes: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for path, messages in zip(chosen, parallel_map(_messages, chosen), strict=True):
        for text, translation in messages:
            votes[text, languages[path]][translation] += 1
    return [
        Pair(
            translation_source(text, language),
            max(found, key=lambda translation: (found[translation], translation)),
            _group(text),
        )
        for (text, language), found in sorted(votes.items())
    ]


def _group(text: str) -> str:
    """`Open File...` and `open file` are too much alike for one to be learnt and the other to be asked."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _of_this_machine() -> list[str]:
    """Catalogues of the system and of the installed Python packages."""
    folders = [_SYSTEM, *(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))]
    patterns = [f"{glob.escape(folder)}/**/LC_MESSAGES/*{suffix}" for folder in folders for suffix in _SUFFIXES]
    found = sorted({os.path.realpath(path) for pattern in patterns for path in glob.glob(pattern, recursive=True)})
    if not found:
        raise InputError(
            "this machine has no message catalogues; get some with launch/catalogues.sh and set data.path to their "
            "folder."
        )
    return found


def _tag(name: str) -> str:
    return name.strip().replace("-", "_")


def _language(path: str) -> str:
    """The language that a catalogue translates into."""
    folders = os.path.normpath(path).split(os.sep)
    if "LC_MESSAGES" in folders[1:-1]:
        return _tag(folders[folders.index("LC_MESSAGES") - 1])
    if path.endswith(".po"):
        header = re.search(rb'^"Language: *([\w@.-]+)\\n"', _content(path)[:10_000], re.MULTILINE)
        if header:
            return _tag(header[1].decode())
    return _tag(os.path.splitext(os.path.basename(path))[0])


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}; check the file.") from error


def _messages(path: str) -> list[tuple[str, str]]:
    """The usable messages of a catalogue, in its order; runs in a worker."""
    polib = _polib()
    try:
        # A file that is in no shape fails wherever its numbers lead the library.
        catalogue = polib.mofile(path) if path.endswith(".mo") else polib.pofile(path)
    except (UnicodeError, LookupError) as error:
        raise InputError(
            f"{path} is a catalogue with broken encoding ({error}); its text must be in the charset that it names."
        ) from error
    except Exception as error:
        raise InputError(f"{path} cannot be read as a message catalogue ({error}); repair or remove it.") from error
    return list(_usable(catalogue))


def _usable(catalogue: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for message in catalogue:
        if message.obsolete or "fuzzy" in (message.flags or ()) or not message.msgid:
            continue
        text = one_line(message.msgid)
        translation = one_line(message.msgstr or message.msgstr_plural.get(0, ""))
        if len(text) > _LONGEST or len(translation) > _LONGEST or _QUALIFIER.match(text):
            continue
        text, translation = _without_mnemonic(text, translation)
        if translation and text != translation and _WORD.search(text):
            yield text, translation


def _without_mnemonic(text: str, translation: str) -> tuple[str, str]:
    """Removes the mark of the key that opens a menu entry, where it is surely one.

    `_Open` and `_Öffnen`: each side has one mark, and no word with the mark (an `identifier_like_this`) is on
    both sides. `_Open` and `打开(_O)`: the East Asian way to write it.
    """
    if len(_MNEMONIC.findall(text)) != 1:
        return text, translation
    without, removed = _EAST_ASIAN_MNEMONIC.subn("", translation)
    if removed == 1:
        return _MNEMONIC.sub("", text), without
    if len(_MNEMONIC.findall(translation)) == 1:
        marked = [{word for word in side.split() if _MNEMONIC.search(word)} for side in (text, translation)]
        if not marked[0] & marked[1]:
            return _MNEMONIC.sub("", text), _MNEMONIC.sub("", translation)
    return text, translation


def _polib() -> Any:
    try:
        return importlib.import_module("polib")
    except ImportError as error:
        raise InputError("data.source=gettext needs polib; pip install 'lm[corpora]'.") from error
