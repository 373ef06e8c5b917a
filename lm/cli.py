"""What all launch scripts share: the config flag, one-line error messages and exit codes.

A launch script defines its flags, then passes its `main` to `run`:

    _config = cli.define_config()
    _workdir = cli.define_path("workdir", None, "Where the run lives.", required=True)

    def main() -> int | None:
        return train(_config(), _workdir.value)

    if __name__ == "__main__":
        cli.run(main)
"""

import contextlib
import dataclasses
import errno
import functools
import gc
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, AnyStr, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from lm import interrupts
from lm.accelerators import skip_absent_tpus
from lm.config import Config, effect, loading, reference
from lm.config.paths import expand
from lm.errors import InputError, nearest

EXIT_DONE = 0
EXIT_FAULT = 1  # a bug, a broken machine, a diverged run
EXIT_INPUT = 2  # the user's input is wrong: change it before running again
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: a complete checkpoint is saved, run the same command again
EXIT_INTERRUPTED = interrupts.EXIT_INTERRUPTED
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

_ACCEPTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}
_SERVING = ("httptools", "prometheus_client", "starlette", "uvicorn", "uvloop")
_EXTRAS: dict[str, str] = {package: "serve" for package in _SERVING}  # of setup.py
_CONFIGS = Path(__file__).parents[1] / "configs"

flags.disclaim_key_flags()  # --help lists the config flag with the script's own


def define_config(required: bool = True) -> Callable[[], Config]:
    """Defines `--config=FILE` and its overrides, `--config.section.field=value`.

    Args:
        required: whether the flag has to be given; otherwise the function below refuses its absence.

    Returns:
        A function to call in `main`; it returns the config of FILE with the overrides applied, validated as a whole.
    """
    try:
        holder = config_flags.DEFINE_config_file("config", None, f"The settings: {loading.ACCEPTED}.")
    except flags.Error as error:  # ml_collections already reads a --flagfile here, and failed
        _fail(error)
    flags.FLAGS["config"].parser = _ConfigFileParser()
    flags.DEFINE_bool("help_config", False, "Print every setting of --config with its value and meaning.")
    if required:
        flags.mark_flag_as_required("config")

    def config() -> Config:
        if holder.value is None:
            raise InputError(_missing("config"))
        holder.value.validate()
        holder.value.check_vocabulary()
        effect.refuse_without_effect(holder.value, given_settings())
        return holder.value

    return config


def given_settings() -> list[str]:
    """Returns the settings that the command line gives, such as `train.steps`."""
    return list(config_flags.get_override_values(flags.FLAGS["config"]))


class _PathParser(flags.ArgumentParser):
    """Replaces `~` and environment variables in a path. Its end may be given, but for an empty path and -.

    A path that is `written` is a file that can be: whoever waits for what it is to hold learns of a mistake first.
    """

    def __init__(self, ends: tuple[str, ...] = ("",), written: bool = False):
        self._ends, self._written = ends, written

    def parse(self, argument: str) -> str:
        path = expand(argument)
        if argument in ("", "-"):
            return path
        if not argument.lower().endswith(self._ends):
            raise ValueError(f"it is not a file whose name ends in {' or '.join(self._ends)}")
        folder = os.path.dirname(path) or "."
        if self._written and not (
            os.path.isdir(folder)
            and not os.path.isdir(path)
            and os.access(path if os.path.exists(path) else folder, os.W_OK)
        ):
            raise ValueError("it is not a file of this machine that can be written, in a folder that is there")
        return path

    def flag_type(self) -> str:
        return "path"


def define_path(
    name: str, default: str | None, help_: str, *, required: bool = False, written: bool = False
) -> flags.FlagHolder[str]:
    """Defines a flag that is a path, of a local file that is written at the end if `written`.

    `~` and environment variables in it are replaced.
    """
    return flags.DEFINE(_PathParser(written=written), name, default, help_, required=required)


def define_picture(name: str, default: str, help_: str, kinds: tuple[str, ...]) -> flags.FlagHolder[str]:
    """Defines a flag that is the path of a picture to write. Its name ends in one of `kinds`, such as `.png`."""
    return flags.DEFINE(_PathParser(kinds, written=True), name, default, help_)


