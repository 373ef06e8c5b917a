"""Reads documents or pairs from files, or makes them from what is installed on this machine.

A corpus is a list of `Shard`s in a fixed order. Every process can read every shard by itself. A document is a `str`;
the source decides where it ends:

* `text`: documents are separated by blank lines, as in BERT's original input format. A file without a blank line is
  one document.
* `jsonl`, `parquet`: a record is a document; one of its fields is the text. A record whose text is null is left out.
* `installed-docs`: a docstring of this Python installation is a document. Nothing is downloaded.

A supervised corpus consists of `Pair`s. `tsv` has one on each line. Records of `jsonl` and `parquet` are pairs if
`target_field` is given. `gettext`, `dates` and `docs-questions` are read by the modules `catalogues`, `dates` and
`docs_questions`.
"""

import ast
import concurrent.futures
import dataclasses
import functools
import gc
import hashlib
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from lm import storage
from lm.config import Config, DataConfig
from lm.data import catalogues, dates, docs_questions, files, records
from lm.data.pairs import Pair, make_pair
from lm.data.workers import ParallelMap
from lm.errors import InputError

SUFFIXES = {
    "text": (".txt", ".txt.gz", ".text", ".md"),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "tsv": (".tsv", ".tsv.gz", ".txt", ".txt.gz"),
}
# Bytes. A shard is the unit of parallel work and of resuming: small enough to spread a small corpus over some cores,
# large enough that a terabyte does not become a million folders.
_SMALLEST_SHARD = 1 << 20
_LARGEST_SHARD = 256 << 20
_SHARDS_WANTED = 256

