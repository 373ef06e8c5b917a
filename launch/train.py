"""Pretrains a model, or goes on with a run: python launch/train.py --config=FILE --workdir=DIR."""

import sys

from absl import flags

from lm import cli

_config = cli.define_config()
_workdir = flags.DEFINE_string("workdir", None, "Folder of the run; rerun the same command to resume.", required=True)


def main() -> int:
    from lm.training import train

    try:
        metrics = train.train(_config(), _workdir.value)
    except train.Preempted as notice:
        print(notice, file=sys.stderr)
        return cli.EXIT_PREEMPTED
    except train.Diverged as error:
        print("error:", error, file=sys.stderr)
        return cli.EXIT_FAULT
    shown = {name: value for name, value in metrics.items() if name == "loss" or name.startswith("eval/")}
    print(f"{_workdir.value}:", ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    return cli.EXIT_DONE


if __name__ == "__main__":
    cli.run(main)
