"""The flags that launchers share. A run is launched with the flags of launch/train.py: --config and --workdir."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from absl import flags
from ml_collections import config_flags

from lm import cli, storage
from lm.accelerators import Topology
from lm.cluster import actions, snapshot
from lm.cluster.actions import Action
from lm.cluster.snapshot import Snapshot
from lm.config import Config, check_divisible, mesh_sizes
from lm.errors import InputError

flags.disclaim_key_flags()  # --help of a launcher lists these flags with its own


# What a flag for `define_word` accepts, and how it is called.
OBJECT = (r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", "lower-case letters, digits, . and -")
LABEL = (r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "at most 63 lower-case letters, digits and -")
URL = (r"https?://[\w.-]+(:\d+)?(/[^\s]*)?", "http://HOST:PORT or https://...")
HOST = (rf"(\*\.)?{OBJECT[0]}", "a name in DNS")
WORD = (r"[\w.:/@,+=-]+", "letters, digits and ._-:/@,+= without spaces")


class _WordParser(flags.ArgumentParser):
    """Refuses what no cluster takes for a name, so that a dry run says it."""

    def __init__(self, name: str, kind: tuple[str, str], needed: bool):
        self.syntactic_help, self._name, self._kind, self._needed = "a name", name, kind, needed

    def parse(self, argument: str) -> str:
        if argument or self._needed:
            check_word(self._name, argument, self._kind)
        return argument

    def flag_type(self) -> str:
        return "name"


def check_word(flag: str, word: str, kind: tuple[str, str]) -> str:
    """Returns a name that a flag gives.

    Raises:
        InputError: it is none of that kind.
    """
    pattern, accepted = kind
    if not re.fullmatch(pattern, word):
        raise InputError(f"--{flag} is {word!r}; accepted: {accepted}.")
    return word


def define_word(
    name: str,
    default: str | None,
    help_: str,
    kind: tuple[str, str] = OBJECT,
    *,
    required: bool = False,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> flags.FlagHolder[str]:
    """Defines a flag for the name of something that a cluster has, such as a namespace. `kind` says what it accepts.

    It may be empty where the default is empty or None.
    """
    return flags.DEFINE(_WordParser(name, kind, bool(default)), name, default, help_, flag_values, required=required)


def define_dry_run() -> flags.FlagHolder[bool]:
    return flags.DEFINE_bool("dry_run", False, "Print what would be run, and run nothing.")


class Run(Protocol):
    """Returns the snapshot of the run that the flags describe."""

    def __call__(self, devices: int, slices: int = 1) -> Snapshot:
        """Checks the config first, so that no machine is rented for a wrong one.

        Args:
            devices: JAX devices of all machines to rent.
            slices: TPU slices among them.

        Raises:
            InputError: the config is wrong, or its mesh does not fit the devices.
        """
        ...


def define_run(where: str, shared: bool = False) -> Run:
    """Defines `--config=FILE` with its overrides and `--workdir`, and returns a function to call in `main`.

    Args:
        where: the workdir may be, as --help says it.
        shared: whether the machines have the files of this one.
    """
    config = cli.define_config()
    workdir = cli.define_path("workdir", None, f"Folder of the run: {where}.", required=True)

    def run(devices: int, slices: int = 1) -> Snapshot:
        storage.check_path(workdir.value)
        checked = config()
        check_divisible(mesh_sizes(checked.mesh, devices, slices), checked)
        if not shared:
            check_paths(checked)
        taken = snapshot.take(checked, config_arguments(), workdir.value)
        if taken.untracked:
            print(
                f"not in the snapshot, because git does not track them: {', '.join(taken.untracked)}", file=sys.stderr
            )
        return taken

    return run


def check_paths(config: Config) -> None:
    """Refuses what a run reads from paths that only this machine has. The snapshot holds the files that git tracks.

    Raises:
        InputError: a store, a tokenizer or first weights lie there.
    """
    read = {"data.tokenizer": config.data.tokenizer, "checkpoint.init_from": config.checkpoint.init_from}
    stores = {f"mixture.tasks.{name}.store": task.store for name, task in config.mixture.tasks.items()}
    for name, path in {"data.store": config.data.store, **stores, **read}.items():
        if is_here_alone(path):
            raise InputError(
                f"{name} is {path}, which only this machine has. Copy it to a bucket and give gs://... or s3://..., or "
                "give an absolute path that the machines of the run have."
            )
    if not config.data.store and is_here_alone(config.data.path):
        print(
            f"data.path is {config.data.path}, which only this machine has: the run needs a prepared store, "
            "WORKDIR/store or --config.data.store",
            file=sys.stderr,
        )


def is_here_alone(path: str) -> bool:
    """Returns whether a path means another file on another machine: a relative one that the snapshot does not hold."""
    return bool(path) and not storage.is_remote(path) and not os.path.isabs(path) and not snapshot.holds(path)


def define_topology(required: bool) -> Callable[[], Topology]:
    """Defines `--topology` and `--slices`.

    Returns:
        A function to call in `main` when --topology is given: the slices to rent.
    """
    default = None if required else ""
    text = flags.DEFINE_string("topology", default, "TPU slice, such as v5e:16x16.", required=required)
    count = flags.DEFINE_integer("slices", 1, "Slices, joined over the data-centre network.", lower_bound=1)

    def topology() -> Topology:
        parsed = Topology.parse(text.value or "")
        if flags.FLAGS["slices"].using_default_value:
            return parsed
        if parsed.slices not in (1, count.value):
            raise InputError(
                f"--topology is {text.value!r} and --slices is {count.value}; give the number of slices once."
            )
        return dataclasses.replace(parsed, slices=count.value)

    return topology


def define_name() -> Callable[[Snapshot], str]:
    """Defines `--name`.

    Returns:
        A function to call in `main` with the run. The default is the last part of the run's workdir.
    """
    name = flags.DEFINE_string("name", None, "What the cluster calls the run; default: the last part of the workdir.")
    return lambda run: named(name.value, run.workdir)


def named(name: str | None, workdir: str) -> str:
    """Returns a name that clusters accept, by default from the last part of a workdir.

    Raises:
        InputError: it is none.
    """
    part = workdir.rstrip("/").rpartition("/")[2].lower()
    given = re.sub(r"[^a-z0-9]+", "-", part).strip("-") if name is None else name
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", given):
        said = f"--name is {given!r}" if name is not None else f"no --name can be made of {part!r}, so give one"
        raise InputError(f"{said}; accepted: at most 40 lower-case letters, digits and -, a letter first.")
    return given


def config_arguments() -> list[str]:
    """Returns the config flags of this command line, with which another script can be started."""
    flag = flags.FLAGS["config"]
    changed = config_flags.get_override_values(flag).items()
    overrides = [
        f"--config.{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in changed
    ]
    return [f"--config={cli.find_config(config_flags.get_config_filename(flag))}", *overrides]


def take_command() -> list[str]:
    """Removes `--` and what follows from the command line, and returns what follows: the command to start."""
    if "--" not in sys.argv:
        return []
    end = sys.argv.index("--")
    command = sys.argv[end + 1 :]
    del sys.argv[end:]
    return command


def perform(wanted: Sequence[Action], run: Snapshot, dry_run: bool) -> int:
    """Prints actions or carries them out, and returns the launcher's exit code."""
    if dry_run:
        actions.show(wanted)
    else:
        writes = any(isinstance(each, actions.Write) for each in wanted)  # deleting machines needs no bucket
        actions.check(wanted, run.workdir if writes else "")
        actions.carry_out(wanted)
    return cli.EXIT_DONE
