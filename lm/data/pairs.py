"""A supervised pair, and the texts that a trained model is asked with."""

import re
from collections.abc import Callable
from typing import NamedTuple

from lm.errors import InputError

# What `translation_source` and `question_source` put before a text, to be taken off again.
TRANSLATION = re.compile(r"\Atranslate to (\S+): ")
QUESTION = re.compile(r"\Aquestion: .*? context: ", re.DOTALL)


class Pair(NamedTuple):
    """A source and its target, neither empty.

    Attributes:
        source: what the encoder reads.
        target: what the decoder writes.
        group: pairs of one group are in one split, training or held-out; empty: the source is the group.
    """

    source: str
    target: str
    group: str = ""


def one_line(text: str) -> str:
    """The text with runs of whitespace, line breaks included, as one space, and without lone surrogates.

    All sources and targets are written so; a question to a trained model should be too.
    """
    return " ".join(text.encode("utf-8", "replace").decode().split())


def make_pair(source: str, target: str, where: Callable[[], str]) -> Pair:
    """A pair of a file, each half as `one_line` gives it.

    Args:
        source: as read.
        target: as read.
        where: says what the pair is read from, for an error.

    Raises:
        InputError: the source or the target is empty.
    """
    pair = Pair(one_line(source), one_line(target))
    for name, text in (("source", pair.source), ("target", pair.target)):
        if not text:
            raise InputError(f"{where()} has an empty {name}; give both source and target, or remove the pair.")
    return pair


def translation_source(text: str, language: str) -> str:
    """What a translating model reads: `translate to de: Open the file`.

    Args:
        text: English.
        language: as in `data.languages`.
    """
    return f"translate to {language}: {one_line(text)}"


def question_source(question: str, context: str) -> str:
    """What an answering model reads: `question: ... context: ...`.

    Args:
        question: such as "What is axis?".
        context: a passage that holds the answer.
    """
    return f"question: {one_line(question)} context: {one_line(context)}"
