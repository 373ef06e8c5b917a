"""Reads gettext's message catalogues: English messages and their translations.

A catalogue is a .mo or .po file. Its language is the name of the folder above LC_MESSAGES. Without such a folder it is
the language in the header of a .po file, or the file's own name (`de.po`). Of a message with
plural forms we read the singular and its first translation. We ignore contexts, and write whitespace as single spaces.

The data are the texts of programs, from menu entries to paragraphs of help, with `%s` and markup unchanged. They are
neither prose nor one translator's style. We leave out messages that are untranslated, fuzzy or obsolete; headers;
sources without a word; messages of over 500 characters, which are mostly tables of options; and translations equal to
their message (names, codes, untranslated text), which teach copying. Where programs translate a message differently,
we take the most frequent translation.
"""

import collections
import contextlib
import glob
import importlib
import os
import re
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Protocol

from lm import storage
from lm.config import DataConfig
from lm.data import files
from lm.data.pairs import Pair, one_line, translation_source
from lm.data.workers import ParallelMap
from lm.errors import InputError

SUFFIXES = (".mo", ".po")
_SYSTEM = "/usr/share/locale"
_LONGEST = 500  # characters of a message
_WORD = re.compile(r"[A-Za-z]{2}")
# "?pollution:Pol" and "Menu|Open" begin with a context that their translations lack.
_QUALIFIER = re.compile(r"\?[^:]*:|[^\s|]+\|")
_MNEMONIC = re.compile(r"[_&~](?=[^\W_])(?!(?:amp|lt|gt|quot|apos|nbsp);)")
_EAST_ASIAN_MNEMONIC = re.compile(r" ?[(（][_&~][A-Za-z0-9][)）]")


def pairs(config: DataConfig, parallel_map: ParallelMap = map) -> list[Pair]:
    """Returns translations from English to `data.languages`, each message once for a language.

    Args:
        config: `path` and `languages` are read. Without a path, the catalogues of this machine are.
        parallel_map: applied to the catalogues.

    Returns:
        Pairs in the order of the English messages. Messages of the same words form one group.

    Raises:
        InputError: a catalogue cannot be read, or a language has none.
    """
    _polib()
    wanted = dict.fromkeys(filter(None, (_tag(name) for name in config.languages.split(","))))
    paths = files.paths(config, SUFFIXES) if config.path else _of_this_machine()
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
    """Returns the words of a message. `Open File...` and `open file` must not be in different splits."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _of_this_machine() -> list[str]:
    """Returns the paths of the catalogues of the system and of the installed Python packages."""
    folders = [_SYSTEM, *(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))]
    patterns = [f"{glob.escape(folder)}/**/LC_MESSAGES/*{suffix}" for folder in folders for suffix in SUFFIXES]
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
    """Returns the language that a catalogue translates into."""
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
        with storage.open_file(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}; check the file.") from error


def _messages(path: str) -> list[tuple[str, str]]:
    """Returns the usable messages of a catalogue, in its order. Runs in a worker."""
    polib = _polib()
    with _local(path) as local:
        try:
            # A damaged file may raise any exception: the library follows the offsets in it.
            catalogue = polib.mofile(local) if path.endswith(".mo") else polib.pofile(local)
        except (UnicodeError, LookupError) as error:
            raise InputError(
                f"{path} is a catalogue with broken encoding ({error}); its text must be in the charset that it names."
            ) from error
        except Exception as error:
            said = str(error).replace(local, path)
            raise InputError(f"{path} cannot be read as a message catalogue ({said}); repair or remove it.") from error
    return list(_usable(catalogue))


@contextlib.contextmanager
def _local(path: str) -> Iterator[str]:
    """Yields the path of a file on this machine, or of a temporary copy of a remote one: polib opens local files."""
    if not storage.is_remote(path):
        yield path
        return
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(_content(path))
        copy.flush()
        yield copy.name


class _Message(Protocol):
    """What we read of polib's POEntry and MOEntry."""

    msgid: str
    msgstr: str
    msgstr_plural: dict[int, str]
    obsolete: bool
    flags: list[str] | None


def _usable(catalogue: Iterable[_Message]) -> Iterator[tuple[str, str]]:
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
    """Removes the mark of a menu entry's access key from both sides, if it certainly is one.

    `_Open` and `_Öffnen`: each side has one mark, and no word with a mark (such as `identifier_like_this`) is on both
    sides. `_Open` and `打开(_O)`: the East Asian form.
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


def _polib() -> ModuleType:
    try:
        return importlib.import_module("polib")
    except ImportError as error:
        raise InputError("data.source=gettext needs polib; pip install -e '.[corpora]'.") from error
