"""Evaluates a checkpoint and prints one JSON object: python launch/evaluate.py --checkpoint=WORKDIR."""

import json

from absl import flags

from lm import cli

_checkpoint = flags.DEFINE_string("checkpoint", None, "WORKDIR or WORKDIR/checkpoints/N.", required=True)
_input = flags.DEFINE_string("input", "", "Text or .jsonl file; empty for the held-out split of the run.")
_metric = flags.DEFINE_enum("metric", "mlm", ["mlm"], "What to measure.")


def main() -> None:
    from lm.training import evaluate

    print(json.dumps(evaluate.evaluate(_checkpoint.value, _input.value), indent=2))


if __name__ == "__main__":
    cli.run(main)
