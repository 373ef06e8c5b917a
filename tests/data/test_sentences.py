"""Where a segment ends, in English, Chinese, Japanese and Korean."""

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


@pytest.mark.parametrize(
    "sentence",
    [
        "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈剑号巨阙珠称夜光果珍李柰菜重芥姜。",
        "他说：“我们在春天里看见了很多很多的花”，然后又说：“秋天里看见了很多很多的果子”，最后他什么都没有说，只是慢慢地走回家里去了。",
        "わたしたちはカタカナとひらがなと漢字をまぜて書きますから、行の終わりがことばの途中にくることがよくありますが、空白は入りません。",
    ],
)
@pytest.mark.parametrize("width", [32, 35, 40])
def test_hard_wrapped_chinese_and_japanese_is_joined_without_spaces(sentence: str, width: int):
    lines = [sentence[start : start + width] for start in range(0, len(sentence), width)]
    assert sentences("\n".join(lines)) == [sentence]


def test_hard_wrapped_lines_of_chinese_and_english_keep_the_space_between_words():
    text = (
        "这一段文字是用中文和英文写的，每一行都很长，所以编辑器把它们分成\n了好几行，里面也有 GitHub\n这样的词，"
        "而且还有很多很多很多很多很多很多别的英文词，例如 Python\nand other languages。"
    )
    assert sentences(text) == [
        "这一段文字是用中文和英文写的，每一行都很长，所以编辑器把它们分成了好几行，里面也有 GitHub",
        "这样的词，而且还有很多很多很多很多很多很多别的英文词，例如 Python and other languages。",
    ]


@pytest.mark.parametrize("script", ["字", "か"])
def test_titles_stay_one_on_each_line_however_long_the_next_is(script: str):
    titles = [script * length for length in (20, 45, 12, 28, 60, 29)]
    assert sentences("\n".join(titles[:2])) == titles[:2]
    assert sentences("\n".join(titles[2:5])) == titles[2:5]


def test_korean_has_spaces_between_words():
    lines = ["우리는 봄에 많은 꽃을 보았고 가을에는 많은 열매를 보았으며 겨울에는", "눈을 보았다."]
    assert sentences("\n".join(lines)) == [" ".join(lines)]


def test_text_without_punctuation_is_cut():
    assert max(map(len, sentences("word " * 1000))) <= 1000
    assert [len(part) for part in sentences("字" * 2500)] == [1000, 1000, 500]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_but_whitespace_is_lost(seed: int):
    text = "".join(random.Random(seed).choices("ab .!?。！…\n\t\"'）(A-#1", k=3000))
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(segment and segment == segment.strip() for segment in found)
