"""A working directory, local or on object storage: config, tokenizer, checkpoints. The only file that imports orbax.

WORKDIR/config.json
WORKDIR/tokenizer.model (or the files of an imported tokenizer)
WORKDIR/checkpoints/<step>/{params,training}, complete where it has a commit_success.txt
"""

import contextlib
import functools
import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from lm import config as config_lib
from lm import storage
from lm.config import CheckpointConfig, Config
from lm.errors import InputError

State = dict[str, Any]

_CONFIG = "config.json"
_COMPLETE = "commit_success.txt"  # orbax writes it last
_CHUNK_BYTES = 16 << 20  # of an array: what a reader of a part of it reads and decodes at least
_FILE_BYTES = 128 << 20  # small enough to be sent many at a time, and again where sending failed
_CHECKSUMS = "checksums"


class Checkpoints:
    """The checkpoints of one working directory, written while training goes on.

    A checkpoint holds two items, so that prediction reads no optimizer state: `params`, and `training` with
    the rest of the state. It appears under its final name only when it is complete.
    """

    def __init__(self, workdir: epath.PathLike, config: CheckpointConfig):
        """Opens `workdir/checkpoints`, and creates it if need be; what a killed run left half written is removed."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep,
            enable_async_checkpointing=config.asynchronous,
            cleanup_tmp_directories=True,
        )
        self._directory = _directory(workdir)
        with storage.errors(self._directory):
            self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=("params", "training"))

    def save(self, step: int, state: State) -> None:
        """Starts saving `state` as `step`; returns once the arrays are copied off the device.

        Raises:
            InputError: this save, or the last one that was started, was refused by the storage.
        """
        training = {name: value for name, value in state.items() if name != "params"}
        items = ocp.args.Composite(params=_save_args(state["params"]), training=_save_args(training))
        with storage.errors(self._directory):
            self._manager.save(step, args=items, force=True)

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def restore(self, abstract_state: State) -> tuple[int, State]:
        """Reads the newest checkpoint that is whole, each array straight into the sharding of its abstract counterpart.

        Newer ones that are damaged are named on stderr and, once a whole one is found, deleted.

        Returns:
            Its step, and the state.

        Raises:
            InputError: the storage refuses, or none is whole.
        """
        training = {name: value for name, value in abstract_state.items() if name != "params"}
        wanted = {"params": abstract_state["params"], "training": training}
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder, items, sums, fault = self._directory / str(step), {}, {}, ""
            try:
                with storage.errors(folder):
                    for name, abstract in wanted.items():
                        items[name], sums[name] = _restore(folder / name, abstract)
            except InputError:
                raise
            except Exception as error:  # of many kinds: a byte may be wrong anywhere
                fault = _first_line(error)
            if _all_processes(not fault):  # else one would wait in vain for the others' part of a sum
                fault = "; ".join(filter(None, (_difference(sums[name], items[name]) for name in wanted)))
                if not fault:
                    for newer in damaged:
                        self._manager.delete(newer)
                    return step, {"params": items["params"], **items["training"]}
            damaged.append(step)
            reason = fault or "another process could not read its part"
            print(f"checkpoint {folder} is damaged and not used: {reason}", file=sys.stderr, flush=True)
        raise InputError(
            f"no checkpoint in {self._directory} is whole (tried {', '.join(map(str, damaged))}); restore one from a "
            "copy, or choose another --workdir."
        )

    def close(self) -> None:
        """Waits until the last save is complete.

        Raises:
            InputError: it was refused by the storage.
        """
        with storage.errors(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()


def _directory(workdir: epath.PathLike) -> epath.Path:
    """Where the checkpoints of a working directory are, ready to be used by orbax."""
    _hush_orbax()
    path = storage.as_path(workdir)
    if storage.is_remote(path):
        _teach_orbax()
        return path / "checkpoints"
    return path.resolve() / "checkpoints"


@functools.cache
def _hush_orbax() -> None:
    """Keeps to one line what a storage that fails puts on stderr.

    Orbax raises the error to us, but also logs it three times with its traceback, and closes an event loop to which
    the other arrays then report in vain. It also warns of metadata that it looks for in two places.
    """
    of_orbax = f"{os.sep}orbax{os.sep}"
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno < logging.WARNING or of_orbax not in record.pathname
    )
    logging.getLogger("asyncio").addFilter(lambda record: "exception was never retrieved" not in record.getMessage())
    report = sys.unraisablehook
    sys.unraisablehook = lambda what: None if str(what.exc_value) == "Event loop is closed" else report(what)


@functools.cache
def _teach_orbax() -> None:
    """Lets orbax treat s3:// as it treats gs://, and gives both the key-value stores that the rest of lm uses.

    Orbax 0.12.8 takes an s3:// path for a relative local one; these are all the places that ask.
    """
    replaced = {
        gcs_utils: {"_GCS_PATH_PREFIX": ("gs://", "s3://"), "get_kvstore_for_gcs": _kvstore_without_slash},
        tensorstore_utils: {"_use_gcs_driver": storage.is_remote, "_normalize_path": lambda path: path.rstrip("/")},
    }
    for module, names in replaced.items():
        for name, value in names.items():
            if not hasattr(module, name):
                raise InputError(
                    f"orbax-checkpoint {ocp.__version__} has changed inside ({name} is gone); for object storage "
                    "pip install orbax-checkpoint==0.12.8."
                )
            setattr(module, name, value)


def _kvstore_without_slash(path: str) -> dict[str, Any]:
    spec = storage.kvstore(path)
    return {**spec, "path": spec["path"].removesuffix("/")}


def _save_args(tree: Any) -> ocp.args.PyTreeSave:
    """How a tree is cut into chunks and files, and its checksums beside it."""
    beside: Any = {_CHECKSUMS: checksums(tree)}
    return ocp.args.PyTreeSave(
        tree,
        save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree),
        ocdbt_target_data_file_size=_FILE_BYTES,
        custom_metadata=beside,
    )


def _restore(folder: epath.Path, abstract: Any) -> tuple[Any, dict[str, int] | None]:
    """Reads a tree, and the checksums beside it: none in a checkpoint of an earlier version.

    No process waits for another here, so that each can say whether it could read its part.
    """
    arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.restore(folder, args=ocp.args.PyTreeRestore(item=abstract, restore_args=arguments))
    return tree, _saved_sums(handler.metadata(folder).custom_metadata)


def _saved_sums(metadata: Any) -> dict[str, int] | None:
    return (metadata or {}).get(_CHECKSUMS)


def checksums(tree: Any) -> dict[str, int]:
    """A number for each array, computed where the array is: the same on any mesh, another for another content.

    Storage formats guard their own indices but not the arrays: a flipped bit in one is decoded without complaint.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    sums = np.asarray(_sums([leaf for _, leaf in leaves]))
    return {jax.tree_util.keystr(path): int(value) for (path, _), value in zip(leaves, sums, strict=True)}


