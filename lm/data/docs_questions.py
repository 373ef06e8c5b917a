"""Makes questions about docstrings from the docstrings' own sections.

    question: What does the argument axis mean? context: Sum of array elements ... -> Axis along which ...

Docstrings in NumPy's, Google's and Sphinx's style describe parameters (meaning and type), the returned value, and when
an exception is raised. A question is one of a few templates with a name; the answer is a span of the passage: the first
sentence of a description, or a type. The passage is the entry of the name with some of the lines around it, at most 400
characters. Lengths of 50 to 100, 100 to 200 and 200 to 400 characters are equally frequent: a model learns to copy from
short passages much sooner than from long ones, and then can do both.

No person asked these questions. The form of the section tells where the answer is, so a model learns to find a name and
to copy what follows. It need not understand, combine or infer, and there is always an answer. We leave out names that a
docstring describes twice, names that it describes together, answers of more than 200 characters, and entries that
another docstring has too.
"""

import bisect
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lm.data.pairs import Pair, one_line, question_source
from lm.data.sentences import sentences
from lm.data.workers import ParallelMap

_TEMPLATES = {
    "parameter": (
        "What is {}?",
        "What does {} mean?",
        "What is the argument {} for?",
        "How is the parameter {} described?",
    ),
    "type": ("What type is {}?", "Which type does the parameter {} have?", "What can be given as {}?"),
    "returns": ("What is returned?", "What does it return?", "What is the result of the call?"),
    "raises": ("When is {} raised?", "What causes {}?", "In which case does {} occur?"),
}
_LONGEST_CONTEXT = 400  # characters, about 100 tokens
_SHORTEST_CONTEXT = 50
_LONGEST_ANSWER = 200
_DOCSTRINGS_AT_ONCE = 500

_SECTIONS = {
    **dict.fromkeys(("parameters", "other parameters", "args", "arguments", "keyword arguments"), "parameter"),
    **dict.fromkeys(("attributes", "params"), "parameter"),
    **dict.fromkeys(("returns", "return", "yields"), "returns"),
    **dict.fromkeys(("raises", "exceptions"), "raises"),
}
_UNDERLINE = re.compile(r"\s*-{3,}\s*$")
_GOOGLE_HEADER = re.compile(r"(\s*)([A-Z][A-Za-z ]+):\s*$")
_NUMPY_ENTRY = re.compile(r"([\w.*]+)(?: ?: *(.+))?$")
_GOOGLE_ENTRY = re.compile(r"[`*]*([\w.]+)`*(?: \(([^()]*)\))?: +(\S.*)$")
_SPHINX_ENTRY = re.compile(r":(param|parameter|arg|raises?|returns?)(?: +([^:]*))?: *(.*)$")
_LIST = re.compile(r"[-*+•] |\d+[.)] |>>>|\.\. ")
_DEFAULT = re.compile(r",? *(?:optional|default\b.*)$")


class _Entry(NamedTuple):
    """The description of a name: lines `start:stop` of the docstring."""

    kind: str
    name: str
    answer: str
    start: int
    stop: int


def pairs(docstrings: Sequence[str], parallel_map: ParallelMap = map) -> list[Pair]:
    """Returns questions with their passages, and the answers.

    Args:
        docstrings: cleaned as by `inspect.cleandoc`.
        parallel_map: applied to groups of docstrings.

    Returns:
        Pairs in the order of the docstrings. The hash of a docstring is its pairs' group; no passage is in two groups.
    """
    chunks = [docstrings[i : i + _DOCSTRINGS_AT_ONCE] for i in range(0, len(docstrings), _DOCSTRINGS_AT_ONCE)]
    found: list[Pair] = []
    entries: set[tuple[str, str, str]] = set()
    group_of: dict[str, str] = {}
    for chunk in parallel_map(_questions, chunks):
        for context, group, entry in chunk:
            key = (entry.kind, entry.name, entry.answer)
            if key in entries or group_of.setdefault(context, group) != group:
                continue
            entries.add(key)
            found.append(Pair(question_source(_question(entry, context), context), entry.answer, group))
    return found