def refuse_given(names: Iterable[str], why: str) -> None:
    """Refuses flags that the command line gives though they do nothing here.

    Raises:
        InputError: one of them is given.
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise InputError(f"--{name} has no effect {why}; leave it out.")


def require_given(names: Iterable[str]) -> None:
    """Refuses flags that are missing, after a script has looked at the words of its command line.

    absl looks for required flags before that, so it would name a missing flag where the command is the mistake.

    Raises:
        InputError: one of them is not given.
    """
    for name in names:
        if flags.FLAGS[name].value is None:
            raise InputError(_missing(name))


def opened(
    flag: flags.FlagHolder[str], mode: str, standard: IO[AnyStr]
) -> contextlib.AbstractContextManager[IO[AnyStr]]:
    """Opens the file that a flag names; for - returns the standard stream, which stays open.

    Raises:
        InputError: it cannot be opened.
    """
    encoding = None if "b" in mode else "utf-8"
    try:
        return contextlib.nullcontext(standard) if flag.value == "-" else open(flag.value, mode, encoding=encoding)
    except OSError as error:
        kind = "a file, or - for stdin" if "r" in mode else "a writable file, or - for stdout"
        raise InputError(f"--{flag.name} is {flag.value!r}: {error.strerror}; give {kind}.") from error


def run(
    main: Callable[[], int | None],
    arguments: str = "",
    *,
    interrupted: str = "",
    unknown: Callable[[str], str] = lambda _: "",
) -> NoReturn:
    """Parses the command line, calls `main` and exits with the code that it returns; None means 0.

    Without `arguments` every word must be a flag. With it, `main` gets the other words from `words()`, and `arguments`
    says what they are. `interrupted` says at Ctrl-C where the work stands; a second Ctrl-C ends the process at once.
    `unknown` may say what to do with an unknown flag, by its name; an empty answer is followed by the nearest flags.

    A wrong flag, or an `InputError` from `main`, gives one line on stderr and exit code 2. Any other exception is a
    fault and gives a traceback and exit code 1.

    Tracing a model makes millions of objects that live until it is compiled. Python would look through them for
    cycles hundreds of times; looking rarely starts quickstart's run with a tenth less CPU time.
    """
    gc.set_threshold(100_000, 20, 100)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as the files that are read and written, whatever the locale
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of XLA's log, errors; jax reads it when it is imported
    skip_absent_tpus()
    last_words = f"interrupted: {interrupted}" if interrupted else "interrupted"
    with interrupts.raised(last_words):
        _run(main, functools.partial(_parse_flags, arguments, unknown), last_words)


def _run(main: Callable[[], int | None], parser: Callable[[list[str]], list[str]], last_words: str) -> NoReturn:
    try:
        app.run(lambda _: _run_to_the_last_byte(main), flags_parser=parser)
    except InputError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        if not (extra := _EXTRAS.get(error.name or "")):
            raise
        _fail(InputError(f"this needs {error.name}; pip install -e '.[{extra}]'."))
    except BrokenPipeError:  # the reader of our output, such as head, has closed it
        _drop_output()
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _drop_output()
            _fail(InputError("the disk is full, so the output is not whole; free some space, or write it elsewhere."))
        if not _lies_in_a_flag(str(error.filename or "")):
            raise
        _fail(InputError(f"{error.filename!r} cannot be used: {error.strerror}; give another path."))
    except KeyboardInterrupt:
        interrupts.say(last_words)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        # A compiler's threads may still run. Python's own end would free what they use: a segmentation fault.
        os._exit(EXIT_INTERRUPTED)
    sys.exit(EXIT_DONE)


def _drop_output() -> None:
    """Leaves what is not printed yet: Python would try again at its end, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_to_the_last_byte(main: Callable[[], int | None]) -> int | None:
    """Calls `main`, and writes what it printed: a reader that has gone is not found out before that."""
    code = main()
    sys.stdout.flush()
    return code


def _lies_in_a_flag(path: str) -> bool:
    """Returns whether a path is one that a flag names, or lies below it: then the flag is wrong, not the program."""
    values = [flags.FLAGS[name].value for name in flags.FLAGS if flags.FLAGS[name].present]
    given = [os.path.abspath(value) for value in values if isinstance(value, str) and value]
    return bool(path) and any(f"{os.path.abspath(path)}/".startswith(f"{each}/") for each in given)


def _fail(error: Exception) -> NoReturn:
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(EXIT_INPUT)


_words: list[str] = []


def words() -> list[str]:
    """Returns the words of the command line that are no flags."""
    return _words


def _parse_flags(arguments: str, unknown: Callable[[str], str], argv: list[str]) -> list[str]:
    """Parses `argv`, and turns each of absl's errors into an `InputError`."""
    flags.FLAGS.set_gnu_getopt()  # also reads flags that follow a stray argument
    argv = ["--help" if word == "-h" else word for word in argv]
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise InputError(unknown(error.flagname) or _unknown_flag(error.flagname)) from None
    except flags.IllegalFlagValueError as error:
        _help_config()  # it needs no other flag
        raise InputError(_illegal_value(str(error))) from None
    except (flags.Error, ValueError) as error:
        raise InputError(str(error)) from None
    except SystemExit:  # --help has printed its text
        sys.exit(EXIT_DONE)
    _help_config()
    if rest and not arguments:
        raise InputError(f"unexpected argument {rest[0]!r}; every setting is a flag: --name=value.")
    if arguments and not rest:
        raise InputError(f"no argument is given; give {arguments}.")
    _words[:] = rest
    for name in flags.FLAGS:
        flag = flags.FLAGS[name]
        if flag.present and flag.value == "" and flag.default is None:
            raise InputError(f"--{name} is empty; give it a value, or leave it out if it is not needed.")
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING  # app.run would choose INFO, at which libraries log a lot
    return argv[:1]


