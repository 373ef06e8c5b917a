"""Answers requests with a checkpoint: python launch/predict.py --checkpoint=WORKDIR --task=fill-mask --input=FILE.

Each line is a request: plain text, or a JSON object. The object has "text" and perhaps "text_pair" or "language"; for
--task=answer it has "question" and "context". Each answer is a line of JSON, in the order of the requests, and is
written as soon as it is ready. A request that cannot be answered gets {"error": ...}; the others are still answered.
--attention=FILE.png draws the attention weights of the first request.

With --runner, or of *.parquet, files with requests become a folder of Parquet, here or on Ray: see launch/README.md.
"""

import startup  # noqa: F401

import sys

from absl import flags

import lm
from lm import cli
from lm.data import workers
from lm.inference import dataset_flags, decoding_flags, output, requests

_checkpoint = cli.define_path("checkpoint", None, "WORKDIR or WORKDIR/checkpoints/N.", required=True)
_task = flags.DEFINE_enum("task", None, requests.TASKS, "Task to do.", required=True)
_input = cli.define_path("input", "-", "File with a request in each line; - reads standard input.")
_output = cli.define_path("output", "-", "File for the answers; - writes to standard output.")
# As in lm.data.sentence_encoder, which takes a second to import.
_POOLINGS = ["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
_OPTIONS = {
    "pooling": flags.DEFINE_enum("pooling", None, _POOLINGS, "embed: default: as the imported encoder, else mean."),
    "normalize": flags.DEFINE_bool("normalize", None, "embed: scale vectors to length one."),
    "prompt": flags.DEFINE_string("prompt", None, "embed: text to put before every text."),
    "prompt_name": flags.DEFINE_string("prompt_name", None, "embed: name of the model's prompt to put before texts."),
    "top": flags.DEFINE_integer("top", 5, "fill-mask: candidates for each mask.", lower_bound=1),
    "language": flags.DEFINE_string("language", "", "translate: target, or SOURCE-TARGET, of requests that name none."),
    "seed": flags.DEFINE_integer("seed", 0, "Seed of sampling."),
}
_decoding = decoding_flags.define_decoding()
_attention = cli.define_picture(
    "attention", "", "File for a picture of the first request's attention weights.", (".png", ".pdf", ".svg")
)
_of = flags.DEFINE_enum("attention_of", "", ["", "encoder", "decoder", "cross"], "Default: cross, or else encoder.")
_layer = flags.DEFINE_integer("attention_layer", None, "Draw this layer, from 1; default: all layers.")
_head = flags.DEFINE_integer("attention_head", None, "Draw this head, from 1; default: the mean over heads.")
_dataset = dataset_flags.define_dataset()


def options():
    from lm.inference import predict  # with jax

    return predict.Options(**{name: flag.value for name, flag in _OPTIONS.items()}, decoding=_decoding())


def main() -> None:
    decoding_flags.refuse_without_effect(_task.value, [*_OPTIONS, *_decoding()])
    if (runner := _dataset.runner(_input.value)) is not None:
        return _dataset.answer(runner, _checkpoint.value, _task.value, options, _input.value, _output.value)
    with cli.opened(_input, "rb", sys.stdin.buffer) as lines:
        with workers.announced(f"loading {_checkpoint.value}"):
            model = lm.load(_checkpoint.value)
            pipeline = model.pipeline(_task.value, options())
        if _task.value == "translate":
            from lm.inference import languages

            languages.say_default(model.loaded.config, options().language)
        with output.opened(_output, _input) as out:
            number = 0
            for arrived in requests.waiting_lines(lines):
                asked = list(requests.parse(arrived))
                if number == 0 and _attention.value:
                    from lm.inference.pictures import Picture, draw  # with matplotlib

                    draw(model, pipeline, asked[0], Picture(_attention.value, _of.value, _layer.value, _head.value))
                with workers.announced(f"compiling {_task.value}, then answering", enabled=number == 0):
                    answers = pipeline(asked, number)
                out.write(answers)
                number += len(asked)


if __name__ == "__main__":
    cli.run(main, interrupted="each answer that is written is whole")
