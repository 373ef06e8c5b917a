"""Answers requests with a checkpoint: python launch/predict.py --checkpoint=WORKDIR --task=fill-mask --input=FILE.

A request is a line: plain text, or a JSON object with "text" and perhaps "text_pair". Each answer is a line of
JSON, in the order of the requests; a request that cannot be answered gets {"error": ...} and the rest go on.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from lm import cli
from lm.config import InputError

_checkpoint = flags.DEFINE_string("checkpoint", None, "WORKDIR or WORKDIR/checkpoints/N.", required=True)
_task = flags.DEFINE_enum("task", None, ["fill-mask", "next-sentence", "embed"], "What to do.", required=True)
_input = flags.DEFINE_string("input", "-", "File of requests, a line each; - reads standard input.")
_output = flags.DEFINE_string("output", "-", "File for the answers; - writes to standard output.")
_pooling = flags.DEFINE_enum("pooling", None, ["mean", "cls"], "embed: default mean, or the imported folder's own.")
_normalize = flags.DEFINE_bool("normalize", None, "embed: vectors of length one.")
_top = flags.DEFINE_integer("top", 5, "fill-mask: candidates for each mask.", lower_bound=1)


def requests(lines: Iterator[bytes]) -> Iterator[Any]:
    """Each line as a request; one that cannot be read becomes None, which no task accepts."""
    for line in lines:
        try:
            text = line.decode("utf-8").rstrip("\r\n")
            yield json.loads(text) if text.lstrip().startswith("{") else text
        except ValueError:
            yield None


def main() -> None:
    from lm.inference.predict import Predictor

    with contextlib.ExitStack() as stack:
        try:
            lines = sys.stdin.buffer if _input.value == "-" else stack.enter_context(open(_input.value, "rb"))
        except OSError as error:
            raise InputError(f"--input is {_input.value!r}: {error.strerror}; give a file, or - for stdin.") from error
        predictor = Predictor.load(_checkpoint.value)
        match _task.value:
            case "fill-mask":
                answers = predictor.fill_mask(requests(lines), top=_top.value)
            case "next-sentence":
                answers = predictor.next_sentence(requests(lines))
            case _:
                answers = predictor.embed(requests(lines), _pooling.value, _normalize.value)
        try:
            out = sys.stdout if _output.value == "-" else stack.enter_context(open(_output.value, "w"))
        except OSError as error:
            raise InputError(f"--output is {_output.value!r}: {error.strerror}; give a writable file.") from error
        for answer in answers:
            print(json.dumps(answer, ensure_ascii=False), file=out)


if __name__ == "__main__":
    cli.run(main)