def _help_config() -> None:
    """Prints the settings of the config and ends, if --help_config asks for it."""
    if "help_config" in flags.FLAGS and flags.FLAGS["help_config"].value:
        if not flags.FLAGS["config"].present:
            raise InputError("--help_config has no config to show; give --config=FILE as well.")
        config = flags.FLAGS["config"].value
        assert isinstance(config, Config)
        print(reference.as_text(config))
        sys.exit(EXIT_DONE)


def _unknown_flag(name: str) -> str:
    if name.startswith(("config.", "noconfig.")) and "config" in flags.FLAGS:
        if flags.FLAGS["config"].present:
            return f"--{name} is not accepted; only a true-or-false field has the short form --noconfig.FIELD."
        return f"--{name} has no config to change; give --config=FILE before it."
    if "config" in flags.FLAGS and (settings := reference.called(name, list(flags.FLAGS))):
        return f"unknown flag --{name}; did you mean {' or '.join(f'--config.{each}' for each in settings)}?"
    near = nearest(name, list(flags.FLAGS))
    hint = f"did you mean {' or '.join(f'--{match}' for match in near)}?" if near else "--help lists the flags."
    return f"unknown flag --{name}; {hint}"


def _missing(name: str) -> str:
    return f"--{name} is missing; --help says what it takes."


def _illegal_value(message: str) -> str:
    """Returns a message that says what a flag accepts. Absl only repeats Python's conversion error."""
    if missing := re.search(r"Flag --(\w+) must have a value other than None", message):
        return _missing(missing[1])
    if choice := re.match(r"flag --([\w.]+)=(.*): value should be one of <(.*)>$", message, re.DOTALL):
        name, value, accepted = choice.groups()
        return f"--{name} is {value!r}; accepted: {', '.join(accepted.split('|'))}."
    if bound := re.match(r"flag --([\w.]+)=(.*): \S+ is not (an? )?(.*)$", message, re.DOTALL):
        name, value, article, accepted = bound.groups()
        article = article or ("an " if accepted.startswith("integer") else "a ")  # absl writes "integer >= 5"
        return f"--{name} is {value}; accepted: {article}{accepted}."
    conversion = r"flag --([\w.]+)=(.*): (?:invalid literal|could not convert|\('Non-boolean)"
    if not (match := re.match(conversion, message, re.DOTALL)):
        return message
    name, value = match.groups()
    return f"--{name} is {value!r}; accepted: {_ACCEPTED[flags.FLAGS[name].flag_type()]}."


class _ConfigFileParser(flags.ArgumentParser):
    """Loads a config file; raises `InputError` for an error in the file or in an override.

    The parser of ml_collections reports a missing file only when the config is read, and an unknown field as a
    KeyError from its internals.
    """

    def parse(self, argument: str) -> Config:
        argument = expand(argument)
        if flags.FLAGS["config"].present:
            raise InputError("--config is given twice; give it once, before the settings that change it.")
        config = _load_config(argument)
        _check_overrides(config, flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False))
        return config

    def flag_type(self) -> str:
        return "config file"


def find_config(name: str) -> str:
    """Returns the file that --config names: a path, or the name of a file of configs/ with or without `.py`."""
    own = _CONFIGS / f"{name.removesuffix('.py')}.py"
    if not os.path.isfile(name) and re.fullmatch(r"\w+(\.py)?", name) and own.is_file():
        return os.path.relpath(own) if own.is_relative_to(Path.cwd()) else str(own)
    return name


def _load_config(path: str) -> Config:
    path = find_config(path)
    if not os.path.isfile(path):
        near = nearest(path, [str(file) for file in Path(path).parent.glob("*.py")])
        near = near or nearest(path.removesuffix(".py"), [file.stem for file in _CONFIGS.glob("*.py")])
        hint = f"did you mean {' or '.join(near)}?" if near else f"accepted: {loading.ACCEPTED}, or a name in configs/."
        raise InputError(f"--config is {path!r}, which is not a file; {hint}")
    return loading.load(path)


def _fields(value: object, prefix: str) -> Iterator[str]:
    """Yields the dotted names below a section; entries of a mapping, such as a mixture's tasks, are sections too."""
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for name, inner in value.items() if isinstance(value, dict) else ():
        if dataclasses.is_dataclass(inner) or isinstance(inner, dict):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_overrides(config: Config, argv: list[str]) -> None:
    """Refuses the first `--config.section.field` of `argv` that `config` does not have."""
    accepted = {}  # section -> its fields; none for a field of the config itself, such as seed
    for field in dataclasses.fields(config):
        accepted[field.name] = list(_fields(getattr(config, field.name), field.name + "."))
    leaves = [leaf for section, names in accepted.items() for leaf in names or [section]]
    for argument in argv:
        override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if not override or override[1] in leaves:
            continue
        name = override[1]
        if name in accepted:
            raise InputError(f"--config.{name} is a section; set one of its fields: {', '.join(accepted[name])}.")
        if near := nearest(name, leaves):
            raise InputError(f"--config.{name} is not a field of the config; nearest: {', '.join(near)}.")
        choices = accepted.get(name.split(".")[0]) or list(accepted)
        raise InputError(f"--config.{name} is not a field of the config; accepted: {', '.join(choices)}.")
