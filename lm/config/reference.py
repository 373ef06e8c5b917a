"""Describes every setting: its name, default, accepted values and the words of its docstring.

`python -m lm.config.reference` writes the tables of configs/README.md anew.
"""

import dataclasses
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from lm.config.bounds import Section
from lm.config.mixture import TaskConfig
from lm.config.run import Config
from lm.errors import nearest

# The name of a setting in other libraries -> its name here.
_OTHER_NAMES = {
    **dict.fromkeys(("lr", "peak_lr", "max_lr"), "optim.learning_rate"),
    **dict.fromkeys(("max_steps", "num_steps", "train_steps", "epochs", "num_train_epochs"), "train.steps"),
    **dict.fromkeys(("bs", "train_batch_size", "per_device_train_batch_size"), "data.batch_size"),
    **dict.fromkeys(("hidden_size", "dim", "width"), "model.d_model"),
    **dict.fromkeys(("layers", "num_hidden_layers", "depth"), "model.num_layers"),
    **dict.fromkeys(("heads", "num_attention_heads"), "model.num_heads"),
    **dict.fromkeys(("max_seq_length", "block_size"), "data.seq_length"),
    **dict.fromkeys(("num_warmup_steps",), "optim.warmup_steps"),
    **dict.fromkeys(("wd",), "optim.weight_decay"),
    **dict.fromkeys(("resume_from", "pretrained", "model_name_or_path"), "checkpoint.init_from"),
    **dict.fromkeys(("corpus", "train_file", "dataset"), "data.path"),
}
_BEGIN = "<!-- python -m lm.config.reference writes what follows -->"
_END = "<!-- end of the settings -->"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field.

    Attributes:
        name: `section.field`.
        kind: the type of its values: `int`, `float`, `bool`, `str` or `list`.
        default: its value where none is given.
        accepted: which values of the type are accepted; empty where all are.
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
            meaning = "decides the initial weights, the order of the data, masking and dropout."
            yield _setting(field.name, field, section, meaning)
    yield from _section("mixture.tasks.NAME", TaskConfig())


def called(name: str, flags: Collection[str] = ()) -> list[str]:
    """Returns the settings that a name may mean: with or without its section, or as other libraries call it.

    Args:
        name: what a user wrote: `steps`, `train.steps`, `lr`.
        flags: the flags of the script. A name that is close to one of them is taken for it, not for a setting.
    """
    plain = name.replace("-", "_")
    known = [each.name for each in settings() if "NAME" not in each.name]
    exact = [each for each in known if plain in (each, each.rpartition(".")[2])]
    if exact or plain in _OTHER_NAMES:
        return exact or [_OTHER_NAMES[plain]]
    if plain.startswith("no") and (negated := called(plain[2:], flags)):
        return negated
    if nearest(name, flags):
        return []
    if "." in plain:
        return nearest(plain, known)
    fields = {each.rpartition(".")[2]: each for each in known}
    return [fields[each] for each in nearest(plain, fields, cutoff=0.75)]


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
    """Returns the text of configs/README.md with its tables written anew."""
    before, begin, rest = guide.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{begin}\n{as_markdown()}\n{end}{after}"


def as_text(config: Config) -> str:
    """Returns the settings of a config, two lines each: value and default, then meaning and accepted values."""
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