def _questions(docstrings: Sequence[str]) -> list[tuple[str, str, _Entry]]:
    """Returns (passage, group, entry) of some docstrings. Runs in a worker."""
    return [
        (context, hashlib.sha256(docstring.encode()).hexdigest(), entry)
        for docstring in docstrings
        for context, entry in _asked(docstring)
    ]


def _question(entry: _Entry, context: str) -> str:
    templates = _TEMPLATES[entry.kind]
    choice = hashlib.sha256(f"{entry.kind} {entry.name} {context}".encode()).digest()[0]
    return templates[choice % len(templates)].format(entry.name)


def _asked(docstring: str) -> Iterator[tuple[str, _Entry]]:
    """Yields the entries of a docstring that have one answer in their passage, each with its passage."""
    lines = docstring.splitlines()
    entries = _entries(lines)
    described = [(entry.kind, entry.name) for entry in entries]
    cuts = _cuts(lines, entries)
    for entry in entries:
        start, stop = _passage(lines, cuts, entry)
        context = one_line("\n".join(lines[start:stop]))
        unique = described.count((entry.kind, entry.name)) == 1
        if unique and entry.answer in context and len(context) <= _LONGEST_CONTEXT:
            yield context, entry


def _cuts(lines: list[str], entries: list[_Entry]) -> list[int]:
    """Returns the lines before which a passage may begin or end: not within an entry, not below a header."""
    within = {line for entry in entries for line in range(entry.start + 1, entry.stop)}
    within |= {i for i in range(1, len(lines)) if _UNDERLINE.match(lines[i]) or _UNDERLINE.match(lines[i - 1])}
    within |= {i + 1 for i, line in enumerate(lines) if _GOOGLE_HEADER.match(line)}
    return [line for line in range(len(lines)) if line not in within] + [len(lines)]


def _passage(lines: list[str], cuts: list[int], entry: _Entry) -> tuple[int, int]:
    """Returns the lines `start:stop` of a passage: an entry and lines around it, up to a random length.

    The words of the entry seed the random numbers, so the same docstring always gives the same passage.
    """
    draw = random.Random(f"{entry.name} {entry.answer} {len(lines)}")
    longest = _SHORTEST_CONTEXT * (_LONGEST_CONTEXT / _SHORTEST_CONTEXT) ** draw.random()
    first, last = bisect.bisect_right(cuts, entry.start) - 1, bisect.bisect_left(cuts, entry.stop)
    size = sum(len(line.strip()) + 1 for line in lines[cuts[first] : cuts[last]])
    while sides := [side for side, more in (("above", first > 0), ("below", last + 1 < len(cuts))) if more]:
        above = draw.choice(sides) == "above"
        begin, end = (cuts[first - 1], cuts[first]) if above else (cuts[last], cuts[last + 1])
        size += sum(len(line.strip()) + 1 for line in lines[begin:end])
        if size > longest:
            break
        first, last = (first - 1, last) if above else (first, last + 1)
    return cuts[first], cuts[last]


# --- sections


def _entries(lines: list[str]) -> list[_Entry]:
    """Returns all entries of a docstring in the three styles, in order, with those that no question can ask for."""
    found: list[_Entry] = []
    for index, line in enumerate(lines):
        underlined = index + 1 < len(lines) and _UNDERLINE.match(lines[index + 1]) is not None
        if underlined and (kind := _SECTIONS.get(line.strip().lower())):
            found += _numpy_section(lines, index + 2, kind)
        elif (header := _GOOGLE_HEADER.match(line)) and (kind := _SECTIONS.get(header[2].lower())):
            found += _google_section(lines, index + 1, kind, len(header[1]))
        elif line.lstrip().startswith(":") and (entry := _SPHINX_ENTRY.match(line.lstrip())):
            found += _sphinx_entry(lines, index, entry)
    return found


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _blocks(lines: list[str], start: int, indent: int, margin: int) -> Iterator[tuple[int, int]]:
    """Yields line ranges that begin at `indent` and continue while lines are blank or deeper; ends left of `margin`."""
    begin = -1
    for index in range(start, len(lines) + 1):
        line = lines[index] if index < len(lines) else ""
        over = index == len(lines) or (line.strip() and _indent(line) < margin)
        if begin >= 0 and (over or (line.strip() and _indent(line) <= indent)):
            stop = index
            while not lines[stop - 1].strip():
                stop -= 1
            yield begin, stop
            begin = -1
        if over:
            return
        if line.strip() and _indent(line) == indent:
            begin = index


