"""Cuts files of requests into parts that are answered one by one, and reads a part. Nothing here needs jax.

A part is a range of rows of a Parquet file, or of bytes of a file with a request in each line: a line belongs to the
part in which it begins. Parts depend on the files alone.
"""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Protocol

from lm import storage
from lm.data import files, records
from lm.data.characters import without_surrogates
from lm.errors import InputError
from lm.inference.requests import Request, parse

_PARQUET = ".parquet"
_SUFFIXES = (_PARQUET, ".jsonl", ".ndjson", ".txt")
_FIELDS = ("text", "text_pair", "question", "context", "language")  # columns that make a request
# Of a part. It is what a killed worker loses, and its answers are held in memory.
_ROWS = 8192
_BYTES = 1 << 20
_READ_TOGETHER = 256  # rows
_FILES_TOGETHER = 16  # whose sizes are asked for at a time


class Schema(Protocol):
    """Of a Parquet file; pyarrow's."""

    @property
    def names(self) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of Parquet files, and fields of JSON objects, that are no field of a request.

    Attributes:
        id: names a request. A request without one is named by its file, and its row or first byte there.
        text: the column of Parquet files that holds `text`.
    """

    id: str = "id"
    text: str = "text"


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows or bytes `start` to `stop` of a file; a `stop` of -1 is its end."""

    file: str
    start: int
    stop: int

    @property
    def is_parquet(self) -> bool:
        return self.file.endswith(_PARQUET)


def cut(pattern: str) -> list[Part]:
    """Returns the parts of the files that `pattern` names.

    Args:
        pattern: a file, a glob or a folder, local, gs://... or s3://....

    Raises:
        InputError: it names no file, or Parquet beside other files; or one cannot be read.
    """
    found = files.matching(pattern, _SUFFIXES)
    if not found:
        raise InputError(
            f"--input={pattern!r} matches nothing; give a file, a glob, or a folder with files ending in "
            f"{', '.join(_SUFFIXES)}."
        )
    if compressed := [path for path in found if path.endswith(".gz")]:
        raise InputError(
            f"{compressed[0]} is compressed, so no part can begin in its middle; give lines, or {_PARQUET}."
        )
    is_parquet = {path.endswith(_PARQUET) for path in found}
    if len(is_parquet) > 1:
        raise InputError(f"--input={pattern!r} names {_PARQUET} and other files; give one kind.")
    with concurrent.futures.ThreadPoolExecutor(_FILES_TOGETHER) as executor:
        return list(itertools.chain.from_iterable(executor.map(_cut, found)))


def _cut(path: str) -> list[Part]:
    if path.endswith(_PARQUET):
        rows = _metadata(path).num_rows
        return [Part(path, start, min(start + _ROWS, rows)) for start in range(0, rows, _ROWS)]
    size = storage.size(path)
    return [Part(path, start, start + _BYTES if start + _BYTES < size else -1) for start in range(0, size, _BYTES)]


def _metadata(path: str):
    arrow = _arrow()
    with records.reading(arrow, path), storage.open_file(path) as raw:
        return arrow.parquet.read_metadata(raw)


def _arrow() -> ModuleType:
    return records.import_arrow("an --input or --output of Parquet")


def id_type(part: Part, columns: Columns):
    """Returns pyarrow's type of the ids of a part."""
    arrow = _arrow()
    if not part.is_parquet:
        return arrow.string()
    schema = _metadata(part.file).schema.to_arrow_schema()
    return schema.field(columns.id).type if columns.id in schema.names else arrow.string()


def read(part: Part, columns: Columns) -> Iterator[tuple[object, Request]]:
    """Yields the id and the request of each row or line of a part.

    Raises:
        InputError: the file cannot be read, or has no column that makes a request.
    """
    return _read_parquet(part, columns) if part.is_parquet else _read_lines(part, columns)


def _read_lines(part: Part, columns: Columns) -> Iterator[tuple[object, Request]]:
    for offset, line in files.lines(part.file, part.start):
        if 0 <= part.stop <= offset:
            return
        (request,) = parse([line])
        if isinstance(request, dict) and columns.text != "text" and columns.text in request:
            request = {**request, "text": request[columns.text]}
        own = request.get(columns.id) if isinstance(request, dict) else None
        yield (f"{part.file}:{offset}" if own is None else without_surrogates(str(own))), request


def _read_parquet(part: Part, columns: Columns) -> Iterator[tuple[object, Request]]:
    arrow = _arrow()
    with records.reading(arrow, part.file), storage.open_file(part.file) as raw:
        file = arrow.parquet.ParquetFile(raw)
        fields = _fields(part.file, file.schema_arrow.names, columns)
        has_id = columns.id in file.schema_arrow.names
        groups, row = _groups(file.metadata, part)
        wanted = [*fields, *([columns.id] if has_id else [])]
        for batch in file.iter_batches(
            batch_size=_READ_TOGETHER, row_groups=groups, columns=list(dict.fromkeys(wanted))
        ):
            first, last = max(part.start - row, 0), min(part.stop - row, len(batch))
            row += len(batch)
            if first >= last:
                continue
            kept = batch.slice(first, last - first)
            ids = kept.column(columns.id).to_pylist() if has_id else range(row - len(batch) + first, part.stop)
            values = [_texts(kept.column(name)) for name in fields]
            for own, *given in zip(ids, *values, strict=False):
                yield (own if has_id else f"{part.file}:{own}"), dict(zip(fields.values(), given, strict=True))


def _texts(column) -> list[object]:
    """Returns the values of a column; None for one that is not UTF-8, which the request is then answered with."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        found: list[object] = []
        for value in column:
            try:
                found.append(value.as_py())
            except UnicodeDecodeError:
                found.append(None)
        return found


def _fields(path: str, names: Sequence[str], columns: Columns) -> dict[str, str]:
    """Returns the columns that make a request, and the field that each is."""
    called = {columns.text if field == "text" else field: field for field in _FIELDS}
    found = {name: field for name, field in called.items() if name in names}
    if not found:
        raise InputError(
            f"{path} has no column {', '.join(called)}; it has {', '.join(names[:10])}. Name the column of the text "
            "with --text_field."
        )
    return found


def _groups(metadata, part: Part) -> tuple[list[int], int]:
    """Returns the row groups of a file that hold a part, and the first row of the first one."""
    sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    stops = list(itertools.accumulate(sizes))
    found = [i for i, stop in enumerate(stops) if stop > part.start and stop - sizes[i] < part.stop]
    return found, stops[found[0]] - sizes[found[0]]
