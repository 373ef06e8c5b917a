"""Reads the weights in a file of `torch.save` without torch, and without running anything that the file says.

Such a file is a pickle, which could call any function. The unpickler here knows an ordered dict and the few names that
rebuild a tensor from its storage, and refuses every other name. Since version 1.6, PyTorch writes a zip archive: the
pickle, and a member for each storage. Before, it wrote five pickles and then the storages, one after another.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the old format
_PROTOCOL = 1001  # the second one

# Class of a storage in the module `torch` -> its type as safetensors names it, and as NumPy does.
_STORAGES: dict[str, tuple[str, Any]] = {
    "DoubleStorage": ("F64", np.float64),
    "FloatStorage": ("F32", np.float32),
    "HalfStorage": ("F16", np.float16),
    "BFloat16Storage": ("BF16", jnp.bfloat16),
    "LongStorage": ("I64", np.int64),
    "IntStorage": ("I32", np.int32),
    "ShortStorage": ("I16", np.int16),
    "CharStorage": ("I8", np.int8),
    "ByteStorage": ("U8", np.uint8),
    "BoolStorage": ("BOOL", np.bool_),
}


class Damaged(Exception):
    """The file is no state dict of `torch.save`; the message says why."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of the file: its shape, its type as safetensors names it, and a function that returns its values."""

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers of one type, of which tensors are views. `read_bytes` returns at most `count` numbers."""

    kind: str
    dtype: Any
    count: int
    read_bytes: Callable[[], bytes]

    def read(self) -> np.ndarray:
        with _any_error_is_damage():
            content = self.read_bytes()
        if len(content) != self.count * np.dtype(self.dtype).itemsize:
            raise Damaged(f"a storage has {len(content)} bytes, which are not {self.count} numbers")
        return np.frombuffer(content, self.dtype)


def open_file(path: Path) -> dict[str, Stored]:
    """Returns the tensors of a state dict by name. Their values are read later, when they are asked for.

    Raises:
        Damaged: the file is damaged, or holds something else. So do the functions that read values.
    """
    with _any_error_is_damage():
        return _open_zip(path) if zipfile.is_zipfile(path) else _open_old(path)


@contextlib.contextmanager
def _any_error_is_damage() -> Iterator[None]:
    """Turns every error into `Damaged`: of a damaged file, pickle and zipfile raise almost anything."""
    try:
        yield
    except Damaged:
        raise
    except Exception as error:
        raise Damaged(" ".join(f"{type(error).__name__}: {error}".split())) from None


def _open_zip(path: Path) -> dict[str, Stored]:
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        pickled = next((name for name in members if name.endswith("/data.pkl")), None)
        if pickled is None:
            raise Damaged("the archive has no data.pkl")
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise Damaged("its numbers are big-endian")
        content = archive.read(pickled)

    def storage_bytes(key: str, size: int) -> bytes:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(f"{folder}data/{key}").file_size > size:  # compressed, it may be far larger
                raise Damaged(f"the storage {key} is larger than its tensors say")
            return archive.read(f"{folder}data/{key}")

    return _state_dict(_Unpickler(io.BytesIO(content), storage_bytes).load())


def _open_old(path: Path) -> dict[str, Stored]:
    places: dict[str, int] = {}

    def storage_bytes(key: str, size: int) -> bytes:
        if key not in places:
            raise Damaged(f"the storage {key} is missing")
        with path.open("rb") as file:
            file.seek(places[key])
            return file.read(size)

    with path.open("rb") as file:
        header = [_Unpickler(file, storage_bytes).load() for _ in range(3)]
        if header[:2] != [_MAGIC, _PROTOCOL] or header[2].get("little_endian") is not True:
            raise Damaged("it is no file of torch.save")
        unpickler = _Unpickler(file, storage_bytes)
        found = unpickler.load()
        keys = _Unpickler(file, storage_bytes).load()
        end = os.fstat(file.fileno()).st_size
        for key in keys:
            (count,) = struct.unpack("<q", file.read(8))
            places[key] = file.tell()
            file.seek(count * unpickler.widths[key], io.SEEK_CUR)
            if count < 0 or file.tell() > end:
                raise Damaged("the file ends too early")
    return _state_dict(found)


def _state_dict(found: object) -> dict[str, Stored]:
    if not isinstance(found, Mapping):
        raise Damaged(f"it holds {type(found).__name__}, not a state dict")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Stored):
            raise Damaged(f"its entry {str(name)[:40]!r} is no tensor; save model.state_dict() alone")
    return dict(found)


class _Unpickler(pickle.Unpickler):
    """Unpickles a state dict. Every name that a state dict does not need is refused."""

    def __init__(self, file: BinaryIO, storage_bytes: Callable[[str, int], bytes]):
        super().__init__(file, encoding="utf-8")
        self._storage_bytes = storage_bytes
        self.widths: dict[str, int] = {}  # bytes of a number, by the key of its storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return functools.partial(_rebuild)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return functools.partial(_rebuild_parameter)
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise Damaged(f"it names {module}.{name}; accepted: a dict of tensors")

    def persistent_load(self, pid: Any) -> _Storage:
        tag, (kind, dtype), key, _, count, *_ = pid
        if tag != "storage" or not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise Damaged("a storage is described in an unknown way")
        width = np.dtype(dtype).itemsize
        self.widths[key] = width
        return _Storage(kind, dtype, count, functools.partial(self._storage_bytes, key, count * width))


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> Stored:
    """Returns the view of a storage that PyTorch calls a tensor."""
    numbers = (offset, *shape, *strides)
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or len(shape) != len(strides):
        raise Damaged("a tensor is described in an unknown way")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.count:
        raise Damaged("a tensor reaches beyond its storage")

    def read() -> np.ndarray:
        flat = storage.read()
        if not math.prod(shape):
            return np.zeros(shape, flat.dtype)
        steps = [stride * flat.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)

    return Stored(tuple(shape), storage.kind, read)


def _rebuild_parameter(data: Stored, *_: object) -> Stored:
    return data