@jax.jit
def _sums(arrays: list[jax.Array]) -> jax.Array:
    """Of each array, the sum of its words times odd numbers that count them, modulo 2^32: no one word can change it."""

    def sum_of(array: jax.Array) -> jax.Array:
        words = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(array.shape, jnp.uint32)
        for axis in range(array.ndim):
            stride = math.prod(array.shape[axis + 1 :]) % (1 << 32)
            place += jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis) * jnp.uint32(stride)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    return jnp.stack([sum_of(jnp.asarray(array)) for array in arrays])


def _difference(saved: dict[str, int] | None, tree: Any) -> str:
    """Says where an array is not the one that was saved; empty where all are. All processes compute it together."""
    wrong = [] if saved is None else [name for name, value in checksums(tree).items() if saved.get(name) != value]
    return f"{len(wrong)} arrays are not what was saved, such as {wrong[0]}" if wrong else ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def _all_processes(mine: bool) -> bool:
    """Whether it is true in every process; all of them must ask."""
    return bool(np.all(multihost_utils.process_allgather(np.bool_(mine)))) if jax.process_count() > 1 else mine


def write_atomically(path: epath.Path, content: bytes) -> None:
    """Writes a small file that is, at every moment, either absent, the old one or complete."""
    storage.write_key(str(path.parent), path.name, content)


def check_workdir(workdir: epath.PathLike, config: Config) -> None:
    """Refuses a working directory that belongs to another config; a new one is left as it is.

    Raises:
        InputError: naming each field that a rerun may not change.
    """
    if storage.read_keys(str(workdir), [_CONFIG]) == [None]:
        return
    changes = config_lib.changed_fields(read_config(workdir), config)
    if changes:
        raise InputError(
            f"{workdir} belongs to another config: {'; '.join(changes)}. A rerun may change only "
            f"{', '.join(name + '.*' for name in config_lib.RERUN_MAY_CHANGE)}; choose another --workdir."
        )


