"""Loads the file that `--config` names: a Python file with a `get_config()`, or the `config.json` of a run."""

import dataclasses
import importlib.machinery
import importlib.util
import json
import re
import traceback
from collections.abc import Iterator

from lm.config.as_json import from_dict
from lm.config.run import Config
from lm.errors import InputError, nearest

ACCEPTED = "a Python file with a get_config(), or the config.json of a run"


def load(path: str) -> Config:
    """Returns the config of a file. One whose name ends in `.json` is that of a run; any other is run as Python.

    Raises:
        InputError: the file is wrong; names it, and the line where there is one.
    """
    if path.endswith(".json"):
        return _of_run(path)
    config = _get_config(path)
    if not isinstance(config, Config):
        raise InputError(f"{path}: get_config() returned {type(config).__name__}; accepted: an lm.config.Config.")
    if unknown := next(_unknown_attributes(config), None):
        raise InputError(f"{path}: {unknown}")
    return config


def _of_run(path: str) -> Config:
    try:
        with open(path, encoding="utf-8") as file:
            config = from_dict(json.load(file), stored=True)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError, and so is text that is no UTF-8
        raise InputError(f"{path} is not valid JSON ({error}); accepted: {ACCEPTED}.") from error
    if config.model.vocab_size < config.data.vocab_size:  # its corpus gave fewer pieces than were asked for
        config.model.vocab_size = 0
    return config


def _get_config(path: str) -> object:
    loader = importlib.machinery.SourceFileLoader("config_file", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise InputError("there is no get_config() in this file.")
        return module.get_config()
    except SyntaxError as error:
        raise InputError(f"{error.filename or path}:{error.lineno or 1}: {error.msg}.") from None
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        place = f"{path}:{lines[-1]}" if lines else path
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"{place}: {kind}{error}{nearest_keyword(error)}") from error


def nearest_keyword(error: Exception) -> str:
    """Returns a hint for a field that a section does not have, where Python's own message has none."""
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'(?!.*Did you mean)", str(error))
    if not isinstance(error, TypeError) or not match:
        return ""
    owners = [Config, *(type(getattr(Config(), field.name)) for field in dataclasses.fields(Config))]
    fields = [field.name for each in owners if each.__name__ == match[1] for field in dataclasses.fields(each)]
    near = nearest(match[2], fields)
    return f"; nearest: {', '.join(near)}." if near else f"; accepted: {', '.join(fields)}." if fields else ""


def _unknown_attributes(config: Config) -> Iterator[str]:
    """Yields a message for each attribute that a config file has set and no section has: Python lets it pass."""
    sections = {"": config, **{f"{field.name}.": getattr(config, field.name) for field in dataclasses.fields(config)}}
    for prefix, section in sections.items():
        if dataclasses.is_dataclass(section):
            fields = [field.name for field in dataclasses.fields(section)]
            for name in vars(section).keys() - fields:
                near = nearest(name, fields) or fields
                yield f"{prefix}{name} is set, but is not a field of the config; nearest: {', '.join(near)}."
