"""Trains a model, or resumes a run: python launch/train.py --config=FILE --workdir=DIR."""

import startup  # noqa: F401

from lm import cli

_config = cli.define_config()
_workdir = cli.define_path("workdir", None, "Folder of the run; rerun the same command to resume.", required=True)


def main() -> int:
    config = _config()
    from lm import distributed
    from lm.training import loop

    distributed.initialize(config.train.heartbeat_timeout)
    try:
        with distributed.fail_fast(loop.Preempted, loop.Diverged):
            metrics = loop.train(config, _workdir.value, cli.given_settings())
    except loop.Preempted as notice:
        distributed.say(notice)
        return cli.EXIT_PREEMPTED
    except loop.Diverged as error:
        distributed.say(f"error: {error}")
        return cli.EXIT_FAULT
    shown = {name: value for name, value in metrics.items() if name == "loss" or name.startswith("eval/")}
    if distributed.is_primary():
        print(f"{_workdir.value}:", ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    return cli.EXIT_DONE


if __name__ == "__main__":
    cli.run(main, interrupted="no step is lost; run the same command again to go on")
