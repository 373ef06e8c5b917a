"""A working directory, local or on object storage: config, tokenizer, checkpoints.

WORKDIR/config.json
WORKDIR/tokenizer.model (or the files of an imported tokenizer)
WORKDIR/checkpoints/<step>/{params,training}; a complete checkpoint has a commit_success.txt
WORKDIR/frozen, only in a run with `optim.frozen`: the frozen parameters, which its checkpoints do not repeat
"""

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from lm import checksums, lora, orbax_storage, parameters, storage
from lm import config as config_lib
from lm.checksums import Sums
from lm.config import CheckpointConfig, Config
from lm.config.paths import expand, split_step
from lm.errors import InputError
from lm.parameters import Params, Tree

State = TypeVar("State", bound=Mapping[str, object])
T = TypeVar("T")
Abstract = Tree[jax.ShapeDtypeStruct]

_CONFIG = "config.json"
_COMPLETE = "commit_success.txt"  # orbax writes it last
_FROZEN = "frozen"
_ANOTHER_STEP = "use another step, WORKDIR/checkpoints/N"
_COPY = "restore it from a copy of the working directory"


class Checkpoints:
    """Saves and restores the checkpoints of one working directory. Saving continues in the background.

    A checkpoint holds two items, so that prediction reads no optimizer state: `params` with the trained parameters,
    and `training` with the rest of the state. It gets its final name only when it is complete. Frozen parameters never
    change, so they are written once, before the first checkpoint. Each checkpoint holds their checksums, which show
    whether `frozen` belongs to it.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: CheckpointConfig,
        partition: Callable[[Params], tuple[Params, Params]] = lambda params: (params, {}),
    ):
        """Opens or creates `workdir/checkpoints`, and deletes incomplete checkpoints of a killed run.

        Args:
            partition: parameters -> the trained and the frozen ones.
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep,
            enable_async_checkpointing=config.asynchronous,
            cleanup_tmp_directories=True,
        )
        root = orbax_storage.prepare(workdir)
        self._directory, self._frozen = root / "checkpoints", root / _FROZEN
        self._partition = partition
        self._frozen_sums: Sums | None = None  # the checksums of `frozen`, once it is written or read
        with storage.errors(self._directory):
            self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=("params", "training"))

    def save(self, step: int, state: Mapping[str, object]) -> None:
        """Starts saving `state` as `step`. It returns when the arrays are copied off the devices.

        Raises:
            InputError: the storage refused this save, or the one before.
        """
        trained, frozen = self._partition(cast(Params, state["params"]))
        with storage.errors(self._directory):
            if frozen and self._frozen_sums is None:
                self._frozen_sums = orbax_storage.write(self._frozen, frozen)
            items = ocp.args.Composite(
                params=orbax_storage.save_args(trained, self._frozen_sums or {}),
                training=orbax_storage.save_args(_without_params(state), {}),
            )
            self._manager.save(step, args=items, force=True)

    def check(self) -> None:
        """Raises the failure of a save in the background, which `save` and `close` would raise later.

        Raises:
            InputError: the storage refused it.
        """
        if not self._manager.is_saving_in_progress():
            with storage.errors(self._directory):
                self._manager.wait_until_finished()  # at once

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        return self._manager.latest_step()

    def restore(self, abstract_state: State) -> tuple[int, State]:
        """Reads the newest undamaged checkpoint. Each process reads only its own shards of the arrays.

        Damaged checkpoints are named on stderr. They are deleted when an older, undamaged one is found.

        Args:
            abstract_state: shapes, dtypes and shardings of the state.

        Returns:
            The step of the checkpoint, and the state.

        Raises:
            InputError: the storage refuses, or every checkpoint is damaged.
        """
        trained, frozen = self._partition(cast(Params, abstract_state["params"]))
        if frozen:
            frozen = self._restore_frozen(frozen)
        wanted = {"params": trained, "training": _without_params(abstract_state)}
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self._directory / str(step)
            items, sums, fault = _read_all(folder, wanted)
            if not fault and checksums.elsewhere(sums["params"], items["params"]) != (self._frozen_sums or {}):
                fault = f"it was saved with other parameters than those in {self._frozen}"
            if not fault:
                for newer in damaged:
                    self._manager.delete(newer)
                params = parameters.merge(cast(Params, items["params"]), frozen)
                return step, cast(State, {"params": params, **cast(dict[str, object], items["training"])})
            damaged.append(step)
            print(f"checkpoint {folder} is damaged and not used: {fault}", file=sys.stderr, flush=True)
        raise InputError(
            f"every checkpoint in {self._directory} is damaged (tried {', '.join(map(str, damaged))}); restore one "
            "from a copy, or choose another --workdir."
        )

    def _restore_frozen(self, abstract: Params) -> Params:
        """Reads the frozen parameters, which all checkpoints share."""
        items, sums, fault = _read_all(self._frozen.parent, {_FROZEN: abstract})
        if fault:
            raise InputError(f"{self._frozen} is damaged ({fault}); {_COPY}.")
        self._frozen_sums = sums[_FROZEN]
        return items[_FROZEN]

    def close(self) -> None:
        """Waits until the last save is complete.

        Raises:
            InputError: the storage refused it.
        """
        with storage.errors(self._directory):
            self._manager.wait_until_finished()
            self._manager.close()


