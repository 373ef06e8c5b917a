"""Answers requests with a checkpoint: python launch/predict.py --checkpoint=WORKDIR --task=fill-mask --input=FILE.

Each line is a request: plain text, or a JSON object. The object has "text" and perhaps "text_pair" or "language"; for
--task=answer it has "question" and "context". Each answer is a line of JSON, in the order of the requests, and is
written as soon as it is ready. A request that cannot be answered gets {"error": ...}; the others are still answered.
--attention=FILE.png draws the attention weights of the first request.
"""

import json
import sys

from absl import flags

import lm
from lm import cli

_checkpoint = cli.define_path("checkpoint", None, "WORKDIR or WORKDIR/checkpoints/N.", required=True)
_TASKS = ["fill-mask", "next-sentence", "embed", "generate", "translate", "answer"]
_task = flags.DEFINE_enum("task", None, _TASKS, "Task to do.", required=True)
_input = cli.define_path("input", "-", "File with a request in each line; - reads standard input.")
_output = cli.define_path("output", "-", "File for the answers; - writes to standard output.")
_OPTIONS = {
    "pooling": flags.DEFINE_enum(
        "pooling", None, ["mean", "cls"], "embed: default: that of an imported sentence encoder, else mean."
    ),
    "normalize": flags.DEFINE_bool("normalize", None, "embed: scale vectors to length one."),
    "top": flags.DEFINE_integer("top", 5, "fill-mask: candidates for each mask.", lower_bound=1),
    "language": flags.DEFINE_string("language", "", "translate: target language of requests that name none."),
    "seed": flags.DEFINE_integer("seed", 0, "Seed of sampling."),
}
_DECODING = {
    "num_beams": flags.DEFINE_integer("num_beams", None, "Beams of beam search; 1 is greedy."),
    "max_length": flags.DEFINE_integer("max_length", None, "Most tokens to write; default: that of the run."),
    "min_length": flags.DEFINE_integer("min_length", None, "Fewest tokens to write."),
    "length_penalty": flags.DEFINE_float("length_penalty", None, "Divide scores by length to this power."),
    "temperature": flags.DEFINE_float("temperature", None, "Above 0: sample from softmax(logits / temperature)."),
    "top_k": flags.DEFINE_integer("top_k", None, "Sample from so many most probable tokens."),
    "top_p": flags.DEFINE_float("top_p", None, "Sample from the fewest tokens with this probability together."),
}
_attention = cli.define_path("attention", "", "File for a picture of the first request's attention weights.")
_of = flags.DEFINE_enum(
    "attention_of", "", ["", "encoder", "decoder", "cross"], "Attention to draw; default: cross, or else encoder."
)
_layer = flags.DEFINE_integer("attention_layer", None, "Draw this layer, from 1; default: all layers.")
_head = flags.DEFINE_integer("attention_head", None, "Draw this head, from 1; default: the mean over heads.")


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
