"""Where a segment ends, in English and in Chinese."""

import random

import pytest

from lm.data.sentences import sentences

WRAPPED = """Returns the number of things that were found in the given place, or
zero if there are none. The place must exist.

Args:
    place: where to look; a long description that reaches the end of the line and
        goes on below.
    - an item that is long enough to have been wrapped by the editor, certainly
    - another item"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two!  Three?\tFour", ["One.", "Two!", "Three?", "Four"]),
        ('He said "no." Then "why?" she asked.', ['He said "no."', 'Then "why?"', "she asked."]),
        (
            "See e.g. Dr. J. Doe, i.e. him. Version 1.5 is out.",
            ["See e.g. Dr. J. Doe, i.e. him.", "Version 1.5 is out."],
        ),
        ("你好。“真的吗？”他问！好……吧", ["你好。", "“真的吗？”", "他问！", "好……", "吧"]),
        ("A line\nanother\n\n\nlast", ["A line", "another", "last"]),
        ("", []),
        (" \n\t\n", []),
        ("...", ["..."]),
    ],
)
def test_segments(text: str, expected: list[str]):
    assert sentences(text) == expected


def test_hard_wrapped_lines_are_joined_and_others_are_not():
    assert sentences(WRAPPED) == [
        "Returns the number of things that were found in the given place, or zero if there are none.",
        "The place must exist.",
        "Args:",
        "place: where to look; a long description that reaches the end of the line and",
        "goes on below.",
        "- an item that is long enough to have been wrapped by the editor, certainly",
        "- another item",
    ]


def test_text_without_punctuation_is_cut():
    assert max(map(len, sentences("word " * 1000))) <= 1000
    assert [len(part) for part in sentences("字" * 2500)] == [1000, 1000, 500]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_but_whitespace_is_lost(seed: int):
    text = "".join(random.Random(seed).choices("ab .!?。！…\n\t\"'）(A-#1", k=3000))
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(segment and segment == segment.strip() for segment in found)
