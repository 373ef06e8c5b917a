"""Questions ask for what a docstring's sections say, and the answer is a span of the passage."""

import inspect
import re
from pathlib import Path

import pytest

from lm.config import DataConfig
from lm.data import corpus, docs_questions, prepare
from lm.data.pairs import Pair
from lm.data.store import read_pairs

NUMPY = """
    Sum of array elements over a given axis, as the first line says.

    Parameters
    ----------
    a : array_like
        Elements to sum. More about them.
    axis : None or int, optional
        Axis along which a sum is performed,
        which may be negative.
    x, y : float
        Two that are described together.
    *args
        Passed on to the function

    Returns
    -------
    total : ndarray
        An array with the same shape as `a`.

    Raises
    ------
    ValueError
        If the axis is out of bounds.

    Notes
    -----
    note : this
        is no parameter.
    """
GOOGLE = """
    Opens a file and says what is in it, for whoever has to know.

    Args:
        path (str, optional): Where the file is. It must
            be local.
        mode: How to open it
            in this process.
        options: one of
            - a list
    Returns:
        The contents,
        as bytes.

    Raises:
        OSError: The file is not there.
        ValueError: first reason.
        ValueError: second reason.
    """
SPHINX = """
    Sends a request to a server, and waits until an answer comes back from it.

    :param str url: The address to send it to.
    :param timeout: Seconds to wait,
        none by default.
    :type timeout: float
    :returns: The answer of the server.
    :raises TimeoutError: when none came.
    """


def asked(docstring: str) -> dict[tuple[str, str], str]:
    """Answers by kind of question and name."""
    found = [entry for _, entry in docs_questions._asked(inspect.cleandoc(docstring))]
    return {(entry.kind, entry.name): entry.answer for entry in found}


def parts(pair: Pair) -> tuple[str, str]:
    found = re.fullmatch(r"question: (.*?) context: (.*)", pair.source)
    assert found
    return found[1], found[2]


def test_numpy_sections():
    assert asked(NUMPY) == {
        ("parameter", "a"): "Elements to sum.",
        ("type", "a"): "array_like",
        ("parameter", "axis"): "Axis along which a sum is performed, which may be negative.",
        ("type", "axis"): "None or int",
        ("parameter", "args"): "Passed on to the function",
        ("returns", ""): "An array with the same shape as `a`.",
        ("raises", "ValueError"): "If the axis is out of bounds.",
    }


def test_google_sections_leave_out_what_is_said_twice():
    assert asked(GOOGLE) == {
        ("parameter", "path"): "Where the file is.",
        ("type", "path"): "str",
        ("parameter", "mode"): "How to open it in this process.",
        ("returns", ""): "The contents, as bytes.",
        ("raises", "OSError"): "The file is not there.",
    }


def test_sphinx_fields():
    assert asked(SPHINX) == {
        ("parameter", "url"): "The address to send it to.",
        ("type", "url"): "str",
        ("parameter", "timeout"): "Seconds to wait, none by default.",
        ("returns", ""): "The answer of the server.",
        ("raises", "TimeoutError"): "when none came.",
    }


def made_up(count: int) -> list[str]:
    """Docstrings of some thousand characters with ever other parameters."""
    docstrings = []
    for i in range(count):
        lines = [f"Function number {i} does what its number says.", "", "Args:"]
        lines += [f"  name_{i}_{j}: What {j} is to {i}" + " again" * (j % 9) + "." for j in range(30)]
        docstrings.append("\n".join(lines))
    return docstrings


@pytest.fixture(scope="module")
def found() -> list[Pair]:
    return docs_questions.pairs(made_up(60))


def test_the_answer_is_a_span_of_a_short_passage_that_has_the_name(found: list[Pair]):
    assert len(found) > 1500
    assert len({pair.source for pair in found}) == len(found)
    for pair in found:
        question, context = parts(pair)
        (name,) = re.findall(r"name_\d+_\d+", question)
        assert f"{name}: {pair.target}" in context
        assert len(context) <= 400


def test_a_section_keeps_its_header_wherever_it_begins():
    for padding in range(300, 620, 10):
        text = "word " * (padding // 5)
        for docstring in (
            f"{text}\n\nReturns\n-------\nint\n    How many there are of them, {text[:150]}.",
            f"{text}\n\nReturns:\n    How many there are of them, {text[:150]}.",
        ):
            for context, _ in docs_questions._asked(docstring):
                assert re.search(r"Returns(:| -------) .*How many", context)


def test_questions_are_asked_in_several_ways(found: list[Pair]):
    assert len({re.sub(r"name_\d+_\d+", "X", parts(pair)[0]) for pair in found}) == 4


def test_the_questions_are_the_same_every_time_and_in_chunks(found: list[Pair], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(docs_questions, "_DOCSTRINGS_AT_ONCE", 7)
    assert docs_questions.pairs(made_up(60)) == found


def test_an_entry_that_is_repeated_word_for_word_is_asked_once():
    first, second = (NUMPY.replace("as the first line says", f"the {i}") for i in ("first", "second"))
    pairs = docs_questions.pairs([inspect.cleandoc(first), inspect.cleandoc(second)])
    assert len(pairs) == len(asked(NUMPY))
    assert len({pair.group for pair in pairs}) == 1


def test_a_passage_of_two_docstrings_is_in_one_group():
    """The second docstring ends like the first: a passage of it may be the very same text."""
    tail = "\n".join(f"  other_{j}: Here is told what {j} is" + " again" * 9 + "." for j in range(30))
    pairs = docs_questions.pairs([made_up(1)[0] + "\n" + tail, made_up(2)[1] + "\n" + tail])
    groups: dict[str, set[str]] = {}
    for pair in pairs:
        groups.setdefault(parts(pair)[1], set()).add(pair.group)
    assert all(len(group) == 1 for group in groups.values())


def test_installed_docstrings_are_split_by_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site = tmp_path / "site"
    site.mkdir()
    source = "\n".join(f"def f{i}():\n    r'''{docstring}'''" for i, docstring in enumerate(made_up(40)))
    (site / "module.py").write_text(source)
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: dict.fromkeys(("stdlib", "purelib", "platlib"), site))
    config = DataConfig(source="docs-questions", vocab_size=500, heldout_fraction=0.2)
    store = prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)
    train, heldout = (read_pairs(store, split) for split in (store.train, store.heldout))
    assert len(train) + len(heldout) == len(docs_questions.pairs(made_up(40)))
    assert not {parts(pair)[1] for pair in train} & {parts(pair)[1] for pair in heldout}
    functions = [{re.findall(r"name_(\d+)_", pair.source)[0] for pair in split} for split in (train, heldout)]
    assert functions[1]
    assert not functions[0] & functions[1]
