"""Readers: files become documents.

A corpus is a list of `Shard`s in a fixed order, each readable by itself in any process. A document
is a `str`; where one ends depends on the source:

* `text`: documents are separated by blank lines, as in BERT's original input format, so a file
  without a blank line is one document.
* `jsonl`, `parquet`: a record is a document, its text one field.
* `installed-docs`: a docstring of this Python installation is a document. Nothing is downloaded.
"""

import ast
import dataclasses
import gc
import glob
import gzip
import hashlib
import importlib
import json
import os
import re
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lm.config import DataConfig, InputError

_SUFFIXES = {
    "text": (".txt", ".txt.gz", ".text", ".md"),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".json"),
    "parquet": (".parquet",),
}
# A shard is the unit of parallel work and of resuming: small enough to spread a small corpus over
# some cores, large enough that a terabyte does not become a million folders.
_SMALLEST_SHARD = 1 << 20
_LARGEST_SHARD = 64 << 20
_SHARDS_WANTED = 256

_SHORTEST_DOCSTRING = 200  # characters; shorter ones say little more than a name
_PYTHON_FILES_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a corpus, picklable and readable by itself.

    Attributes:
        source: as in `DataConfig`.
        files: read one after the other.
        start, stop: bytes of the one file that was cut; a document (`text`) or a line (`jsonl`)
            belongs to the part in which it begins. `stop` -1 is the end of the file.
        field: the JSON or Parquet field.
        texts: the documents themselves, where they are not in files (`installed-docs`).
        size: bytes to read (characters for `texts`), for progress.
    """

    source: str
    files: tuple[str, ...] = ()
    start: int = 0
    stop: int = -1
    field: str = ""
    texts: tuple[str, ...] = ()
    size: int = 0

    def digest(self) -> str:
        """A hash that changes when the shard names other files, sizes or texts."""
        fields = [self.source, self.files, self.start, self.stop, self.field, self.size, self.texts]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def shards(config: DataConfig, parallel_map: Callable[..., Iterable[Any]] = map) -> list[Shard]:
    """The corpus as independent work units, in an order that depends on the corpus alone.

    Args:
        config: `source`, `path` and `field` are read.
        parallel_map: an ordered `map`, such as an executor's, for sources that are slow to list.

    Raises:
        InputError: a path matches nothing, or no file holds text.
    """
    units = _installed_docs(parallel_map) if config.source == "installed-docs" else _file_shards(config)
    if not any(unit.size for unit in units):
        raise InputError(
            f"data.path={config.path!r} (data.source={config.source}) holds no document; give files with text in them."
        )
    return units


def read(shard: Shard) -> Iterator[str]:
    """The documents of a shard, stripped, in order, never empty.

    Raises:
        InputError: naming file and line of what cannot be read.
    """
    if shard.texts:
        yield from shard.texts
        return
    reader = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}[shard.source]
    for file in shard.files:
        yield from reader(file, shard)


def documents(config: DataConfig) -> Iterator[str]:
    """Every document of the corpus, in order."""
    for shard in shards(config):
        yield from read(shard)


# --- files


def _paths(config: DataConfig) -> list[str]:
    """The files that `data.path` names, in sorted order within each of its parts."""
    suffixes = _SUFFIXES[config.source]
    found: list[str] = []
    for part in filter(None, (part.strip() for part in config.path.split(","))):
        part = os.path.expanduser(part)
        if os.path.isdir(part):
            files = sorted(
                path
                for path in glob.glob(os.path.join(glob.escape(part), "**", "*"), recursive=True)
                if os.path.isfile(path) and path.endswith(suffixes)
            )
            wanted = f"a file ending in {', '.join(suffixes)}"
        else:
            files = [part] if os.path.isfile(part) else sorted(filter(os.path.isfile, glob.glob(part, recursive=True)))
            wanted = "a local file, folder or glob"
        if not files:
            raise InputError(f"data.path={part!r} matches nothing; data.source={config.source} needs {wanted}.")
        found += files
    return list(dict.fromkeys(found))


def _file_shards(config: DataConfig) -> list[Shard]:
    """Cuts large files and groups small ones into parts of about equal size."""
    sizes = {path: os.path.getsize(path) for path in _paths(config)}
    target = min(max(sum(sizes.values()) // _SHARDS_WANTED, _SMALLEST_SHARD), _LARGEST_SHARD)
    units: list[Shard] = []
    group: list[str] = []

    def close_group() -> None:
        if group:
            size = sum(sizes[path] for path in group)
            units.append(Shard(config.source, tuple(group), field=config.field, size=size))
            group.clear()

    for path, size in sizes.items():
        can_cut = config.source in ("text", "jsonl") and not path.endswith(".gz")
        if can_cut and size > 2 * target:
            close_group()
            for start in range(0, size, target):
                part = min(target, size - start)
                stop = start + part if start + part < size else -1
                units.append(Shard(config.source, (path,), start, stop, config.field, size=part))
            continue
        group.append(path)
        if sum(sizes[path] for path in group) >= target:
            close_group()
    close_group()
    return units


def _lines(path: str, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Lines with their byte offset, from the first that begins at `start` or later to the end of the file."""
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            offset = 0
            if start:
                file.seek(start - 1)
                offset = start - 1 + len(file.readline())
            for line in file:
                yield offset, line.removeprefix(b"\xef\xbb\xbf") if offset == 0 else line
                offset += len(line)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}; check the file.") from error


