"""Evaluates a checkpoint and prints one JSON object: python launch/evaluate.py --checkpoint=WORKDIR.

By default, and with --metric=perplexity or mlm, it measures the loss of the model's own objective on held-out text.
With bleu, chrf, rouge or exact-match it scores what the model writes against held-out pairs, next to two baselines.
With these a line of --input that holds no pair is counted and named, and the others are scored.
"""

import startup  # noqa: F401

import json
import sys

from absl import flags

from lm import cli
from lm.data import workers
from lm.inference.metrics import METRICS

_checkpoint = cli.define_path("checkpoint", None, "WORKDIR or WORKDIR/checkpoints/N.", required=True)
_input = cli.define_path(
    "input", "", "Text, JSON lines, Parquet, or .tsv with pairs; default: the run's held-out split."
)
_OF_LOSSES = ("mlm", "perplexity")
_NAMED = 5  # lines that are left out
_metric = flags.DEFINE_enum("metric", "perplexity", [*_OF_LOSSES, *METRICS], "What to measure.")
_mask_rate = flags.DEFINE_float(
    "mask_rate",
    None,
    "Share of the tokens that are masked or hidden; it is printed with the losses. The default is objective.mask_rate "
    "of the run; of an imported model it is 0.15, or 0.3 with infilling. Losses of two models compare only at one "
    "share and with one tokenizer: give both the same.",
    lower_bound=0.001,
    upper_bound=0.999,
)
_examples = flags.DEFINE_integer("examples", 1000, "Number of pairs to score, 0 for all.", lower_bound=0)
_shown = flags.DEFINE_integer("shown", 0, "Number of pairs to print with the model's outputs.", lower_bound=0)
_num_beams = flags.DEFINE_integer(
    "num_beams", None, "Beams of beam search; 1 is greedy; default: that of the model.", lower_bound=1
)


def main() -> None:
    if _metric.value in _OF_LOSSES:
        cli.refuse_given(("examples", "shown", "num_beams"), f"with --metric={_metric.value}")
        with workers.announced("loading JAX"):
            from lm.training import perplexity

        found = perplexity.measure(_checkpoint.value, _input.value, _mask_rate.value)
    else:
        cli.refuse_given(("mask_rate",), f"with --metric={_metric.value}")
        with workers.announced("loading JAX"):
            from lm.inference import comparison

        compared = comparison.compare(
            _checkpoint.value,
            _metric.value,
            input_path=_input.value,
            limit=_examples.value,
            shown=_shown.value,
            num_beams=_num_beams.value,
        )
        found = {**compared.scores, "shown": compared.shown}
        if compared.left_out:
            found["left_out"] = compared.left_out
            lines, more = len(compared.left_out), len(compared.left_out) > _NAMED
            reasons = [*compared.left_out[:_NAMED], *(["the others are in the answer, as left_out"] if more else [])]
            print(f"left out {lines:,} line{'s' * (lines > 1)}:", *reasons, sep="\n  ", file=sys.stderr)
    print(json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    cli.run(main, interrupted="nothing was measured to the end")