def _without_params(state: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in state.items() if name != "params"}


def _read_all(folder: epath.Path, wanted: dict[str, T]) -> tuple[dict[str, T], dict[str, Sums | None], str]:
    """Reads items of a folder and compares them with their checksums.

    Returns:
        The items, their saved checksums, and the first fault found in any process; the fault is empty if there is none.
    """
    items: dict[str, T] = {}
    sums: dict[str, Sums | None] = {}
    fault = ""
    try:
        with storage.errors(folder):
            for name, abstract in wanted.items():
                items[name], sums[name] = orbax_storage.read(folder / name, abstract)
    except InputError:
        raise
    except Exception as error:  # a wrong byte can raise any exception
        fault = orbax_storage.fault(error, folder)
    if not _all_processes(not fault):  # a checksum is a sum over processes; it would wait for one that failed
        return items, sums, fault or "another process could not read its part"
    return items, sums, "; ".join(filter(None, (checksums.difference(sums[name], items[name]) for name in wanted)))


def _all_processes(mine: bool) -> bool:
    """Returns whether `mine` is true in every process; all of them must call it."""
    return bool(np.all(multihost_utils.process_allgather(np.bool_(mine)))) if jax.process_count() > 1 else mine


def write_atomically(path: epath.Path, content: bytes) -> None:
    """Writes a small file. Readers find the old content or the new one, never a part."""
    storage.write_key(str(path.parent), path.name, content)


def check_workdir(workdir: epath.PathLike, config: Config) -> None:
    """Refuses a working directory that belongs to another config. It accepts a new one.

    Raises:
        InputError: fields differ that a rerun may not change; names them.
    """
    if is_new(workdir):
        return
    old = read_config(workdir)
    changes = config_lib.changed_fields(old, config)
    if changes:
        raise InputError(
            f"{workdir} belongs to another config: {'; '.join(changes)}. A rerun may change only "
            f"{', '.join(name + '.*' for name in config_lib.RERUN_MAY_CHANGE)}; choose another --workdir"
            f"{_beginning_from(workdir, config, changes)}."
        )


def is_new(workdir: epath.PathLike) -> bool:
    """Returns whether no run lives in a working directory yet."""
    return storage.read_keys(str(workdir), [_CONFIG]) == [None]


def _beginning_from(workdir: epath.PathLike, config: Config, changes: list[str]) -> str:
    """Returns how a new run begins with the weights of a working directory; empty where it cannot."""
    if any(change.startswith(("model.", "mixture.")) for change in changes) or not _steps(epath.Path(workdir)):
        return ""
    keeps = config.data.tokenizer or config.data.store
    given = [f"--workdir={str(workdir).rstrip('/')}-2", f"--config.checkpoint.init_from={workdir}"]
    given += [] if keeps else [f"--config.data.tokenizer={workdir}"]
    without = "" if keeps else ", without --config.data.vocab_size"
    return f", or begin a new run with its weights: give {shlex.join(given)} with the rest of the command{without}"


def write_config(workdir: epath.PathLike, config: Config) -> None:
    """Writes the config of a run. From then on the working directory belongs to that run."""
    write_atomically(epath.Path(workdir) / _CONFIG, config_lib.to_json(config).encode())


def read_config(workdir: epath.PathLike) -> Config:
    """Returns the config of a working directory.

    Raises:
        InputError: it has no config, or one that this version cannot read.
    """
    (content,) = storage.read_keys(str(workdir), [_CONFIG])
    if content is None:
        raise InputError(f"{workdir} has no config.json, so it is no working directory; give the --workdir of a run.")
    try:
        return config_lib.from_dict(json.loads(content), stored=True)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError, and so is text that is no UTF-8
        raise InputError(
            f"{workdir}/{_CONFIG} is not valid JSON ({error}); restore it or choose another directory."
        ) from error


def store_path(config: Config, workdir: epath.Path) -> str:
    """Returns the path of a run's token store."""
    return expand(config.data.store) if config.data.store else str(workdir / "store")


def locate(checkpoint: str) -> tuple[epath.Path, int]:
    """Splits `WORKDIR` or `WORKDIR/checkpoints/N` into working directory and step. The default is the newest step.

    Raises:
        InputError: there is no such checkpoint; names the steps that exist.
    """
    checkpoint = expand(checkpoint)
    path, number = split_step(checkpoint)
    workdir = storage.as_path(path)
    read_config(workdir)
    folder, steps = workdir / "checkpoints", _steps(workdir)
    if not steps:
        raise InputError(f"{workdir} has no checkpoint yet; train it first.")
    step = int(number) if number else steps[-1]
    if step not in steps:
        raise InputError(f"{checkpoint} does not exist; {folder} has the steps {', '.join(map(str, steps))}.")
    return workdir, step


