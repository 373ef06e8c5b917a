"""Describes every setting: its name, default, accepted values and the words of its docstring.

`python -m lm.config.reference` writes the tables of configs/README.md anew.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lm.config.bounds import Section
from lm.config.mixture import TaskConfig
from lm.config.run import Config

_BEGIN = "<!-- python -m lm.config.reference writes what follows -->"
_END = "<!-- end of the settings -->"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field.

    Attributes:
        name: `section.field`.
        kind: of its values: `int`, `float`, `bool` or `str`.
        default: its value where none is given.
        accepted: the bound of its values; empty where every value of the kind is accepted.
        text: what it means.
    """

    name: str
    kind: str
    default: object
    accepted: str
    text: str


def settings() -> Iterator[Setting]:
    """Yields every setting of a run, in the order of the sections."""
    for field in dataclasses.fields(Config):
        section = getattr(Config(), field.name)
        if dataclasses.is_dataclass(section) and not isinstance(section, type):
            yield from _section(field.name, section)
        else:
            yield _setting(field.name, field, section, "decides initial weights, order of the data, masking, dropout.")
    yield from _section("mixture.tasks.NAME", TaskConfig())


def as_markdown() -> str:
    """Returns a table for each section."""
    lines, section = [], ""
    for each in settings():
        above = each.name.rpartition(".")[0]
        if above != section or not lines:
            section = above
            title = f"### {section}" if section else "### The run"
            lines += ["", title, "", "| Setting | Default | Accepted | Meaning |", "|---|---|---|---|"]
        cells = (f"`{each.name}`", f"`{each.default!r}`", _kind(each), each.text)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines).strip() + "\n"


def into_guide(guide: str) -> str:
    """Returns configs/README.md with the tables of now."""
    before, begin, rest = guide.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{begin}\n{as_markdown()}\n{end}{after}"


def as_text(config: Config) -> str:
    """Returns the settings of a config, four lines each at most: name and value, default, accepted, meaning."""
    lines = []
    for each in settings():
        for name, value in _values(config, each.name):
            default = "" if value == each.default else f" (default: {each.default!r})"
            lines += [f"--config.{name}={value!r}{default}", f"    {each.text} Accepted: {_kind(each)}."]
    return "\n".join(lines)


def _values(config: Config, name: str) -> Iterator[tuple[str, object]]:
    """Yields the name and value of a setting; of a task's setting, those of each task of the config."""
    *sections, field = name.split(".")
    if sections[:2] == ["mixture", "tasks"]:
        for task, values in config.mixture.tasks.items():
            yield f"mixture.tasks.{task}.{field}", getattr(values, field)
        return
    yield name, getattr(getattr(config, sections[0]) if sections else config, field)


def _section(name: str, section: Section) -> Iterator[Setting]:
    texts = attributes(inspect.getdoc(type(section)) or "")
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if not isinstance(value, dict):
            yield _setting(f"{name}.{field.name}", field, value, texts[field.name])


def _setting(name: str, field: dataclasses.Field, default: object, text: str) -> Setting:
    return Setting(name, type(default).__name__, default, _accepted(field.metadata), text)


def attributes(docstring: str) -> dict[str, str]:
    """Returns the words of each field in the `Attributes:` of a docstring. `a, b: words` describes both fields."""
    found: dict[str, str] = {}
    block = docstring.partition("Attributes:\n")[2]
    for entry in re.split(r"\n    (?=\w[\w, ]*: )", "\n" + block):
        names, _, text = entry.strip().partition(": ")
        found |= {name.strip(): " ".join(text.split()) for name in names.split(",") if name.strip()}
    return found


def _accepted(metadata: Mapping[str, object]) -> str:
    if (choices := metadata.get("one_of")) is not None:
        return ", ".join(f"`{choice}`" for choice in choices)  # pyright: ignore[reportGeneralTypeIssues]
    if (limits := metadata.get("within")) is not None:
        low, high = limits  # pyright: ignore[reportGeneralTypeIssues]
        return f"{low} to {high}"
    minimum = metadata.get("at_least")
    return "" if minimum is None else f"at least {minimum}"


def _kind(setting: Setting) -> str:
    kind = {
        "int": "whole number",
        "float": "number",
        "bool": "`true` or `false`",
        "str": "text",
        "list": "token ids, in a config file",
    }[setting.kind]
    if setting.accepted.startswith("`"):
        return setting.accepted
    return ", ".join(filter(None, (kind, setting.accepted)))


if __name__ == "__main__":
    _guide = Path(__file__).parents[2] / "configs" / "README.md"
    _guide.write_text(into_guide(_guide.read_text()))