def _numpy_section(lines: list[str], start: int, kind: str) -> Iterator[_Entry]:
    if start >= len(lines) or not lines[start].strip():
        return
    indent = _indent(lines[start])
    end = next((i for i in range(start, len(lines) - 1) if _UNDERLINE.match(lines[i + 1])), len(lines))
    blocks = list(_blocks(lines[:end], start, indent, indent))
    for begin, stop in blocks:
        head = _NUMPY_ENTRY.match(lines[begin].strip())
        description = lines[begin + 1 : stop]
        if kind == "returns":
            if len(blocks) == 1:
                yield from _entry(kind, "", description or [lines[begin]], begin, stop)
        elif head:
            yield from _entry(kind, head[1].strip("*"), description, begin, stop)
            if kind == "parameter" and head[2]:
                yield from _type(head[1].strip("*"), head[2], begin, stop)


def _google_section(lines: list[str], start: int, kind: str, margin: int) -> Iterator[_Entry]:
    if start >= len(lines) or _indent(lines[start]) <= margin:
        return
    indent = _indent(lines[start])
    blocks = list(_blocks(lines, start, indent, indent))
    if kind == "returns":
        if blocks:
            first = lines[start].strip()
            typed = re.match(r"[\w\[\], .|]{1,40}: +(?=\S)", first)
            text = [first[typed.end() :] if typed else first, *lines[start + 1 : blocks[-1][1]]]
            yield from _entry(kind, "", text, start, blocks[-1][1])
        return
    for begin, stop in blocks:
        if head := _GOOGLE_ENTRY.match(lines[begin].strip()):
            yield from _entry(kind, head[1], [head[3], *lines[begin + 1 : stop]], begin, stop)
            if kind == "parameter" and head[2]:
                yield from _type(head[1], head[2], begin, stop)


def _sphinx_entry(lines: list[str], begin: int, head: re.Match[str]) -> Iterator[_Entry]:
    kind = {"p": "parameter", "a": "parameter"}.get(head[1][0], "returns" if head[1].startswith("ret") else "raises")
    indent = _indent(lines[begin])
    stop = begin + 1
    while stop < len(lines) and lines[stop].strip() and _indent(lines[stop]) > indent:
        stop += 1
    *type_, name = (head[2] or "").split() or [""]
    if (kind == "returns") == (not name):
        yield from _entry(kind, name, [head[3], *lines[begin + 1 : stop]], begin, stop)
        if kind == "parameter" and type_:
            yield from _type(name, " ".join(type_), begin, stop)


def _entry(kind: str, name: str, description: list[str], start: int, stop: int) -> Iterator[_Entry]:
    first = next(iter(sentences(_first_paragraph(description))), "")
    if 3 <= len(first) <= _LONGEST_ANSWER and any(map(str.isalpha, first)) and not first.endswith((":", "::")):
        yield _Entry(kind, name, first, start, stop)


def _first_paragraph(description: list[str]) -> str:
    """Returns the lines of the first paragraph as one; empty if a list interrupts it."""
    paragraph: list[str] = []
    for line in map(str.strip, description):
        if _LIST.match(line):
            return ""
        if paragraph and not line:
            break
        paragraph += line.split()
    return " ".join(paragraph)


def _type(name: str, text: str, start: int, stop: int) -> Iterator[_Entry]:
    answer = _DEFAULT.sub("", one_line(text)).strip(" ,")
    if 2 <= len(answer) <= _LONGEST_ANSWER:
        yield _Entry("type", name, answer, start, stop)
