"""Configs as JSON: written, read, and compared field by field."""

import dataclasses
import json
from collections.abc import Mapping
from typing import TypeVar, get_type_hints

from lm.config.bounds import Section
from lm.config.data import DataConfig
from lm.config.mixture import MixtureConfig, TaskConfig
from lm.config.run import Config
from lm.errors import InputError

_Section = TypeVar("_Section", bound=Section)

# Sections that a rerun in the same working directory may change: a longer run, another pod.
RERUN_MAY_CHANGE = ("train", "checkpoint", "mesh")


def to_json(config: Config) -> str:
    """Returns the whole config as indented JSON, the content of `WORKDIR/config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(values: Mapping[str, object], *, stored: bool = False) -> Config:
    """Returns the config that `dataclasses.asdict` or a JSON file describes. Missing fields take their defaults.

    Args:
        values: section -> field -> value.
        stored: whether this is the `config.json` of a run. A field that is newer than the run is missing there, and
            takes the value that says what the run did; see `before` of `setting`. What its source of text does not read
            is left out.

    Raises:
        InputError: naming a field that `Config` does not have, or a value that it does not accept.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"config is {type(values).__name__}; accepted: an object with a section in each field.")
    if "model_type" in values:
        raise InputError(
            "this is the config.json of a Hugging Face folder; launch/convert.py --from_huggingface reads it."
        )
    known = get_type_hints(Config)
    sections: dict[str, object] = {}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"config has the unknown field {name!r}; accepted: {', '.join(known)}.")
        sections[name] = _section(name, known[name], value, stored) if dataclasses.is_dataclass(known[name]) else value
    mixture = sections.get("mixture")
    if isinstance(mixture, MixtureConfig) and isinstance(mixture.tasks, Mapping):
        mixture.tasks = {
            name: _section(f"mixture.tasks.{name}", TaskConfig, fields) for name, fields in mixture.tasks.items()
        }
    if stored and isinstance(data := sections.get("data"), DataConfig):
        sections["data"] = data.only_read()
    return dataclasses.replace(Config(), **sections)


def changed_fields(old: Config, new: Config) -> list[str]:
    """Returns the fields that a rerun may not change and that differ, each as `section.field (old -> new)`.

    A field that only one config has, such as those of a task, is None in the other. A field that neither reads is left
    out: a run that began before the field existed has another value there. `model.vocab_size=0` asks for no number.
    """
    if not new.model.vocab_size:
        new = dataclasses.replace(new, model=dataclasses.replace(new.model, vocab_size=old.model.vocab_size))
    before, after = (
        _leaves({name: value for name, value in dataclasses.asdict(config).items() if name not in RERUN_MAY_CHANGE})
        for config in (old, new)
    )
    return [
        f"{name} ({before.get(name)!r} -> {after.get(name)!r})"
        for name in {**before, **after}
        if before.get(name) != after.get(name) and name not in _unread(old) & _unread(new)
    ]


def _unread(config: Config) -> set[str]:
    """Returns the fields with a `before` that have no effect in a config."""
    objectives = {config.task_objective(name).name for name in config.mixture.tasks} or {config.objective.name}
    is_read = {
        "model.relative_init": config.model.has_relative_bias,
        "objective.join_documents": "span_corruption" in objectives,
        "objective.spans": "infilling" in objectives,
        "optim.decay": config.optim.schedule == "wsd",
    }
    return {name for name, read in is_read.items() if not read}


def _section(name: str, section: type[_Section], values: object, stored: bool = False) -> _Section:
    accepted = [field.name for field in dataclasses.fields(section)]
    if not isinstance(values, Mapping):
        raise InputError(f"{name} is {values!r}; accepted: an object with fields among {', '.join(accepted)}.")
    for key in values:
        if key not in accepted:
            raise InputError(f"config has the unknown field {name}.{key}; accepted: {', '.join(accepted)}.")
    older: dict[str, object] = {}
    if stored:
        befores = {field.name: field.metadata.get("before") for field in dataclasses.fields(section)}
        older = {field: before for field, before in befores.items() if before is not None}
    return dataclasses.replace(section(), **{**older, **values})


def leaves(config: Config) -> dict[str, object]:
    """Returns every setting of a config by its dotted name."""
    return _leaves(dataclasses.asdict(config))


def _leaves(values: Mapping[str, object]) -> dict[str, object]:
    """Returns nested mappings as one, with dotted names."""
    leaves: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            leaves |= {f"{name}.{key}": inner for key, inner in _leaves(value).items()}
        else:
            leaves[name] = value
    return leaves