def _steps(workdir: epath.Path) -> list[int]:
    """Returns the complete steps of a working directory, ascending."""
    keys = storage.list_keys(str(workdir / "checkpoints"))
    complete = (re.fullmatch(rf"(\d+)/{_COMPLETE}", key) for key in keys)
    return sorted(int(match[1]) for match in complete if match)


def abstract_like(tree: T, shardings: object) -> T:
    """Returns a tree of shapes and dtypes with these shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree, shardings
    )


class _Folder(NamedTuple):
    """A folder with parameters of a checkpoint: `checkpoints/<step>/params`, or `frozen`."""

    path: epath.Path
    abstract: dict[str, jax.ShapeDtypeStruct]
    remedy: str  # what a message tells the user to do if the folder is damaged


class SavedParams:
    """The parameters of a checkpoint. They can be read as a whole or in part, with adapters merged into their kernels.

    Attributes:
        abstract: path of each parameter -> its shape and dtype, placed on the first device of this process.
        trained: the same of what the checkpoint itself holds, adapters among it.
        frozen: the checksums of the other parameters, which the run does not train.
    """

    def __init__(self, workdir: epath.PathLike, step: int):
        """Reads the paths, shapes and dtypes of the parameters.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        root = orbax_storage.prepare(workdir)
        path = root / "checkpoints" / str(step) / "params"
        with _reading(path, _ANOTHER_STEP):
            trained, sums = orbax_storage.contents(path)
        self._workdir = workdir
        self._folders = [_Folder(path, parameters.flatten(trained), _ANOTHER_STEP)]
        self.frozen = checksums.elsewhere(sums, trained)
        if self.frozen:
            path = root / _FROZEN
            with _reading(path, _COPY):
                frozen, sums = orbax_storage.contents(path)
                if self.frozen != sums:
                    raise ValueError(f"it does not belong to checkpoint {step}")
            self._folders.append(_Folder(path, parameters.flatten(frozen), _COPY))
        leaves = {path: leaf for folder in self._folders for path, leaf in folder.abstract.items()}
        self.abstract, self._adapters = lora.split(leaves)
        self.trained = self._folders[0].abstract

    def check(self, wanted: Mapping[str, jax.ShapeDtypeStruct | jax.Array], below: str = "") -> None:
        """Checks that the parameters whose paths begin with `below` have the paths and shapes of a model's.

        Raises:
            InputError: they differ; names the first that does, and both shapes.
        """
        for path in sorted(self.abstract.keys() | wanted.keys()):
            old, new = (leaves[path].shape if path in leaves else None for leaves in (self.abstract, wanted))
            if path.startswith(below) and old != new:
                has = f"has shape {old}" if old is not None else "is missing"
                makes = new if new is not None else "no such parameter"
                raise InputError(
                    f"{self._workdir}: the parameter {path} {has}, but the config makes {makes}; give the model "
                    f"settings of {self._workdir}/{_CONFIG}."
                )

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """Reads these parameters alone, each into its sharding, and compares them with their checksums.

        Raises:
            InputError: one of them cannot be read.
        """
        adapters = lora.beside(wanted, self._adapters)
        found = self.read_apart({**wanted, **adapters})
        if adapters:
            found = lora.merge_placed(found, lora.scale(read_config(self._workdir).optim))
        return parameters.unflatten(found)

    def read_apart(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Reads parameters and adapters as `read` does, but merges nothing."""
        found: dict[str, jax.Array] = {}
        for folder in self._folders:
            part = parameters.unflatten({path: leaf for path, leaf in wanted.items() if path in folder.abstract})
            if part:
                with _reading(folder.path, folder.remedy):
                    tree, sums = orbax_storage.read(folder.path, cast(Params, part), partial=True)
                    if fault := checksums.difference(sums, tree):
                        raise ValueError(fault)
                found |= parameters.flatten(tree)
        return found


def load_params(workdir: epath.PathLike, step: int, abstract_params: Abstract | None = None) -> Params:
    """Reads the parameters of a checkpoint.

    Args:
        abstract_params: the shapes, dtypes and shardings to read them into. By default the dtypes are those of the
            checkpoint, and the parameters go to the first device of this process.

    Raises:
        InputError: a parameter is missing or has another shape, or the checkpoint cannot be read.
    """
    saved = SavedParams(workdir, step)
    if abstract_params is None:
        return saved.read(saved.abstract)
    wanted = parameters.flatten(abstract_params)
    saved.check(wanted)
    return saved.read(wanted)


@contextlib.contextmanager
def _reading(folder: epath.Path, remedy: str) -> Iterator[None]:
    """Turns any error of reading a folder into an `InputError` that names the folder and says what to do."""
    try:
        with storage.errors(folder):
            yield
    except InputError:
        raise
    except Exception as error:  # a wrong byte can raise any exception
        raise InputError(f"checkpoint {folder} is damaged ({orbax_storage.fault(error, folder)}); {remedy}.") from error
