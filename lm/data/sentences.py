"""Cuts documents into sentences, in English and in Chinese."""

import re
from collections.abc import Iterator

_BULLET = re.compile(r"([-*+•>#|=~`.:]|\d+[.)]|\w+ ?:)(\s|$)|>>>|\.\. |:\w")
_FULL_LINE = 60  # columns; editors wrap at 72 or more, so a shorter line was ended on purpose
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
    one space.

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
        wrapped = (
            previous_width + 1 + len(words[0]) > _FULL_LINE
            and previous_width
            and indent == previous_indent
            and not _BULLET.match(body)
        )
        if paragraph and not wrapped:
            yield " ".join(paragraph)
            paragraph = []
        paragraph += words
        previous_indent, previous_width = indent, len(line.rstrip())
    if paragraph:
        yield " ".join(paragraph)
