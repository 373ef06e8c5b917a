"""Messages of catalogues become translations, and what is no translation stays out."""

import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from lm.config import DataConfig
from lm.data import catalogues, corpus, prepare
from lm.data.pairs import Pair
from lm.data.store import read_pairs
from lm.errors import InputError

pytest.importorskip("polib")

HEADER = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=%s\\n"\n'
MESSAGES = """
msgid "Open the file"
msgstr "Die Datei öffnen"

#, fuzzy
msgid "A guess"
msgstr "Eine Ahnung"

msgid "Nobody did this"
msgstr ""

msgid "One file"
msgid_plural "%d files"
msgstr[0] "Eine Datei"
msgstr[1] "%d Dateien"

msgctxt "menu"
msgid "_Save"
msgstr "_Speichern"

msgid "&Print..."
msgstr "&Drucken …"

msgid "set_name and get_name"
msgstr "set_name und get_name"

msgid "the set_name"
msgstr "das set_name"

msgid "Tom &amp; Jerry"
msgstr "Tom &amp; Jerry!"

msgid "PNG"
msgstr "PNG"

msgid "%d : %d"
msgstr "%d zu %d"

msgid ""
"Two\\n"
"  lines"
msgstr "Zwei\\nZeilen"

#~ msgid "Obsolete"
#~ msgstr "Veraltet"
"""
GERMAN = {
    "Open the file": "Die Datei öffnen",
    "One file": "Eine Datei",
    "Save": "Speichern",
    "Print...": "Drucken …",
    "set_name and get_name": "set_name und get_name",
    "the set_name": "das set_name",
    "Tom &amp; Jerry": "Tom &amp; Jerry!",
    "Two lines": "Zwei Zeilen",
}


def config(path: object, languages: str = "de", **fields) -> DataConfig:
    return DataConfig(source="gettext", path=str(path), languages=languages, **fields)


def translations(path: object, languages: str = "de") -> dict[str, str]:
    """Target by source, without the language where there is one only."""
    found: list[Any] = list(corpus.documents(config(path, languages)))
    assert all(isinstance(pair, Pair) for pair in found)
    prefix = f"translate to {languages}: "
    return {pair.source.removeprefix(prefix): pair.target for pair in found}


