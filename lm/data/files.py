"""Finds the files of a corpus, local or in object storage, and reads their lines."""

import glob
import gzip
import itertools
import os
import zlib
from collections.abc import Iterator

from lm import storage
from lm.config import DataConfig
from lm.config.paths import expand
from lm.data.characters import is_blank, without_surrogates
from lm.errors import InputError

_GZIP = b"\x1f\x8b"  # how a file compressed with gzip begins


def paths(config: DataConfig, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the files that `data.path` names, sorted within each of its parts.

    Args:
        config: `path` and `source` are read.
        suffixes: of the files to take from a folder. The files that a name or a glob matches may have any suffix.

    Raises:
        InputError: a part matches nothing.
    """
    found: list[str] = []
    for part in filter(None, (part.strip() for part in config.path.split(","))):
        part = expand(part)
        if not (files := matching(part, suffixes)):
            raise InputError(
                f"{part!r} matches nothing that can be read as {config.source}; give a file, a glob, or a folder with "
                f"files ending in {', '.join(suffixes)}."
            )
        found += files
    return list(dict.fromkeys(found))


def named(config: DataConfig) -> str:
    """Returns what error messages call a corpus: `'corpus/*.txt', read as text,`. Its path may come from any flag."""
    return f"{config.path!r}, read as {config.source}," if config.path else f"data.source={config.source}"


def matching(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the files that a name, a glob or a folder stands for, sorted.

    Args:
        pattern: local or on object storage.
        suffixes: of the files to take from a folder.
    """
    if storage.is_remote(pattern):
        return storage.find(pattern, suffixes)
    if os.path.isdir(pattern):
        below = glob.glob(os.path.join(glob.escape(pattern), "**", "*"), recursive=True)
        return sorted(path for path in below if os.path.isfile(path) and path.endswith(suffixes))
    return [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))


def lines(path: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yields (byte offset, line) from the first line that begins at `start` or later to the end of the file."""
    try:
        with storage.open_file(path) as raw, gzip.open(raw, "rb") if path.endswith(".gz") else raw as file:
            offset = 0
            if start:
                file.seek(start - 1)
                offset = start - 1 + len(file.readline())
            for line in file:
                yield offset, line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
                offset += len(line)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}; check the file.") from error


def where(path: str, offset: int) -> str:
    """Returns `path, line N` for an error message. It reads the file up to that line."""
    before = itertools.takewhile(lambda line: line[0] < offset, lines(path))
    return f"{path}, line {1 + sum(1 for _ in before)}"


def decode(line: bytes, path: str, offset: int) -> str:
    """Returns the text of a line of a file.

    Raises:
        InputError: the line is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        if offset == 0 and line.startswith(_GZIP):
            raise InputError(f"{path} is compressed with gzip; give it a name that ends with .gz.") from error
        raise InputError(
            f"{where(path, offset)} is not UTF-8 (byte 0x{line[error.start]:02x}); convert the file, e.g. with iconv."
        ) from error


def clean(text: str) -> str:
    """Returns a text without surrounding whitespace, with lone surrogates replaced.

    A text of nothing but zero-width characters becomes empty.
    """
    text = without_surrogates(text).strip()
    return "" if is_blank(text) else text