_SHORTEST_DOCSTRING = 200  # characters; shorter ones say little more than a name
_PYTHON_FILES_AT_ONCE = 32
_REQUESTS_AT_ONCE = 32  # to object storage
_WIDE_SPACE = "\u3000".encode()  # what Chinese and Japanese texts indent with; a line of them alone is blank


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a corpus that can be pickled and read by itself.

    Attributes:
        source: as in `DataConfig`.
        files: the files of the shard, in order.
        start, stop: the bytes of the shard, where a file is cut into several. A document (`text`) or a line (`jsonl`,
            `tsv`) belongs to the part in which it begins. A `stop` of -1 is the end of the file.
        field, target_field: the JSON or Parquet fields.
        texts: the documents or pairs themselves, where they are not read from lines or records of files.
        size: bytes to read (characters for `texts`), for the progress bar.
        left_out: int64 [any], ascending, the numbers of the documents that `read` leaves out; None for none.
    """

    source: str
    files: tuple[str, ...] = ()
    start: int = 0
    stop: int = -1
    field: str = ""
    target_field: str = ""
    texts: tuple[str | Pair, ...] = ()
    size: int = 0
    left_out: np.ndarray | None = dataclasses.field(default=None, compare=False)

    def digest(self) -> str:
        """Returns a hash of the files, sizes or texts that the shard names."""
        fields = [self.source, self.files, self.start, self.stop, self.field, self.size, self.texts]
        if self.target_field:
            fields.append(self.target_field)
        if self.left_out is not None:
            fields.append(self.left_out.tolist())
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def shards(config: DataConfig, parallel_map: ParallelMap = map) -> list[Shard]:
    """Cuts the corpus into shards, in an order that depends on the corpus alone.

    Args:
        config: `source`, `path`, `field`, `target_field` and `languages` are read.
        parallel_map: computes the texts of sources that are not read from lines or records.

    Raises:
        InputError: a path matches nothing, or no file holds text.
    """
    if config.source == "installed-docs":
        units = _grouped(config.source, _installed_docs(parallel_map))
    elif config.source == "docs-questions":
        units = _grouped(config.source, docs_questions.pairs(_installed_docs(parallel_map), parallel_map))
    elif config.source == "dates":
        units = _grouped(config.source, dates.pairs(parallel_map))
    elif config.source == "gettext":
        units = _grouped(config.source, catalogues.pairs(config, parallel_map))
    else:
        units = _file_shards(config)
    if not any(unit.size for unit in units):
        raise InputError(
            f"{files.named(config)} holds no "
            f"{'pair; give files with pairs' if config.pairs else 'document; give files with text'} in them."
        )
    return units


def read(shard: Shard, on_null: Callable[[], object] = lambda: None) -> Iterator[str | Pair]:
    """Yields the documents or pairs of a shard, in order. They are stripped and never empty.

    Args:
        shard: from `shards`.
        on_null: called for each record that is left out because a field is null.

    Raises:
        InputError: a file cannot be read; the message names file and line.
    """
    found = _read_all(shard, on_null)
    if shard.left_out is None:
        yield from found
        return
    bounds = iter([*shard.left_out.tolist(), -1])
    following = next(bounds)
    for number, document in enumerate(found):
        if number == following:
            following = next(bounds)
        else:
            yield document


def split_hash(document: str | Pair) -> int:
    """Returns 64 bits of a text, or of the group of a pair. So its split does not depend on how the corpus is cut."""
    text = document if isinstance(document, str) else document.group or document.source
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _read_all(shard: Shard, on_null: Callable[[], object]) -> Iterator[str | Pair]:
    if shard.texts:
        yield from shard.texts
        return
    reader = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet, "tsv": _read_tsv}[shard.source]
    for file in shard.files:
        for text in reader(file, shard):
            if text is None:
                on_null()
            elif text:
                yield text


def documents(config: DataConfig) -> Iterator[str | Pair]:
    """Yields every document or pair of the corpus, in order."""
    for shard in shards(config):
        yield from read(shard)


# --- files


def source_of(path: str, lines: str) -> str:
    """Returns the source that reads the files of `path`: `jsonl` or `parquet` if their names end so, else `lines`.

    Args:
        path: as `data.path`.
        lines: `text` or `tsv`.

    Raises:
        InputError: the path matches nothing, or files of several sources.
    """
    suffixes = {source: SUFFIXES[source] for source in ("jsonl", "parquet", lines)}
    examples: dict[str, str] = {}
    for file in files.paths(DataConfig(source=lines, path=path), sum(suffixes.values(), ())):
        examples[next((source for source in suffixes if file.endswith(suffixes[source])), lines)] = file
    if len(examples) > 1:
        found = ", ".join(f"{file} ({source})" for source, file in examples.items())
        raise InputError(f"{path!r} has files of several kinds: {found}; give those of one kind, such as DIR/*.jsonl.")
    return next(iter(examples))


def on_files(config: Config, path: str, lines: str) -> DataConfig:
    """Returns the section of a run that reads files instead of its corpus. Records have the fields of its first task.

    Args:
        config: of the run.
        path, lines: as for `source_of`, which may refuse them.
    """
    first = next(iter(config.mixture.tasks), None)
    text = config.data if first is None else config.task_data(first)
    source = source_of(path, lines)
    has_fields = source in ("jsonl", "parquet")
    return dataclasses.replace(
        config.data,
        source=source,
        path=path,
        field=text.field if has_fields else "text",
        target_field=(text.target_field or "target") if has_fields and lines == "tsv" else "",
        languages="",
        store="",
    )


def _sizes(paths: Sequence[str]) -> dict[str, int]:
    """Returns the bytes of each file. Object storage takes many requests at once, each of some milliseconds."""
    with concurrent.futures.ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        found = (pool.map if any(map(storage.is_remote, paths)) else map)(storage.size, paths)
        return dict(zip(paths, found, strict=True))


def _file_shards(config: DataConfig) -> list[Shard]:
    """Cuts large files, and groups small ones, into shards of about equal size."""
    sizes = _sizes(files.paths(config, SUFFIXES[config.source]))
    target = min(max(sum(sizes.values()) // _SHARDS_WANTED, _SMALLEST_SHARD), _LARGEST_SHARD)
    units: list[Shard] = []
    group: list[str] = []
    grouped = 0  # bytes

    def close_group() -> None:
        nonlocal grouped
        if group:
            units.append(Shard(config.source, tuple(group), 0, -1, config.field, config.target_field, size=grouped))
            group.clear()
            grouped = 0

    for path, size in sizes.items():
        can_cut = config.source in ("text", "jsonl", "tsv") and not path.endswith(".gz")
        if can_cut and size > 2 * target:
            close_group()
            for start in range(0, size, target):
                part = min(target, size - start)
                stop = start + part if start + part < size else -1
                units.append(Shard(config.source, (path,), start, stop, config.field, config.target_field, size=part))
            continue
        group.append(path)
        grouped += size
        if grouped >= target:
            close_group()
    close_group()
    return units


def _read_text(path: str, shard: Shard) -> Iterator[str]:
    """Yields the blocks between blank lines. A block belongs to the part that holds the blank line before it."""
    block: list[str] = []
    ours = shard.start == 0
    for offset, line in files.lines(path, shard.start):
        if not ours and 0 <= shard.stop <= offset:
            return  # no block belongs to this part
        if line.strip() and not (line.startswith(_WIDE_SPACE) and files.decode(line, path, offset).isspace()):
            if ours:
                block.append(files.decode(line, path, offset).rstrip())
            continue
        if block:
            yield files.clean("\n".join(block))
            block = []
        if 0 <= shard.stop <= offset:
            return
        ours = True
    if block:
        yield files.clean("\n".join(block))


def _read_tsv(path: str, shard: Shard) -> Iterator[Pair]:
    for offset, line in files.lines(path, shard.start):
        if 0 <= shard.stop <= offset:
            return
        text = files.decode(line, path, offset).rstrip("\r\n")
        if not text:
            continue
        columns = text.split("\t")
        if len(columns) != 2:
            raise InputError(
                f"{files.where(path, offset)} has {len(columns)} column{'s' * (len(columns) > 1)}; accepted: 2, source "
                "and target with a tab between them."
            )
        yield make_pair(*columns, where=functools.partial(files.where, path, offset))


def _read_jsonl(path: str, shard: Shard) -> Iterator[str | Pair | None]:
    for values, place in records.jsonl(path, shard.start, shard.stop, _fields(shard)):
        yield _document_or_pair(values, place)


def _read_parquet(path: str, shard: Shard) -> Iterator[str | Pair | None]:
    for values, place in records.parquet(path, _fields(shard)):
        yield _document_or_pair(values, place)


def _fields(shard: Shard) -> dict[str, str]:
    """Returns the fields of a record to read, by the options that name them."""
    return {name: value for name in ("field", "target_field") if (value := getattr(shard, name))}


def _document_or_pair(values: Sequence[str] | None, where: Callable[[], str]) -> str | Pair | None:
    """Returns a record's document or pair; None where a field is null. An empty half of a pair is an error."""
    if values is None:
        return None
    return make_pair(*values, where=where) if len(values) == 2 else files.clean(values[0])


