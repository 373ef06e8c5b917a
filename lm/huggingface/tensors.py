"""Reads the tensors of a folder: safetensors or PyTorch files, whole or in shards."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from lm.errors import InputError
from lm.huggingface import torch_file

_Read = TypeVar("_Read")

# The types that weights may have, as safetensors names them.
FLOATS = ("F64", "F32", "F16", "BF16")

WEIGHTS_FILE = "model.safetensors"
# The files that may hold the weights, the preferred one first, and the key of an index that names the shards.
_FILES = (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint.

    Attributes:
        shape: its shape.
        kind: its type, as safetensors names it: one of `FLOATS`, or `I64`, `U8`, ...
        read: returns its values.
    """

    shape: tuple[int, ...]
    kind: str
    read: Callable[[], np.ndarray]


def open_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of all files of a folder without reading them.

    Raises:
        InputError: there are no weights, or a file is damaged; names it.
    """
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        reader = _open_safetensors if file.endswith(".safetensors") else _open_torch
        tensors |= reader(folder / file)
    return tensors


def read_finite(name: str, tensor: Tensor) -> np.ndarray:
    """Returns the values of a tensor as float32.

    Raises:
        InputError: a value is NaN or infinite, or becomes so as float32.
    """
    with np.errstate(over="ignore"):
        values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
        count = np.count_nonzero(~np.isfinite(values))
        raise InputError(
            f"{name} has {count} of {values.size} values that are NaN or infinite; give a checkpoint whose weights are "
            "finite."
        )
    return values


def read_json(folder: Path, name: str) -> Any:  # an object, or the list in modules.json
    """Returns the content of a JSON file of a folder.

    Raises:
        InputError: the file does not exist or is no JSON. NaN and Infinity are no JSON.
    """
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; give a folder saved by transformers.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read as JSON: {error}.") from None
    except RecursionError:
        raise InputError(f"{name} cannot be read as JSON: it is nested too deeply.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _weight_files(folder: Path) -> list[str]:
    """Returns the names of the files with the weights."""
    found = next((name for name in _FILES if (folder / name).is_file()), None)
    if found is None:
        others = [name for name in ("tf_model.h5", "flax_model.msgpack") if (folder / name).is_file()]
        raise InputError(
            f"there is {' and '.join(others) or 'no file with weights'}; accepted: {', '.join(_FILES)}, as "
            "transformers saves them."
        )
    if not found.endswith(".json"):
        return [found]
    index = read_json(folder, found)
    shards = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(shards, Mapping) or not shards or not all(map(_is_shard, shards.values())):
        raise InputError(f"{found} has no weight_map from the names of tensors to those of files in this folder.")
    missing = sorted({name for name in shards.values() if not (folder / name).is_file()})
    if missing:
        raise InputError(f"{missing[0]}, which {found} names, does not exist; give all files of the model.")
    return sorted(set(shards.values()))


def _is_shard(name: object) -> bool:
    return isinstance(name, str) and name.endswith((".safetensors", ".bin")) and Path(name).name == name


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    def guarded(read: Callable[[], _Read]) -> _Read:
        try:
            return read()
        except (SafetensorError, OSError, TypeError, AttributeError) as error:
            raise InputError(f"{path.name} cannot be read as safetensors: {error}.") from None

    handle = guarded(lambda: safe_open(path, framework="numpy"))
    tensors = {}
    for name in handle.keys():  # noqa: SIM118 - the handle is not a mapping
        part = handle.get_slice(name)
        read = functools.partial(guarded, functools.partial(handle.get_tensor, name))
        tensors[name] = Tensor(tuple(part.get_shape()), str(part.get_dtype()), read)
    return tensors


def _open_torch(path: Path) -> dict[str, Tensor]:
    def guarded(read: Callable[[], _Read]) -> _Read:
        try:
            return read()
        except torch_file.Damaged as error:
            raise InputError(f"{path.name} cannot be read as PyTorch weights: {error}.") from None

    found = guarded(lambda: torch_file.open_file(path))
    return {name: Tensor(each.shape, each.kind, functools.partial(guarded, each.read)) for name, each in found.items()}
