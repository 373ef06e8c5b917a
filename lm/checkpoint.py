"""A working directory on disk: config, tokenizer and checkpoints. The only file that imports orbax.

WORKDIR/config.json
WORKDIR/tokenizer.model (or the files of an imported tokenizer)
WORKDIR/checkpoints/<step>/{params,training}
"""

import json
import re
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from lm import config as config_lib
from lm.config import CheckpointConfig, Config, InputError

State = dict[str, Any]

_CONFIG = "config.json"


class Checkpoints:
    """The checkpoints of one working directory, written while training goes on.

    A checkpoint holds two items, so that prediction reads no optimizer state: `params`, and `training` with
    the rest of the state. It appears under its final name only when it is complete.
    """

    def __init__(self, workdir: epath.PathLike, config: CheckpointConfig):
        """Opens `workdir/checkpoints`, and creates it if need be."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep,
            enable_async_checkpointing=config.asynchronous,
            cleanup_tmp_directories=True,
        )
        directory = epath.Path(workdir).resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(directory, options=options, item_names=("params", "training"))

    def save(self, step: int, state: State) -> None:
        """Starts saving `state` as `step`; returns once the arrays are copied off the device."""
        training = {name: value for name, value in state.items() if name != "params"}
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state["params"]),
            training=ocp.args.StandardSave(training),
        )
        self._manager.save(step, args=items, force=True)

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def restore(self, step: int, abstract_state: State) -> State:
        """Reads a whole state, each array straight into the sharding of its abstract counterpart."""
        training = {name: value for name, value in abstract_state.items() if name != "params"}
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(abstract_state["params"]),
            training=ocp.args.StandardRestore(training),
        )
        restored = self._manager.restore(step, args=items)
        return {"params": restored["params"], **restored["training"]}

    def close(self) -> None:
        """Waits until the last save is complete."""
        self._manager.wait_until_finished()
        self._manager.close()


def write_atomically(path: epath.Path, content: bytes) -> None:
    """Writes a small file that is, at every moment, either absent, the old one or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.partial"
    temporary.write_bytes(content)
    temporary.replace(path)


def check_workdir(workdir: epath.PathLike, config: Config) -> None:
    """Refuses a working directory that belongs to another config; a new one is left as it is.

    Raises:
        InputError: naming each field that a rerun may not change.
    """
    if not (epath.Path(workdir) / _CONFIG).exists():
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
    path = epath.Path(workdir) / _CONFIG
    if not path.exists():
        raise InputError(f"{workdir} is no working directory: it has no config.json; give the --workdir of a run.")
    try:
        return config_lib.from_dict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}); restore it or choose another directory.") from error


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
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []
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
        InputError: where a parameter is missing or has another shape.
    """
    directory = epath.Path(workdir).resolve() / "checkpoints" / str(step) / "params"
    checkpointer = ocp.StandardCheckpointer()
    if abstract_params is None:
        return checkpointer.restore(directory)
    metadata: Any = checkpointer.metadata(directory)
    saved = jax.tree.map(lambda leaf: leaf.shape, dict(metadata.item_metadata))
    wanted = jax.tree.map(lambda leaf: leaf.shape, abstract_params)
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    flat = [dict(jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_shape)) for tree in (saved, wanted)]
    for path in sorted(flat[0].keys() | flat[1].keys(), key=jax.tree_util.keystr):
        if flat[0].get(path) != flat[1].get(path):
            raise InputError(
                f"{workdir}: the parameter {jax.tree_util.keystr(path)} has shape {flat[0].get(path)}, but the config "
                f"makes {flat[1].get(path)}; give the model settings of {workdir}/{_CONFIG}."
            )
    return checkpointer.restore(directory, abstract_params)