def write_config(workdir: epath.PathLike, config: Config) -> None:
    """Keeps the config of a run; from here on the working directory belongs to it."""
    write_atomically(epath.Path(workdir) / _CONFIG, config_lib.to_json(config).encode())


def read_config(workdir: epath.PathLike) -> Config:
    """The config of a working directory.

    Raises:
        InputError: when it has none, or one that this version cannot read.
    """
    (content,) = storage.read_keys(str(workdir), [_CONFIG])
    if content is None:
        raise InputError(f"{workdir} is no working directory: it has no config.json; give the --workdir of a run.")
    try:
        return config_lib.from_dict(json.loads(content))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{workdir}/{_CONFIG} is not valid JSON ({error}); restore it or choose another directory."
        ) from error


def store_path(config: Config, workdir: epath.Path) -> str:
    """Where the token store of a run is."""
    return config.data.store or str(workdir / "store")


def locate(checkpoint: str) -> tuple[epath.Path, int]:
    """Splits `WORKDIR` or `WORKDIR/checkpoints/N` into the working directory and a step, the newest by default.

    Raises:
        InputError: when there is no such checkpoint; names the steps that exist.
    """
    match = re.fullmatch(r"(.+)/checkpoints/(\d+)/?", checkpoint)
    workdir = epath.Path(match[1] if match else checkpoint)
    read_config(workdir)
    folder = workdir / "checkpoints"
    complete = (re.fullmatch(rf"(\d+)/{_COMPLETE}", key) for key in storage.list_keys(str(folder)))
    steps = sorted(int(match[1]) for match in complete if match)
    if not steps:
        raise InputError(f"{workdir} has no checkpoint yet; train it first.")
    step = int(match[2]) if match else steps[-1]
    if step not in steps:
        raise InputError(f"{checkpoint} does not exist; {folder} has the steps {', '.join(map(str, steps))}.")
    return workdir, step


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of arrays that do not exist yet."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )


def load_params(workdir: epath.PathLike, step: int, abstract_params: State | None = None) -> State:
    """The parameters of a checkpoint.

    Args:
        abstract_params: the shapes, dtypes and shardings to read them into; by default as they were saved, on
            the default device.

    Raises:
        InputError: where a parameter is missing or has another shape, or the checkpoint cannot be read.
    """
    directory = _directory(workdir) / str(step) / "params"
    with _reading(directory):
        checkpointer = ocp.StandardCheckpointer()
        metadata: Any = checkpointer.metadata(directory).item_metadata
        if abstract_params is not None:
            _check_shapes(workdir, metadata, abstract_params)
        params = checkpointer.restore(directory, abstract_params)
        if fault := _difference(_saved_sums(metadata.custom_metadata), params):
            raise ValueError(fault)
    return params


@contextlib.contextmanager
def _reading(directory: epath.Path) -> Iterator[None]:
    """Says in one line which checkpoint cannot be read."""
    try:
        with storage.errors(directory):
            yield
    except InputError:
        raise
    except Exception as error:  # of many kinds: a byte may be wrong anywhere
        raise InputError(
            f"checkpoint {directory} is damaged ({_first_line(error)}); use another step, WORKDIR/checkpoints/N."
        ) from error


def _check_shapes(workdir: epath.PathLike, metadata: Any, abstract_params: State) -> None:
    """Refuses a checkpoint of another model, naming the first parameter that differs."""
    saved = jax.tree.map(lambda leaf: leaf.shape, dict(metadata))
    wanted = jax.tree.map(lambda leaf: leaf.shape, abstract_params)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    flat = [dict(jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_shape)) for tree in (saved, wanted)]
    for path in sorted(flat[0].keys() | flat[1].keys(), key=jax.tree_util.keystr):
        if flat[0].get(path) != flat[1].get(path):
            raise InputError(
                f"{workdir}: the parameter {jax.tree_util.keystr(path)} has shape {flat[0].get(path)}, but the config "
                f"makes {flat[1].get(path)}; give the model settings of {workdir}/{_CONFIG}."
            )