# --- texts that are held in memory


def _grouped(source: str, texts: Iterable[str | Pair]) -> list[Shard]:
    """Returns shards that hold their texts."""
    units: list[Shard] = []
    group: list[str | Pair] = []
    size = 0
    for text in [*texts, None]:
        if group and (text is None or size >= _SMALLEST_SHARD):
            units.append(Shard(source, texts=tuple(group), size=size))
            group, size = [], 0
        if text is not None:
            group.append(text)
            size += len(text) if isinstance(text, str) else len(text.source) + len(text.target)
    return units


# --- docstrings of this installation


def _installed_docs(parallel_map: ParallelMap) -> list[str]:
    """Returns the docstrings of the standard library and the installed packages, without duplicates."""
    paths = list(_python_files())
    chunks = [paths[i : i + _PYTHON_FILES_AT_ONCE] for i in range(0, len(paths), _PYTHON_FILES_AT_ONCE)]
    return list(dict.fromkeys(text for texts in parallel_map(_docstrings, chunks) for text in texts))


def _python_files() -> Iterator[str]:
    """Yields the Python files of the standard library, then of site-packages, sorted within each folder."""
    paths = sysconfig.get_paths()
    for root in dict.fromkeys(paths[name] for name in ("stdlib", "purelib", "platlib")):
        for folder, subfolders, names in os.walk(root):
            # The standard library's folder may contain the base interpreter's site-packages.
            subfolders[:] = sorted(set(subfolders) - {"__pycache__", "site-packages", "dist-packages"})
            yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(".py"))


def _docstrings(paths: list[str]) -> list[str]:
    """Returns the long docstrings of some Python files, in source order. Nothing is imported or run."""
    found: list[str] = []
    collecting = gc.isenabled()
    gc.disable()  # a syntax tree is many new objects: collection would double the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            for path in paths:
                found += _docstrings_of(path)
    finally:
        if collecting:
            gc.enable()
    return found


def _docstrings_of(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            source = file.read()
        # Parsing is slow, and most files have no long string between triple quotes.
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
            text = files.clean(ast.get_docstring(node) or "")
            if len(text) > _SHORTEST_DOCSTRING:
                found.append(text)
        blocks = [getattr(node, name, ()) for name in ("body", "handlers", "orelse", "finalbody")]
        pending += reversed([child for block in blocks if isinstance(block, list) for child in block])
    return found
