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


class Checkpoints:
    """The checkpoints of one working directory, written while training goes on.

    A checkpoint holds two items, so that prediction reads no optimizer state: `params`, and `training` with
    the rest of the state. It appears under its final name only when it is complete.
    """

    def __init__(self, workdir: epath.PathLike, config: CheckpointConfig | None = None):
        """Opens (and creates, if need be) `workdir/checkpoints`; without a config it is opened for reading."""
        options = ocp.CheckpointManagerOptions(read_only=True)
        if config is not None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=config.keep,
                enable_async_checkpointing=config.asynchronous,
                cleanup_tmp_directories=True,
            )
        directory = epath.Path(workdir).resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            directory, options=options, item_names=("params", "training") if config is not None else None
        )

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

    def restore_params(self, step: int, abstract_params: State) -> State:
        """Reads the parameters alone."""
        items = ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
        return self._manager.restore(step, args=items)["params"]

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


def claim_workdir(workdir: epath.PathLike, config: Config) -> None:
    """Writes the config into a new working directory, or checks that an existing one belongs to it.

    Raises:
        InputError: naming each field that a rerun may not change.
    """
    path = epath.Path(workdir) / "config.json"
    if path.exists():
        changes = config_lib.changed_fields(read_config(workdir), config)
        if changes:
            raise InputError(
                f"{workdir} belongs to another config: {'; '.join(changes)}. A rerun may change only "
                f"{', '.join(name + '.*' for name in config_lib.RERUN_MAY_CHANGE)}; choose another --workdir."
            )
    write_atomically(path, config_lib.to_json(config).encode())


def read_config(workdir: epath.PathLike) -> Config:
    """The config of a working directory.

    Raises:
        InputError: when it has none, or one that this version cannot read.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"{workdir} is no working directory: it has no config.json; give the --workdir of a run.")
    try:
        return config_lib.from_dict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}); restore it or choose another directory.") from error


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


def load_params(workdir: epath.PathLike, step: int) -> State:
    """The parameters of a checkpoint on the default device, shapes and dtypes as they were saved."""
    directory = epath.Path(workdir).resolve() / "checkpoints" / str(step) / "params"
    return ocp.StandardCheckpointer().restore(directory)
