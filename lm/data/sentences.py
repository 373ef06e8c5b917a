"""Cuts documents into sentences, in English, Chinese and Japanese."""

import re
from collections.abc import Iterator

_BULLET = re.compile(r"([-*+•>#|=~`.:]|\d+[.)]|\w+ ?:)(\s|$)|>>>|\.\. |:\w")
_FULL_LINE = 60  # columns; editors wrap at 72 or more, so a shorter line was ended on purpose
# Chinese and Japanese characters: two columns wide, and without spaces between words. Hangul is wide, but has spaces.
_CJK = r"\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff60\uffe0-\uffe6\U00020000-\U0003ffff"
_QUOTES = "“”‘’…—"  # these stand beside Latin words too
_WIDE = re.compile(rf"[{_CJK}\uac00-\ud7a3]")
_FIRST_WORD = re.compile(rf"[{_CJK}]|[^{_CJK}]+")  # a line may break after every Chinese or Japanese character
_UNSPACED = re.compile(rf"[{_CJK}][{_CJK}{_QUOTES}]|[{_QUOTES}][{_CJK}]")
_LONGEST = 1000  # characters; cuts text without punctuation, such as logs or Thai
_ABBREVIATION = r"(?<!\b[A-Z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\b[MD]r\.)(?<!\bMrs\.)(?<!\bSt\.)(?<!\bvs\.)(?<!\bcf\.)"
_SENTENCE_END = re.compile(
    r"[.!?。！？…]+(?:"
    r"(?:(?<=[。！？])|(?<=……))[”’」』）】》\"']*"
    rf"|(?<!…){_ABBREVIATION}[”’)\]\"']*(?=\s)"
    r")"
)


def sentences(text: str) -> list[str]:
    """Cuts a document into sentence-like segments, the units of next-sentence pairs.

    A line break ends a segment, unless the text is hard-wrapped there: the first word of the next line would not have
    fit into 60 columns, and the next line has the same indent and is no list item. Hard-wrapped lines are joined. In
    them a segment ends after `. ! ?` before a space, but not after initials and a few abbreviations. It also ends after
    `。！？……`, and at 1000 characters. Closing quotes belong to the segment that they close. Runs of whitespace become
    one space. In Chinese and Japanese a character counts as a word and as two columns, and lines are joined without a
    space.

    Returns:
        Segments without surrounding whitespace, none empty.
    """
    found: list[str] = []
    for paragraph in _unwrapped(text):
        start = 0
        for end in _SENTENCE_END.finditer(paragraph):
            found.append(paragraph[start : end.end()].strip())
            start = end.end()
        if start < len(paragraph):
            found.append(paragraph[start:].strip())
    if any(len(segment) > _LONGEST for segment in found):
        found = [part for segment in found for part in _shortened(segment)]
    return [segment for segment in found if segment]


def _shortened(segment: str) -> Iterator[str]:
    """Yields parts of at most 1000 characters, cut at spaces if there are any."""
    while len(segment) > _LONGEST:
        cut = segment.rfind(" ", 1, _LONGEST) + 1 or _LONGEST
        yield segment[:cut].strip()
        segment = segment[cut:]
    yield segment.strip()


def _unwrapped(text: str) -> Iterator[str]:
    """Yields the lines of a text. Hard-wrapped lines are joined, and whitespace becomes single spaces."""
    paragraph: list[str] = []
    previous_indent, previous_width = 0, 0
    for line in text.splitlines():
        words = line.split()
        if not words:
            previous_width = 0  # so that nothing joins across a blank line
            continue
        body = line.lstrip()
        indent = len(line) - len(body)
        space, first_word = " ", words[0]
        if not line.isascii():
            first_word = _FIRST_WORD.findall(first_word)[0]
            space = "" if paragraph and _UNSPACED.fullmatch(paragraph[-1][-1] + body[0]) else " "
        wrapped = (
            previous_width + len(space) + _columns(first_word) > _FULL_LINE
            and previous_width
            and indent == previous_indent
            and not _BULLET.match(body)
        )
        if paragraph and not wrapped:
            yield "".join(paragraph)
            paragraph = []
        if paragraph:
            paragraph.append(space)
        paragraph.append(" ".join(words))
        previous_indent, previous_width = indent, _columns(line.rstrip())
    if paragraph:
        yield "".join(paragraph)


def _columns(text: str) -> int:
    return len(text) if text.isascii() else len(text) + len(_WIDE.findall(text))
