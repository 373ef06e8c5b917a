"""The flags of launch/serve.py that follow `--` on the command line of a launcher."""

import ast
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

from lm import storage
from lm.cluster.snapshot import ROOT
from lm.config.paths import named_models, split_step
from lm.errors import InputError, nearest
from lm.inference.requests import EXTRA_OPTIONS, TASKS

_CHOICES = {"tasks": TASKS, "extra_options": tuple(EXTRA_OPTIONS)}  # of flags that are lists
_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_AXIS = r"(data|tensor)=(-1|[1-9]\d*)"
# Name or kind of a flag -> its values, as a pattern and in words.
_VALUES = {
    "beams": (r"[1-9]\d*(,[1-9]\d*)*", "numbers from 1 on, such as 1,4"),
    "mesh": (
        rf"(?!.*(data|tensor)=.*\1=)(?!.*-1.*-1)({_AXIS}(,{_AXIS})*)?",
        "data or tensor once each, with its devices, at most one with -1",
    ),
    "integer": (r"[+-]?\d+", "a whole number"),
    "float": (_NUMBER, "a number"),
    "bool": (r"true|false|t|f|1|0", "true or false"),
}
DEADLINE = 60  # seconds: --deadline of launch/serve.py, unless the options say another


@dataclasses.dataclass(frozen=True)
class _Flag:
    """A flag of launch/serve.py: its kind, such as `integer`, and the bounds of a number."""

    kind: str
    least: float = -math.inf
    most: float = math.inf


def check(options: Sequence[str], ours: Mapping[str, str]) -> None:
    """Refuses what launch/serve.py would refuse later, on every replica.

    Args:
        options: the words after `--`.
        ours: flags of launch/serve.py that a launcher does not pass on, and what to do instead.

    Raises:
        InputError: a word is no flag, or none of launch/serve.py; or a flag has a value that it does not accept.
    """
    known = _flags()
    accepted = known.keys() - ours.keys()
    for option in options:
        name, equals, text = option.lstrip("-").partition("=")
        if option.startswith("--") and name in accepted:
            if equals:
                _check_value(name, known[name], text)
            elif known[name].kind != "bool":
                raise InputError(f"after -- there is {option!r}; accepted: {option}=VALUE.")
            continue
        if option.startswith("--no") and not equals and name[2:] in accepted and known[name[2:]].kind == "bool":
            continue
        near = nearest(name, accepted - {name})
        hint = ours.get(name) or (
            f"nearest: --{near[0]}" if near else f"accepted: --FLAG=VALUE of launch/serve.py except {', '.join(ours)}"
        )
        raise InputError(f"after -- there is {option!r}; {hint}.")


def misplaced(name: str, ours: Mapping[str, str]) -> str:
    """Returns what to do with a flag of launch/serve.py that stands before `--`; nothing for any other.

    Args:
        name: of the flag.
        ours: as for `check`.
    """
    if name in ours:
        return f"--{name} is a flag of launch/serve.py alone: {ours[name]}"
    if name not in _flags() and name.removeprefix("no") not in _flags():
        return ""
    return f"--{name} is a flag of launch/serve.py; put it after --, as in: serve ... -- --tasks=embed"


def _check_value(name: str, flag: _Flag, text: str) -> None:
    if flag.kind == "list":
        text = _stripped(text)
    pattern, words = _VALUES.get(name) or _VALUES.get(flag.kind, (".*", ""))
    if not re.fullmatch(pattern, text, re.DOTALL | (re.IGNORECASE if flag.kind == "bool" else 0)):
        raise InputError(f"--{name} is {text!r}; accepted: {words}.")
    if flag.kind in ("integer", "float") and not flag.least <= float(text) <= flag.most:
        upper = f"to {flag.most}" if flag.most < math.inf else "on"
        raise InputError(f"--{name} is {text}; accepted: {words} from {flag.least} {upper}.")
    if choices := _CHOICES.get(name):
        for wrong in (each for each in text.split(",") if text and each not in choices):
            near = nearest(wrong, choices, 1)
            hint = f"nearest: {near[0]}" if near else f"accepted: {', '.join(choices)}"
            raise InputError(f"--{name} has {wrong!r}; {hint}.")


def _stripped(text: str) -> str:
    return ",".join(each.strip() for each in text.split(","))


def without_spaces(option: str) -> str:
    """Returns an option without spaces around the items of a list, which absl leaves out as well."""
    name, equals, text = option.partition("=")
    flag = _flags().get(name.removeprefix("--"))
    return f"{name}={_stripped(text)}" if equals and flag and flag.kind == "list" else option


def check_mesh(options: Sequence[str], devices: int) -> None:
    """Refuses a mesh over more devices than a replica has, or one that does not divide them.

    Raises:
        InputError: the options have such a --mesh.
    """
    for given in values(options, "mesh")[-1:]:
        sizes = [int(size) for size in re.findall(r"=\s*(-?\d+)", given)]
        fixed = math.prod(size for size in sizes if size != -1)
        if fixed > devices or (-1 in sizes and devices % fixed):
            raise InputError(
                f"after -- there is --mesh={given}, but the --accelerator of a replica has {devices} JAX "
                f"device{'s' * (devices > 1)}; give a mesh that they hold, or another --accelerator."
            )


def check_adapters(options: Sequence[str], checkpoint: str) -> None:
    """Refuses adapters beside several models, since they belong to one.

    Raises:
        InputError: the options have --adapters, and the checkpoint is several models.
    """
    if any(values(options, "adapters")) and len(named_models(checkpoint)) > 1:
        raise InputError(
            f"after -- there are --adapters, which belong to one model, but --checkpoint is {checkpoint}; give one."
        )


def require_runs(checkpoint: str) -> None:
    """Refuses models that are not there, before replicas look for them.

    Raises:
        InputError: a path of `PATH` or `NAME=PATH,NAME=PATH` holds no run, or not the checkpoint that it names.
    """
    for _, path in named_models(checkpoint):
        workdir, step = split_step(path.rstrip("/"))
        keys = ["config.json", *([f"checkpoints/{step}/_CHECKPOINT_METADATA"] if step else [])]
        for key, content in zip(keys, storage.read_keys(workdir, keys), strict=True):
            if content is None:
                raise InputError(f"--checkpoint is {path}, and there is no {workdir}/{key}; give a run that is there.")


def values(options: Sequence[str], name: str) -> list[str]:
    """Returns the values that options give a flag."""
    return [option.partition("=")[2] for option in options if option.startswith(f"--{name}=")]


def deadline(options: Sequence[str]) -> float:
    """Returns the seconds after which a server with these options gives a request up.

    Raises:
        InputError: the options say something that is no number.
    """
    given = values(options, "deadline")
    if given and not re.fullmatch(r"\d+(\.\d*)?|\.\d+", given[-1]):
        raise InputError(f"--deadline is {given[-1]!r}; accepted: a number of seconds.")
    return float(given[-1]) if given else DEADLINE


@functools.cache
def _flags() -> Mapping[str, _Flag]:
    """Returns the flags that the script defines, by name. Importing the script would define them here."""
    names = {"lower_bound": "least", "upper_bound": "most"}
    found = {}
    for node in ast.walk(ast.parse((ROOT / "launch/serve.py").read_text())):
        match node:
            case ast.Call(func=ast.Attribute(attr=define), args=[ast.Constant(value=str(name)), *_], keywords=given):
                if define.lower().startswith("define_"):
                    bounds = {names[each.arg]: ast.literal_eval(each.value) for each in given if each.arg in names}
                    found[name] = _Flag(define.lower().removeprefix("define_"), **bounds)
    return found
