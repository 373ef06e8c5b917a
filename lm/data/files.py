"""Files, local or on object storage: which there are, their lines, and where the one is that cannot be read."""

import glob
import gzip
import os
import zlib
from collections.abc import Iterator

from lm import storage
from lm.config import DataConfig
from lm.errors import InputError


def paths(config: DataConfig, suffixes: tuple[str, ...]) -> list[str]:
    """The files that `data.path` names, in sorted order within each of its parts.

    Args:
        config: `path` and `source` are read.
        suffixes: of the files to take from a folder; a file or a glob that is named is taken as it is.

    Raises:
        InputError: a part matches nothing.
    """
    found: list[str] = []
    for part in filter(None, (part.strip() for part in config.path.split(","))):
        part = os.path.expanduser(part)
        if storage.is_remote(part):
            files = storage.find(part, suffixes)
            wanted = f"a file, a glob, or a folder with files ending in {', '.join(suffixes)}"
        elif os.path.isdir(part):
            files = sorted(
                path
                for path in glob.glob(os.path.join(glob.escape(part), "**", "*"), recursive=True)
                if os.path.isfile(path) and path.endswith(suffixes)
            )
            wanted = f"a file ending in {', '.join(suffixes)}"
        else:
            files = [part] if os.path.isfile(part) else sorted(filter(os.path.isfile, glob.glob(part, recursive=True)))
            wanted = "a file, folder or glob"
        if not files:
            raise InputError(f"data.path={part!r} matches nothing; data.source={config.source} needs {wanted}.")
        found += files
    return list(dict.fromkeys(found))


def lines(path: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Lines with their byte offset, from the first that begins at `start` or later to the end of the file."""
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
    """`path, line N` for an error message; reads the file up to there."""
    number = 1 + sum(1 for line_offset, _ in lines(path) if line_offset < offset)
    return f"{path}, line {number}"


def decode(line: bytes, path: str, offset: int) -> str:
    """The text of a line of a file.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where(path, offset)} is not UTF-8 (byte 0x{line[error.start]:02x}); convert the file, e.g. with iconv."
        ) from error


def clean(text: str) -> str:
    """Without surrounding whitespace and without lone surrogates, which JSON can spell but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode().strip()
