"""Answers requests with a checkpoint: python launch/predict.py --checkpoint=WORKDIR --task=fill-mask --input=FILE.

Each line is a request: plain text, or a JSON object. The object has "text" and perhaps "text_pair" or "language"; for
--task=answer it has "question" and "context". Each answer is a line of JSON, in the order of the requests, and is
written as soon as it is ready. A request that cannot be answered gets {"error": ...}; the others are still answered.
--attention=FILE.png draws the attention weights of the first request.

With --runner, or of *.parquet, files with requests become a folder of Parquet, here or on Ray: see launch/README.md.
"""

import lm.startup

import json
import sys

from absl import flags

import lm
from lm import cli
from lm.data import workers
from lm.inference import decoding_flags, requests

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
_attention = cli.define_path("attention", "", "File for a picture of the first request's attention weights.")
_of = flags.DEFINE_enum("attention_of", "", ["", "encoder", "decoder", "cross"], "Default: cross, or else encoder.")
_runner = flags.DEFINE_string("runner", None, "Write Parquet, on this machine or Ray: local, ray or ray://HOST:PORT.")
_workers = flags.DEFINE_integer("workers", None, "Models on Ray; default: one for each GPU, or node.", lower_bound=1)
_id = flags.DEFINE_string("id_field", "id", "With --runner: the column or JSON field that names a request.")
_text = flags.DEFINE_string("text_field", "text", "With --runner: the column of Parquet that holds the text.")
_layer = flags.DEFINE_integer("attention_layer", None, "Draw this layer, from 1; default: all layers.")
_head = flags.DEFINE_integer("attention_head", None, "Draw this head, from 1; default: the mean over heads.")


def answer_files() -> None:
    from lm.inference import dataset, parts, predict  # with jax

    options = predict.Options(**{name: flag.value for name, flag in _OPTIONS.items()}, decoding=_decoding())
    job = dataset.Job(_checkpoint.value, _task.value, options, parts.Columns(_id.value, _text.value))
    counts = dataset.answer(job, _input.value, _output.value, _runner.value or "local", _workers.value)
    print(f"{_output.value}: {counts.requests:,} answers, {counts.errors:,} of them errors; {counts.tokens:,} tokens")


def main() -> None:
    if _runner.value is not None or _input.value.endswith(".parquet"):
        return answer_files()
    with cli.opened(_input, "rb", sys.stdin.buffer) as lines:
        with workers.announced(f"loading {_checkpoint.value}"):
            model = lm.load(_checkpoint.value)
            from lm.inference import predict  # with jax

        options = {name: flag.value for name, flag in _OPTIONS.items()}
        pipeline = model.pipeline(_task.value, predict.Options(**options, decoding=_decoding()))
        with cli.opened(_output, "w", sys.stdout) as out:
            number = 0
            for arrived in requests.waiting_lines(lines, predict.TOGETHER):
                asked = list(requests.parse(arrived))
                if number == 0 and _attention.value:
                    from lm.inference import pictures  # with matplotlib

                    picture = pictures.Picture(_attention.value, _of.value, _layer.value, _head.value)
                    pictures.draw(model, pipeline, asked[0], picture)
                with workers.announced(f"compiling {_task.value}, then answering", enabled=number == 0):
                    answers = pipeline(asked, number)
                out.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
                out.flush()
                number += len(asked)


if __name__ == "__main__":
    cli.run(main, interrupted="each answer that is written is whole")
