"""Answers requests with a checkpoint: python launch/predict.py --checkpoint=WORKDIR --task=fill-mask --input=FILE.

A request is a line: plain text, or a JSON object with "text" and perhaps "text_pair" or "language"; for answer with
"question" and "context". Each answer is a line of JSON, in the order of the requests; a request that cannot be
answered gets {"error": ...} and the rest go on.
"""

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags

from lm import cli
from lm.config import InputError

_checkpoint = flags.DEFINE_string("checkpoint", None, "WORKDIR or WORKDIR/checkpoints/N.", required=True)
_TASKS = ["fill-mask", "next-sentence", "embed", "generate", "translate", "answer"]
_task = flags.DEFINE_enum("task", None, _TASKS, "What to do.", required=True)
_input = flags.DEFINE_string("input", "-", "File of requests, a line each; - reads standard input.")
_output = flags.DEFINE_string("output", "-", "File for the answers; - writes to standard output.")
_pooling = flags.DEFINE_enum("pooling", None, ["mean", "cls"], "embed: default mean, or the imported folder's own.")
_normalize = flags.DEFINE_bool("normalize", None, "embed: vectors of length one.")
_top = flags.DEFINE_integer("top", 5, "fill-mask: candidates for each mask.", lower_bound=1)
_language = flags.DEFINE_string("language", "", "translate: into which, for requests that do not say.")
_seed = flags.DEFINE_integer("seed", 0, "Of sampling.")
_DECODING = {
    "num_beams": flags.DEFINE_integer("num_beams", None, "Hypotheses of beam search; 1 is greedy."),
    "max_length": flags.DEFINE_integer("max_length", None, "Tokens written at most; default the run's own."),
    "min_length": flags.DEFINE_integer("min_length", None, "Tokens written at least."),
    "length_penalty": flags.DEFINE_float("length_penalty", None, "Scores are divided by length to this power."),
    "temperature": flags.DEFINE_float("temperature", None, "Above 0: sample, the more evenly the higher."),
    "top_k": flags.DEFINE_integer("top_k", None, "Sample from so many tokens."),
    "top_p": flags.DEFINE_float("top_p", None, "Sample from the fewest tokens with this probability together."),
}


def answers(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The answers of the task."""
    from lm.inference.predict import Predictor
    from lm.inference.requests import parse
    from lm.inference.write import Writer, with_defaults

    if _task.value in ("fill-mask", "next-sentence", "embed"):
        predictor = Predictor.load(_checkpoint.value)
        match _task.value:
            case "fill-mask":
                return predictor.fill_mask(parse(lines), top=_top.value)
            case "next-sentence":
                return predictor.next_sentence(parse(lines))
        return predictor.embed(parse(lines), _pooling.value, _normalize.value)
    writer = Writer.load(_checkpoint.value)
    decoding = with_defaults(writer, **{name: flag.value for name, flag in _DECODING.items()})
    match _task.value:
        case "translate":
            return writer.translate(parse(lines), _language.value, decoding, _seed.value)
        case "answer":
            return writer.answer(parse(lines), decoding, _seed.value)
    return writer.generate(parse(lines), decoding, _seed.value)


def main() -> None:
    with contextlib.ExitStack() as stack:
        try:
            lines = sys.stdin.buffer if _input.value == "-" else stack.enter_context(open(_input.value, "rb"))
        except OSError as error:
            raise InputError(f"--input is {_input.value!r}: {error.strerror}; give a file, or - for stdin.") from error
        found = answers(lines)
        try:
            out = sys.stdout if _output.value == "-" else stack.enter_context(open(_output.value, "w"))
        except OSError as error:
            raise InputError(f"--output is {_output.value!r}: {error.strerror}; give a writable file.") from error
        for answer in found:
            print(json.dumps(answer, ensure_ascii=False), file=out)


if __name__ == "__main__":
    cli.run(main)
