"""Reads the fields of records from JSON lines and Parquet.

A record is a list of the texts of its fields, or None where a field is null. A reader also yields a function that
returns the place of the record, for an error message.
"""

import contextlib
import functools
import importlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import TypeVar

from lm import storage
from lm.data import files
from lm.errors import InputError

T = TypeVar("T")
Record = tuple[list[str] | None, Callable[[], str]]

_SHOWN_NAMES = 10


def jsonl(path: str, start: int, stop: int, fields: Mapping[str, str]) -> Iterator[Record]:
    """Yields the records of a file, or of the part of it that begins in bytes `start` to `stop` (-1: the end).

    Args:
        fields: field of the section `data` -> the name that it gives: `{"field": "text"}`.

    Raises:
        InputError: a line is not a JSON object with these texts; names file and line.
    """
    for offset, line in files.lines(path, start):
        if 0 <= stop <= offset:
            return
        if not line.strip():
            continue
        place = functools.partial(files.where, path, offset)
        record = _parsed(files.decode(line, path, offset), place)
        given: Mapping[str, object] = record if isinstance(record, dict) else {}
        values: list[str] = []
        for option, name in fields.items():
            value = given.get(name, 0)
            if isinstance(value, str):
                values.append(value)
            elif name in given and value is not None:
                raise InputError(
                    f"{place()}: data.{option}={name!r} is a JSON {type(value).__name__}; it must be text."
                )
            elif value is not None:
                found = _listed(given) if isinstance(record, dict) else type(record).__name__
                raise InputError(
                    f"{place()} has no text under data.{option}={name!r} (it has: {found}); rename a field, or set "
                    f"data.{option} in the config to the one that holds the text."
                )
        yield (values if len(values) == len(fields) else None), place


def _parsed(text: str, place: Callable[[], str]) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"is not JSON ({error.msg}, column {error.colno})"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError:  # Python converts no whole number of more than 4,300 digits
        reason = "has a number of too many digits"
    raise InputError(f"{place()} {reason}; give one object a line.")


def _listed(names: Mapping[str, object]) -> str:
    """Returns the first names of a record, short enough for a message."""
    shown = [name if len(name) <= 40 else f"{name[:40]}..." for name in itertools.islice(names, _SHOWN_NAMES)]
    return ", ".join(shown) + (f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else "")


def parquet(path: str, fields: Mapping[str, str]) -> Iterator[Record]:
    """Yields the records of a file. The arguments are those of `jsonl`.

    Raises:
        InputError: pyarrow is not installed, the file cannot be read, or a column is missing, occurs twice or is no
            text; names the file, and the row if one is to blame.
    """
    arrow = import_arrow("data.source=parquet")
    with contextlib.ExitStack() as stack:
        with reading(arrow, path):
            raw = stack.enter_context(storage.open_file(path))
            file = stack.enter_context(arrow.parquet.ParquetFile(raw))
            names = file.schema_arrow.names
        for option, name in fields.items():
            if names.count(name) != 1:
                has = f"has {names.count(name)} columns" if name in names else "has no column"
                raise InputError(
                    f"{path} {has} data.{option}={name!r}; accepted: {_listed(dict.fromkeys(names))}. "
                    f"Rename a column, or set data.{option} in the config."
                )
        row = 0
        batches = file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(fields.values())))
        while True:
            with reading(arrow, path):
                batch = next(batches, None)
            if batch is None:
                return
            columns = [_texts(arrow, batch, path, row, *field) for field in fields.items()]
            for values in zip(*columns, strict=True):
                yield (None if None in values else list(values)), lambda row=row: f"{path}, row {row}"
                row += 1


def _texts(arrow: ModuleType, batch, path: str, first: int, option: str, name: str) -> list[str | None]:
    """Returns the texts of a column of a batch, whose first row is row `first` of the file."""
    column = batch.column(name)
    kind = column.type.value_type if arrow.types.is_dictionary(column.type) else column.type
    is_text = arrow.types.is_string(kind) or arrow.types.is_large_string(kind) or arrow.types.is_string_view(kind)
    if not is_text:
        if column.null_count == len(column):
            return [None] * len(column)
        row = next(row for row, value in enumerate(column.is_valid()) if value.as_py())
        where = f"{path}, row {first + row}"
        raise InputError(f"{where}: data.{option}={name!r} is {kind}; set it in the config to a column of text.")
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        for row, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, row {first + row}: data.{option}={name!r} is not UTF-8 (byte "
                    f"0x{error.object[error.start]:02x}); write the column again as UTF-8."
                ) from error
        raise


def import_arrow(what: str) -> ModuleType:
    """Returns pyarrow with its module parquet.

    Raises:
        InputError: it is not installed; says `what` needs it.
    """
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise InputError(f"{what} needs pyarrow; pip install -e '.[parquet]'.") from error


@contextlib.contextmanager
def reading(arrow: ModuleType, path: str) -> Iterator[None]:
    """Names the file in an error of pyarrow."""
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}; check the file.") from error