def _where(path: str, offset: int) -> str:
    """`path, line N` for an error message; reads the file up to there."""
    number = 1 + sum(1 for line_offset, _ in _lines(path) if line_offset < offset)
    return f"{path}, line {number}"


def _decode(line: bytes, path: str, offset: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{_where(path, offset)} is not UTF-8 (byte 0x{line[error.start]:02x}); convert the file, e.g. with iconv."
        ) from error


def _clean(text: str) -> str:
    """Without surrounding whitespace and without lone surrogates, which JSON can spell but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode().strip()


def _read_text(path: str, shard: Shard) -> Iterator[str]:
    """Blocks between blank lines. A block belongs to the part that holds the blank line before it."""
    block: list[str] = []
    ours = shard.start == 0
    for offset, line in _lines(path, shard.start):
        if line.strip():
            if ours:
                block.append(_decode(line, path, offset).rstrip())
            continue
        if block:
            yield _clean("\n".join(block))
            block = []
        if 0 <= shard.stop <= offset:
            return
        ours = True
    if block:
        yield _clean("\n".join(block))


def _read_jsonl(path: str, shard: Shard) -> Iterator[str]:
    for offset, line in _lines(path, shard.start):
        if 0 <= shard.stop <= offset:
            return
        if not line.strip():
            continue
        text = _decode(line, path, offset)
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{_where(path, offset)} is not JSON ({error.msg}, column {error.colno}); give one object a line."
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get(shard.field), str):
            fields = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise InputError(
                f"{_where(path, offset)} has no text under data.field={shard.field!r} (it has: {fields}); "
                "set data.field to the one that holds the text."
            )
        if document := _clean(record[shard.field]):
            yield document


def _read_parquet(path: str, shard: Shard) -> Iterator[str]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError("data.source=parquet needs pyarrow; pip install 'lm[parquet]'.") from error
    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error
    with file:
        names = file.schema_arrow.names
        if shard.field not in names:
            raise InputError(
                f"{path} has no column data.field={shard.field!r}; accepted: {', '.join(names)}. Set data.field."
            )
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=[shard.field]):
            for value in batch.column(0).to_pylist():
                if value is not None and not isinstance(value, str):
                    raise InputError(
                        f"{path}, row {row}: data.field={shard.field!r} is {type(value).__name__}; it must be text."
                    )
                if document := _clean(value or ""):
                    yield document
                row += 1


# --- docstrings of this installation


def _installed_docs(parallel_map: Callable[..., Iterable[Any]]) -> list[Shard]:
    """Unique docstrings of the standard library and of the installed packages, cut into shards."""
    files = list(_python_files())
    chunks = [files[i : i + _PYTHON_FILES_AT_ONCE] for i in range(0, len(files), _PYTHON_FILES_AT_ONCE)]
    unique = dict.fromkeys(text for texts in parallel_map(_docstrings, chunks) for text in texts)
    units: list[Shard] = []
    group: list[str] = []
    size = 0
    for text in [*unique, None]:
        if group and (text is None or size >= _SMALLEST_SHARD):
            units.append(Shard("installed-docs", texts=tuple(group), size=size))
            group, size = [], 0
        if text is not None:
            group.append(text)
            size += len(text)
    return units


def _python_files() -> Iterator[str]:
    """Python sources of the standard library, then of site-packages, sorted within each folder."""
    paths = sysconfig.get_paths()
    for root in dict.fromkeys(paths[name] for name in ("stdlib", "purelib", "platlib")):
        for folder, subfolders, names in os.walk(root):
            # The standard library's folder may contain the base interpreter's site-packages.
            subfolders[:] = sorted(set(subfolders) - {"__pycache__", "site-packages", "dist-packages"})
            yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))


def _docstrings(files: list[str]) -> list[str]:
    """The long docstrings of some Python files, in source order; nothing is imported or run."""
    found: list[str] = []
    collecting = gc.isenabled()
    gc.disable()  # a syntax tree is all new objects: collecting meanwhile doubles the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            for path in files:
                found += _docstrings_of(path)
    finally:
        if collecting:
            gc.enable()
    return found


def _docstrings_of(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            source = file.read()
        # Parsing is the cost, and most files have no long string between triple quotes.
        if not any(len(part) > _SHORTEST_DOCSTRING for part in re.split(rb"\"\"\"|'''", source)[1::2]):
            return []
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = _clean(ast.get_docstring(node) or "")
            if len(text) > _SHORTEST_DOCSTRING:
                found.append(text)
        blocks = [getattr(node, name, ()) for name in ("body", "handlers", "orelse", "finalbody")]
        pending += reversed([child for block in blocks if isinstance(block, list) for child in block])
    return found
