"""The settings of a server, with their defaults. lm/serving/README.md has them as a table."""

import dataclasses
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.config import MeshConfig
from lm.errors import InputError
from lm.inference.requests import EXTRA_OPTIONS, TASKS

_LEAST = {"slots": 1, "max_inputs": 1, "max_body_bytes": 1, "waiting_items": 1, "waiting_tokens": 1, "deadline": 1e-3}
MESH_AXES = ("data", "tensor")  # axes of a mesh that serves


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a server computes, accepts and allows.

    Attributes:
        tasks: the tasks to serve; empty for all that a model can do. Fewer tasks compile fewer programs.
        slots: sequences that a model writes at a time, on all devices, by greedy decoding or sampling.
        beams: the numbers of beams that a request may ask for. A lane of `slots / beams` slots is made for each.
        extra_options: options of decoding that requests may use though the model does not by default, such as
            `repetition_penalty`. Each costs every step a little.
        top_logprobs: of how many of the most probable tokens a request may ask the log-probabilities, beside the
            written one's. Above 1, every step costs a little more.
        max_length: the most tokens that a request may write; 0 for the larger of 128 and the run's own default.
        max_input_tokens: the most tokens of an input; 0 for what the model reads.
        truncate: whether a longer input is cut, for requests that do not say; otherwise it is refused.
        max_inputs: inputs of a request.
        max_body_bytes: of a request.
        batch_tokens: tokens of an encoder's batch on a device; 0 for what suits the platform.
        waiting_items, waiting_tokens: limits of the queue.
        deadline: seconds after which a request is given up; a client may ask for fewer.
        drain_seconds: how long a server that was told to stop still takes requests, while `/ready` says 503.
        heartbeat_seconds: `/health` says 503 once the engine has not moved for so long.
        api_keys: accepted keys; none means that no key is needed.
        cors_origins: origins that a browser may ask from; none by default.
        watch_seconds: how often the workdir is looked at for a new checkpoint; 0 for never.
        adapters: NAME=PATH of runs with low-rank adapters over the one model that is served.
        mesh: the devices that hold each model; None is one device. `tensor` splits the model, `data` the sequences.
    """

    tasks: tuple[str, ...] = ()
    slots: int = 16
    beams: tuple[int, ...] = (1, 4)
    extra_options: tuple[str, ...] = ()
    top_logprobs: int = 0
    max_length: int = 0
    max_input_tokens: int = 0
    truncate: bool = True
    max_inputs: int = 2048
    max_body_bytes: int = 4 << 20
    batch_tokens: int = 0
    waiting_items: int = 4096
    waiting_tokens: int = 1 << 20
    deadline: float = 60.0
    drain_seconds: float = 5.0
    heartbeat_seconds: float = 60.0
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    watch_seconds: float = 0.0
    adapters: tuple[str, ...] = ()
    mesh: MeshConfig | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name, 0)
            if isinstance(value, int | float) and not least <= value < math.inf:
                raise InputError(f"--{field.name} is {value}; accepted: a number from {least} on.")
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise InputError(f"--tasks has {unknown[0]!r}; accepted: {', '.join(TASKS)}.")
        if wrong := [
            each for each in self.cors_origins if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", each)
        ]:
            raise InputError(f"--cors_origins has {wrong[0]!r}; accepted: origins such as https://example.com, or *.")

    @classmethod
    def of(cls, given: Mapping[str, Any], api_keys: tuple[str, ...]) -> "Settings":
        """Returns the settings that flags give.

        Raises:
            InputError: a flag has another value than those that it accepts.
        """
        beams = tuple(int(each) if str(each).isdecimal() else 0 for each in given["beams"])
        if not beams or min(beams) < 1:
            raise InputError(f"--beams is {','.join(given['beams'])!r}; accepted: numbers from 1 on, such as 1,4.")
        if unknown := sorted(set(given["extra_options"]) - set(EXTRA_OPTIONS)):
            raise InputError(f"--extra_options has {unknown[0]!r}; accepted: {', '.join(EXTRA_OPTIONS)}.")
        lists = {name: tuple(given.get(name, ())) for name in ("tasks", "extra_options", "cors_origins", "adapters")}
        mesh = _mesh(given.get("mesh", ()))
        return cls(**{**given, **lists, "beams": beams, "api_keys": api_keys, "mesh": mesh})


def _mesh(axes: Sequence[str]) -> MeshConfig | None:
    """Returns the mesh of `AXIS=DEVICES` each; None where there is none.

    Raises:
        InputError: an axis does not exist, or has no number of devices.
    """
    sizes = {"data": 1}
    for part in axes:
        name, _, size = part.partition("=")
        if name not in MESH_AXES or not (size == "-1" or size.isdecimal()):
            accepted = " or ".join(MESH_AXES)
            raise InputError(f"--mesh has {part!r}; accepted: {accepted}, each with its devices: data=2,tensor=4.")
        sizes[name] = int(size)
    if not axes:
        return None
    config = MeshConfig(**sizes)
    config.validate()
    return config


def read_keys(path: str) -> tuple[str, ...]:
    """Returns the API keys of a file, one a line, and of the variable LM_API_KEYS, separated by commas.

    Raises:
        InputError: the file cannot be read; or it has no key, or the variable is set and has none: whoever sets one
            does not mean a server that is open to all.
    """
    try:
        lines = Path(path).read_text().splitlines() if path else []
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--api_keys_file is {path!r}, which cannot be read ({error}); give a text file.") from None
    of_file, of_variable = (
        tuple(key.strip() for key in given if key.strip())
        for given in (lines, os.environ.get("LM_API_KEYS", "").split(","))
    )
    if path and not of_file:
        raise InputError(f"--api_keys_file is {path!r}, which has no key; write one a line, or leave the flag out.")
    if "LM_API_KEYS" in os.environ and not of_variable:
        raise InputError("LM_API_KEYS is set, but has no key; give keys with commas between them, or unset it.")
    return (*of_file, *of_variable)


def keep_programs(folder: str) -> None:
    """Tells JAX, which must not be imported yet, to keep compiled programs in a folder.

    Raises:
        InputError: nothing can be written there. JAX would warn of each program.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--compilation_cache is {folder!r}: {error.strerror}; give a folder to write to.") from None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
