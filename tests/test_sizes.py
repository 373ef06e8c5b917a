"""How large files and functions may be, and what their text may not say. Read from the source."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("lm", "launch")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
FILE_LINES = 400
FUNCTION_LINES = 60
LINES_WITH_ANY = 60


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Yields the name and the number of lines of every function, decorators and docstring included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.name, (node.end_lineno or node.lineno) - first + 1


def long_functions(sources: dict[str, str]) -> dict[str, int]:
    return {
        f"{path}:{name}": lines
        for path, source in sources.items()
        for name, lines in functions(source)
        if lines > FUNCTION_LINES
    }


def lines_with(word: str, sources: dict[str, str], folder: str) -> list[str]:
    """Returns `path:line` of the lines that contain a word, in the files of a folder."""
    return [
        f"{path}:{number}"
        for path, source in sources.items()
        if path.startswith(folder)
        for number, line in enumerate(source.splitlines(), 1)
        if re.search(rf"\b{word}\b", line)
    ]


def test_files_are_small() -> None:
    assert SOURCES
    lines = {path: len(source.splitlines()) for path, source in SOURCES.items()}
    assert {path: count for path, count in lines.items() if count > FILE_LINES} == {}


def test_functions_are_small() -> None:
    assert long_functions(SOURCES) == {}


def test_few_types_are_unknown() -> None:
    found = lines_with("Any", SOURCES, "lm/")
    assert len(found) < LINES_WITH_ANY, found


def test_models_are_formulas() -> None:
    """What a compiler does, and the code for its sake, belongs to lm/ops."""
    assert lines_with("XLA", SOURCES, "lm/models/") == []


def test_what_is_run_by_hand_is_not_collected() -> None:
    by_hand = [path.name for folder in ("benchmarks", "faults") for path in (ROOT / "tests" / folder).rglob("*.py")]
    assert by_hand
    assert [name for name in by_hand if name.startswith("test_") or name.endswith("_test.py")] == []


def test_the_size_rules_can_fail() -> None:
    body = "".join("    x = 1\n" for _ in range(FUNCTION_LINES))
    assert long_functions({"lm/x.py": f"def f():\n{body}"}) == {"lm/x.py:f": FUNCTION_LINES + 1}
    assert long_functions({"lm/x.py": f"class C:\n  @a\n  async def f():\n{body[10:]}"}) == {"lm/x.py:f": 61}
    assert long_functions({"lm/x.py": f"def f():\n{body[10:]}"}) == {}
    assert lines_with("Any", {"lm/x.py": "from typing import Any\nMany = 1\nx: Any"}, "lm/") == [
        "lm/x.py:1",
        "lm/x.py:3",
    ]
    assert lines_with("XLA", {"lm/models/x.py": "# XLA", "lm/ops/x.py": "# XLA"}, "lm/models/") == ["lm/models/x.py:1"]
