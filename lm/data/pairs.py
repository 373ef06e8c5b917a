"""Supervised pairs, and the prefixes that tell a model what to do."""

import re
from collections.abc import Callable
from typing import NamedTuple

from lm.data.characters import is_blank, without_surrogates
from lm.errors import InputError

# They match the prefixes that `translation_source` and `question_source` write.
TRANSLATION = re.compile(r"\Atranslate to (\S+): ")
QUESTION = re.compile(r"\Aquestion: .*? context: ", re.DOTALL)


class Pair(NamedTuple):
    """A source and its target. Neither is empty.

    Attributes:
        source: what the encoder reads.
        target: what the decoder writes.
        group: all pairs of a group are in the same split, training or held-out. Empty: pairs with the same source are
            a group.
    """

    source: str
    target: str
    group: str = ""


def one_line(text: str) -> str:
    """Returns the text with each run of whitespace as one space, and with lone surrogates replaced.

    All sources and targets of a corpus have this form, so requests to a trained model are brought to it too.
    """
    return " ".join(without_surrogates(text).split())


def make_pair(source: str, target: str, where: Callable[[], str]) -> Pair:
    """Returns a pair that was read from a file, its halves on one line.

    Args:
        source: as read.
        target: as read.
        where: returns the place of the pair, for the error message.

    Raises:
        InputError: the source or the target is empty.
    """
    pair = Pair(one_line(source), one_line(target))
    for name, text in (("source", pair.source), ("target", pair.target)):
        if is_blank(text):
            raise InputError(f"{where()} has an empty {name}; give both source and target, or remove the pair.")
    return pair


def translation_source(text: str, language: str) -> str:
    """Returns the source of a translation: `translate to de: Open the file`.

    Args:
        text: English.
        language: as in `data.languages`.
    """
    return f"translate to {language}: {one_line(text)}"


def question_source(question: str, context: str) -> str:
    """Returns the source of a question: `question: ... context: ...`.

    Args:
        question: such as "What is axis?".
        context: a passage that holds the answer.
    """
    return f"question: {one_line(question)} context: {one_line(context)}"
