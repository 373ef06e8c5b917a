"""The flags that launchers share. They are those of launch/train.py: a run is launched with the command that trains."""

import re
import sys
from collections.abc import Callable, Iterable

from absl import flags
from ml_collections import config_flags

from lm import cli
from lm.cluster import snapshot, steps
from lm.cluster.snapshot import Snapshot
from lm.cluster.steps import Step
from lm.errors import InputError


def define_dry_run() -> flags.FlagHolder[bool]:
    return flags.DEFINE_bool("dry_run", False, "Print what would be run, and run nothing.")


def define_run() -> Callable[[], Snapshot]:
    """Defines `--config=FILE` with its overrides and `--workdir`.

    Returns:
        A function to call in `main`: the run that they describe, checked here so that no machine is rented for a
        config that is wrong.
    """
    config = cli.define_config()
    workdir = flags.DEFINE_string("workdir", None, "Folder of the run: gs://, s3:// or shared.", required=True)

    def run() -> Snapshot:
        taken = snapshot.take(config(), config_arguments(), workdir.value)
        if taken.untracked:
            print(f"not in the snapshot, as git does not track them: {', '.join(taken.untracked)}", file=sys.stderr)
        return taken

    return run


def define_name() -> Callable[[Snapshot], str]:
    """Defines `--name`. Returns a function of the run, whose workdir gives the default."""
    name = flags.DEFINE_string("name", None, "What the cluster calls the run; default: the last part of the workdir.")

    def chosen(run: Snapshot) -> str:
        part = run.workdir.rpartition("/")[2].lower()
        given = re.sub(r"[^a-z0-9]+", "-", part).strip("-") if name.value is None else name.value
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", given):
            raise InputError(
                f"--name is {given!r}; accepted: at most 40 lower-case letters, digits and -, a letter first."
            )
        return given

    return chosen


def config_arguments() -> list[str]:
    """The config flags of this command line, for another script to be started with."""
    flag = flags.FLAGS["config"]
    changed = config_flags.get_override_values(flag).items()
    overrides = [
        f"--config.{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in changed
    ]
    return [f"--config={config_flags.get_config_filename(flag)}", *overrides]


def take_command() -> list[str]:
    """Takes what follows -- off the command line: the command that a launcher is to start."""
    if "--" not in sys.argv:
        return []
    end = sys.argv.index("--")
    command = sys.argv[end + 1 :]
    del sys.argv[end:]
    return command


def perform(wanted: Iterable[Step], dry_run: bool) -> int:
    """Shows steps or carries them out; the exit code of a launcher."""
    if dry_run:
        steps.show(wanted)
    else:
        steps.carry_out(wanted)
    return cli.EXIT_DONE
