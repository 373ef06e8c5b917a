"""Writes and reads a tree of arrays in a folder, with orbax: in chunks, with checksums, read into given shardings.

It also makes orbax 0.12.8 accept s3:// and keep its log short.
"""

import functools
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from lm import checksums, storage
from lm.checksums import Sums
from lm.errors import InputError
from lm.parameters import Tree

T = TypeVar("T")

_CHUNK_BYTES = 16 << 20  # a chunk of an array, the least that is read and decoded at once
_FILE_BYTES = 128 << 20  # small, so that files are sent in parallel and one can be sent again after a failure
_CHECKSUMS = "checksums"

_NO_METADATA = "its metadata cannot be read"
# Pattern of the text of an error -> what is wrong. The first match counts.
_FAULTS = {
    "Invalid JSON": _NO_METADATA,
    "NOT_FOUND|does not exist|No such file": "a file is missing",
    "OUT_OF_RANGE": "a file is shorter than it was written",
    "DATA_LOSS|FAILED_PRECONDITION": "a file has other bytes than were written",
}


def prepare(path: epath.PathLike) -> epath.Path:
    """Returns a path, local or remote, that orbax can use."""
    _shorten_log()
    found = storage.as_path(path)
    if storage.is_remote(found):
        _teach_s3()
        return found
    return found.resolve()


@functools.cache
def _shorten_log() -> None:
    """Drops orbax's log records, so that a storage error is shown in one line.

    Orbax raises the error to us, but also logs it three times with its traceback. It then closes an event loop to which
    the remaining arrays still report, and drops the coroutines that read them, each with the same error. It also warns
    about metadata that it looks for in two places.
    """
    of_orbax = f"{os.sep}orbax{os.sep}"
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno < logging.WARNING or of_orbax not in record.pathname
    )
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    report = sys.unraisablehook
    sys.unraisablehook = lambda what: None if _is_of_orbax(what) else report(what)


def _is_of_orbax(what: "sys.UnraisableHookArgs") -> bool:
    """Returns whether Python reports an error that orbax has already raised: of another array of the same tree."""
    code = getattr(what.object, "cr_code", None)
    return str(what.exc_value) == "Event loop is closed" or f"{os.sep}orbax{os.sep}" in getattr(code, "co_filename", "")


@functools.cache
def _teach_s3() -> None:
    """Makes orbax treat s3:// like gs://, and open both through `storage.kvstore`.

    Orbax 0.12.8 takes an s3:// path for a relative local path. We replace all names in it that depend on the
    scheme of a path.
    """
    replaced = {
        gcs_utils: {"_GCS_PATH_PREFIX": ("gs://", "s3://"), "get_kvstore_for_gcs": _kvstore_without_slash},
        tensorstore_utils: {"_use_gcs_driver": storage.is_remote, "_normalize_path": lambda path: path.rstrip("/")},
    }
    for module, names in replaced.items():
        for name, value in names.items():
            if not hasattr(module, name):
                raise InputError(
                    f"orbax-checkpoint is {ocp.__version__}, which has no {module.__name__}.{name}; object storage "
                    "accepts 0.12.8: pip install orbax-checkpoint==0.12.8."
                )
            setattr(module, name, value)


def _kvstore_without_slash(path: str) -> storage.Spec:
    spec = storage.kvstore(path)
    return {**spec, "path": str(spec["path"]).removesuffix("/")}


def save_args(tree: object, elsewhere: Mapping[str, int]) -> ocp.args.PyTreeSave:
    """Returns orbax's arguments for saving a tree and its checksums.

    Args:
        tree: the arrays.
        elsewhere: checksums of arrays in another folder, which are saved together with those of the tree.
    """
    return _arguments(tree, {**checksums.compute(tree), **elsewhere})


def _arguments(tree: object, sums: Sums) -> ocp.args.PyTreeSave:
    return ocp.args.PyTreeSave(
        tree,
        save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree),
        ocdbt_target_data_file_size=_FILE_BYTES,
        custom_metadata={_CHECKSUMS: dict(sums)},
    )


def write(folder: epath.Path, tree: object) -> Sums:
    """Replaces the content of a folder by a tree, and returns its checksums when the folder is complete.

    An incomplete folder is never taken for a complete one: on a disk it has another name, and on object storage it
    lacks commit_success.txt. All processes must call this.
    """
    sums = checksums.compute(tree)
    arguments = _arguments(tree, sums)
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).save(folder, args=arguments, force=True)
    return sums


def read(folder: epath.Path, abstract: T, *, partial: bool = False) -> tuple[T, Sums | None]:
    """Reads the arrays of an abstract tree, each into its sharding.

    No process waits for another one here, so each can report whether it could read its shards.

    Args:
        folder: the folder.
        abstract: shapes, dtypes and shardings.
        partial: whether the folder may hold more arrays than the tree. These are not read.

    Returns:
        The tree and the saved checksums, not yet compared. Checkpoints of earlier versions have None for checksums.
    """
    handler = ocp.PyTreeCheckpointHandler()
    places = ocp.checkpoint_utils.construct_restore_args(abstract)
    arguments = ocp.args.PyTreeRestore(item=abstract, restore_args=places, partial_restore=partial)
    return handler.restore(folder, args=arguments), _sums_of(handler.metadata(folder).custom_metadata)


def contents(folder: epath.Path) -> tuple[Tree[jax.ShapeDtypeStruct], Sums | None]:
    """Returns the shapes and dtypes of the parameters in a folder, and their checksums.

    The sharding places each parameter on the first device of this process.
    """
    metadata = ocp.PyTreeCheckpointHandler().metadata(folder)
    place = SingleDeviceSharding(jax.local_devices()[0])
    tree = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), metadata.tree)
    return tree, _sums_of(metadata.custom_metadata)


def fault(error: BaseException, folder: epath.Path) -> str:
    """Returns what is wrong with a folder that cannot be read, and with which of its files, where that is known.

    TensorStore's own text names each layer that the error passed and ends with the whole specification of the array.
    Orbax puts another such text around it.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).partition(" [tensorstore_spec")[0].partition(" [source locations")[0].strip()
    kind = next((kind for words, kind in _FAULTS.items() if re.search(words, text)), None)
    if isinstance(error, json.JSONDecodeError | KeyError):
        kind = _NO_METADATA
    files = [name for name in re.findall(r'local file "([^"]+)"', text) if not name.endswith("/")]
    if kind:
        return f"{kind}: {files[-1].removeprefix(f'{folder}/')}" if files else kind
    said = text.partition("\n")[0][:200]
    return said if type(error) is ValueError else f"{type(error).__name__}: {said}"


def _sums_of(metadata: Mapping[str, Sums] | None) -> Sums | None:
    return (metadata or {}).get(_CHECKSUMS)
