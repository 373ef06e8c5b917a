"""Arrays of a token store: written whole, read in ranges.

An array is one-dimensional zarr 3 with the sharding codec: few files, and small inner chunks, so that a random read
decodes little.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import tensorstore as ts

from lm.errors import InputError
from lm.storage import errors, kvstore

_INNER_CHUNK = 1 << 13  # elements that a random read decodes
_OUTER_CHUNK = 1 << 26  # elements in a file, at most
_CACHE_BYTES = 16 << 20  # of decoded chunks and of files' indices, for each column
_WAVE = 1 << 24  # elements that are asked for at a time: bounds what is decoded beside the result
_OPENED = 512  # parts that a column keeps open


def write(path: str, names: Sequence[str], values: np.ndarray) -> ts.WriteFutures:
    """Starts to write an array [N] to the folder `names` below `path`.

    Each file of the array is written whole. Where an array of that length and type is there, none of its files is
    deleted before. So two writers of the same values leave it complete at any time; one of them may be taken for lost.
    """
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 1}},
        {"name": "crc32c"},  # zstd does not notice most flipped bits
    ]
    inner = {"chunk_shape": [_INNER_CHUNK], "codecs": codecs}
    # A file has an index of all its inner chunks, so that of a short array holds no more than the array needs.
    outer = min(_OUTER_CHUNK, max(1, -(-len(values) // _INNER_CHUNK)) * _INNER_CHUNK)
    spec = {
        "driver": "zarr3",
        "kvstore": kvstore(path, *names),
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": [len(values)],
            "data_type": values.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [outer]}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        },
    }
    try:
        array = ts.open(spec, open=True, create=True).result()
    except ValueError:  # another length or type, or damaged
        array = ts.open(spec, create=True, delete_existing=True).result()
    return array.write(values)


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Names the store in the error when it cannot be read.

    Raises:
        InputError: the storage refuses, or the data is damaged.
    """
    try:
        with errors(path):
            yield
    except ValueError as error:  # TensorStore's error for damaged data
        reason = str(error).partition(" [")[0]
        raise InputError(f"the token store {path!r} is damaged ({reason}); prepare it again.") from error


def open_all(path: str, folders: Sequence[Sequence[str]], context: ts.Context | None = None) -> list[ts.TensorStore]:
    """Opens the arrays in some folders below `path`, all at once."""
    settings = {"driver": "zarr3", "fill_missing_data_reads": False}  # a lost file is an error, not zeros
    specs = [{**settings, "kvstore": kvstore(path, *names)} for names in folders]
    pending = [ts.open(spec, read=True, context=context or ts.Context()) for spec in specs]
    return [future.result() for future in pending]


class Column:
    """An array of a split, in parts that lie in different shards. A part is opened when it is read."""

    def __init__(self, path: str, folders: Sequence[Sequence[str]], sizes: np.ndarray, dtype: np.dtype):
        """Opens nothing.

        Args:
            path: of the store.
            folders: of the part in each shard, below `path`.
            sizes: int64 [len(folders)], elements of each part.
            dtype: of the elements.
        """
        self._path, self._folders, self.dtype = path, folders, np.dtype(dtype)
        self._offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        self._opened: dict[int, ts.TensorStore] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def read(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        """Returns the elements of some ranges, one after the other.

        A range may cross parts. Requests for neighbouring chunks of a file become one.

        Args:
            starts, stops: int [N]; they count from the first element of the first part.

        Raises:
            InputError: the storage refuses, or the data is damaged.
        """
        pieces = self._pieces(np.asarray(starts), np.asarray(stops))
        found = np.empty(sum(stop - start for _, start, stop in pieces), self.dtype)
        at = 0
        with reading(self._path):
            opened = self._open({part for part, _, _ in pieces})
            while pieces:
                asked = np.cumsum([stop - start for _, start, stop in pieces])
                wave = pieces[: 1 + int(np.searchsorted(asked, _WAVE))]
                with ts.Batch() as batch:
                    pending = [opened[part][start:stop].read(batch=batch) for part, start, stop in wave]
                for future in pending:
                    values = future.result()
                    found[at : at + len(values)] = values
                    at += len(values)
                pieces = pieces[len(wave) :]
        return found

    def _pieces(self, starts: np.ndarray, stops: np.ndarray) -> list[tuple[int, int, int]]:
        """Returns (part, start, stop) of the ranges, cut where a part ends; empty ranges are left out."""
        first = np.searchsorted(self._offsets, starts, side="right") - 1
        after = np.searchsorted(self._offsets, stops, side="left")
        offsets = self._offsets
        ranges = zip(starts.tolist(), stops.tolist(), first.tolist(), after.tolist(), strict=True)
        return [
            (part, int(max(start, offsets[part]) - offsets[part]), int(min(stop, offsets[part + 1]) - offsets[part]))
            for start, stop, low, high in ranges
            for part in range(low, high)
            if start < stop
        ]

    def _open(self, parts: set[int]) -> dict[int, ts.TensorStore]:
        with self._lock:
            if len(self._opened) > _OPENED:
                self._opened.clear()
            missing = sorted(parts - self._opened.keys())
            arrays = open_all(self._path, [self._folders[part] for part in missing], self._context)
            self._opened |= dict(zip(missing, arrays, strict=True))
            return {part: self._opened[part] for part in parts}