def write_mo(path: Path, messages: dict[str, str], charset: str = "UTF-8") -> None:
    """A compiled catalogue, as the GNU gettext manual lays it out (section "The Format of GNU MO Files")."""
    entries = {"": f"Content-Type: text/plain; charset={charset}\n", **messages}
    encoded = sorted((key.encode(charset), value.encode(charset)) for key, value in entries.items())
    offset = 28 + 16 * len(encoded)
    tables, strings = [b"", b""], b""
    for column in range(2):
        for entry in encoded:
            tables[column] += struct.pack("<II", len(entry[column]), offset + len(strings))
            strings += entry[column] + b"\0"
    counts = struct.pack("<7I", 0x950412DE, 0, len(encoded), 28, 28 + 8 * len(encoded), 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(counts + tables[0] + tables[1] + strings)


def test_po_gives_what_is_translated(tmp_path: Path):
    (tmp_path / "de.po").write_text(HEADER % "UTF-8" + MESSAGES)
    assert translations(tmp_path) == GERMAN


def test_mo_gives_contexts_and_singulars(tmp_path: Path):
    write_mo(
        tmp_path / "de/LC_MESSAGES/a.mo",
        {"menu\x04Save as": "Speichern unter", "One file\0%d files": "Eine Datei\0%d Dateien", "_Undo": "_Rückgängig"},
    )
    assert translations(tmp_path) == {"Save as": "Speichern unter", "One file": "Eine Datei", "Undo": "Rückgängig"}


def test_chinese_menu_entries_lose_their_key_in_brackets(tmp_path: Path):
    write_mo(
        tmp_path / "zh_CN/LC_MESSAGES/a.mo", {"_Open": "打开(_O)", "&Close...": "关闭（&C）…", "~Redo": "重做 (~R)"}
    )
    assert translations(tmp_path, "zh_CN") == {"Open": "打开", "Close...": "关闭…", "Redo": "重做"}


@pytest.mark.parametrize("charset", ["ISO-8859-1", "UTF-8", "GB2312"])
def test_catalogues_are_read_in_their_charset(tmp_path: Path, charset: str):
    target = "中文字" if charset == "GB2312" else "Öl und Käse"
    (tmp_path / "de.po").write_bytes((HEADER % charset + f'\nmsgid "oil"\nmsgstr "{target}"\n').encode(charset))
    write_mo(tmp_path / "de/LC_MESSAGES/a.mo", {"cheese": target}, charset)
    assert translations(tmp_path) == {"oil": target, "cheese": target}


def test_the_language_is_the_folder_else_the_header_else_the_name(tmp_path: Path):
    message = '\nmsgid "{0} word"\nmsgstr "translation {0}"\n'
    for name, language in {"fr/LC_MESSAGES/de.po": "es", "messages.po": "pt-BR", "it.po": ""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        header = HEADER % "UTF-8" + (f'"Language: {language}\\n"\n' if language else "")
        (tmp_path / name).write_text(header + message.format(name))
    for language, name in {"fr": "fr/LC_MESSAGES/de.po", "pt_BR": "messages.po", "it": "it.po"}.items():
        assert translations(tmp_path, language) == {f"{name} word": f"translation {name}"}
    with pytest.raises(InputError, match=r"data.languages has de, xx, for which .*; there is: fr, it, pt_BR"):
        translations(tmp_path, "de,fr,xx")


def test_a_message_has_one_translation_the_most_frequent(tmp_path: Path):
    for name, target in {"a": "Vorgabe", "b": "Standard", "c": "Standard"}.items():
        write_mo(tmp_path / f"de/LC_MESSAGES/{name}.mo", {"Default value": target})
    assert translations(tmp_path) == {"Default value": "Standard"}


def test_messages_of_the_same_words_are_in_one_split_for_all_languages(tmp_path: Path):
    messages = {f"Message number {i}": f"{i}. Meldung" for i in range(300)}
    messages |= {f"message, number {i}:": f"{i}. Meldung:" for i in range(300)}
    for language in ("de", "zh_CN"):
        write_mo(tmp_path / language / "LC_MESSAGES/a.mo", messages)
    options = config(tmp_path, "de,zh_CN", vocab_size=500, heldout_fraction=0.2)
    store = prepare.prepare(options, str(tmp_path / "store"), num_workers=1, progress=False)
    train, heldout = (
        [re.findall(r"^translate to (\w+): (.*)$", pair.source)[0] for pair in read_pairs(store, split)]
        for split in (store.train, store.heldout)
    )
    assert len(train) + len(heldout) == 1200
    assert 120 < len(heldout) < 400
    words = [{re.sub(r"\W+", " ", text.lower()).strip() for _, text in split} for split in (train, heldout)]
    assert not words[0] & words[1]
    assert {text for language, text in heldout if language == "de"} == {
        text for language, text in heldout if language == "zh_CN"
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("de.po", (HEADER % "UTF-8").encode() + b'\nmsgid "a word"\nmsgstr "\xff\xfe"\n', "with broken encoding"),
        ("de.po", (HEADER % "klingon").encode() + b'\nmsgid "a word"\nmsgstr "\xf6"\n', "with broken encoding"),
        ("de.po", b'msgid "a word"\nno keyword\n', "cannot be read as a message catalogue"),
        ("de.mo", b"no catalogue at all", "cannot be read as a message catalogue"),
        ("de.mo", b"", "cannot be read as a message catalogue"),
        ("de.mo", struct.pack("<7I", 0x950412DE, 0, 9, 28, 99, 0, 0), "cannot be read as a message catalogue"),
    ],
)
def test_a_broken_catalogue_is_named_in_one_line(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"/{name} .*{message}") as error:
        translations(tmp_path)
    assert "\n" not in str(error.value)


def test_a_compiled_catalogue_with_broken_encoding_is_named(tmp_path: Path):
    path = tmp_path / "de.mo"
    write_mo(path, {"a word": "ein Wört"})
    path.write_bytes(path.read_bytes().replace("ö".encode(), b"\xff\xff"))
    with pytest.raises(InputError, match=r"de.mo is a catalogue with broken encoding"):
        translations(tmp_path)


def test_a_broken_catalogue_of_another_language_does_no_harm(tmp_path: Path):
    write_mo(tmp_path / "de/LC_MESSAGES/a.mo", {"a word": "ein Wort"})
    (tmp_path / "fr/LC_MESSAGES").mkdir(parents=True)
    (tmp_path / "fr/LC_MESSAGES/a.mo").write_bytes(b"broken")
    assert translations(tmp_path) == {"a word": "ein Wort"}


def test_without_a_path_it_is_the_catalogues_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_mo(tmp_path / "share/de/LC_MESSAGES/a.mo", {"a word": "ein Wort"})
    write_mo(tmp_path / "site/package/locale/de/LC_MESSAGES/b.mo", {"two words": "zwei Wörter"})
    write_mo(tmp_path / "site/package/de.mo", {"elsewhere": "anderswo"})
    monkeypatch.setattr(catalogues, "_SYSTEM", str(tmp_path / "share"))
    monkeypatch.setattr(
        catalogues.sysconfig, "get_paths", lambda: dict.fromkeys(("purelib", "platlib"), f"{tmp_path}/site")
    )
    assert translations("") == {"a word": "ein Wort", "two words": "zwei Wörter"}
    monkeypatch.setattr(catalogues, "_SYSTEM", str(tmp_path / "nothing"))
    monkeypatch.setattr(catalogues.sysconfig, "get_paths", lambda: dict.fromkeys(("purelib", "platlib"), "/nowhere"))
    with pytest.raises(InputError, match=r"no message catalogues; get some with launch/catalogues.sh"):
        translations("")


def test_without_polib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "polib", None)
    with pytest.raises(InputError, match=r"data.source=gettext needs polib; pip install -e '.\[corpora\]'"):
        translations(tmp_path)
