"""Answers requests with a checkpoint: python launch/predict.py --checkpoint=WORKDIR --task=fill-mask --input=FILE.

A request is a line: plain text, or a JSON object with "text" and perhaps "text_pair" or "language"; for answer with
"question" and "context". Each answer is a line of JSON, in the order of the requests, written as soon as it can be; a
request that cannot be answered gets {"error": ...} and the rest go on. --attention=FILE.png draws the attention weights
of the first.
"""

import json
import sys

from absl import flags

import lm
from lm import cli

_checkpoint = flags.DEFINE_string("checkpoint", None, "WORKDIR or WORKDIR/checkpoints/N.", required=True)
_TASKS = ["fill-mask", "next-sentence", "embed", "generate", "translate", "answer"]
_task = flags.DEFINE_enum("task", None, _TASKS, "What to do.", required=True)
_input = flags.DEFINE_string("input", "-", "File of requests, a line each; - reads standard input.")
_output = flags.DEFINE_string("output", "-", "File for the answers; - writes to standard output.")
_OPTIONS = {
    "pooling": flags.DEFINE_enum(
        "pooling", None, ["mean", "cls"], "embed: default mean, or the imported folder's own."
    ),
    "normalize": flags.DEFINE_bool("normalize", None, "embed: vectors of length one."),
    "top": flags.DEFINE_integer("top", 5, "fill-mask: candidates for each mask.", lower_bound=1),
    "language": flags.DEFINE_string("language", "", "translate: into which, for requests that do not say."),
    "seed": flags.DEFINE_integer("seed", 0, "Of sampling."),
}
_DECODING = {
    "num_beams": flags.DEFINE_integer("num_beams", None, "Hypotheses of beam search; 1 is greedy."),
    "max_length": flags.DEFINE_integer("max_length", None, "Tokens written at most; default the run's own."),
    "min_length": flags.DEFINE_integer("min_length", None, "Tokens written at least."),
    "length_penalty": flags.DEFINE_float("length_penalty", None, "Scores are divided by length to this power."),
    "temperature": flags.DEFINE_float("temperature", None, "Above 0: sample, the more evenly the higher."),
    "top_k": flags.DEFINE_integer("top_k", None, "Sample from so many tokens."),
    "top_p": flags.DEFINE_float("top_p", None, "Sample from the fewest tokens with this probability together."),
}
_attention = flags.DEFINE_string("attention", "", "Picture to draw of the first request's attention weights.")
_of = flags.DEFINE_enum("attention_of", "", ["", "encoder", "decoder", "cross"], "Whose; empty: cross before encoder.")
_layer = flags.DEFINE_integer("attention_layer", None, "Draw the heads of this layer, from 1; default all layers.")
_head = flags.DEFINE_integer("attention_head", None, "Draw this head, from 1; default the mean over heads.")


def main() -> None:
    with cli.opened(_input, "rb", sys.stdin.buffer) as lines:
        model = lm.load(_checkpoint.value)
        from lm.inference import predict, requests  # with jax

        decoding = {name: flag.value for name, flag in _DECODING.items()}
        options = {name: flag.value for name, flag in _OPTIONS.items()}
        pipeline = model.pipeline(_task.value, predict.Options(**options, decoding=decoding))
        with cli.opened(_output, "w", sys.stdout) as out:
            number = 0
            for arrived in requests.waiting_lines(lines, predict.TOGETHER):
                asked = list(requests.parse(arrived))
                if number == 0 and _attention.value:
                    from lm.inference import pictures  # with matplotlib

                    picture = pictures.Picture(_attention.value, _of.value, _layer.value, _head.value)
                    pictures.draw(model, pipeline, asked[0], picture)
                for answer in pipeline(asked, number):
                    print(json.dumps(answer, ensure_ascii=False), file=out)
                out.flush()
                number += len(asked)


if __name__ == "__main__":
    cli.run(main)
