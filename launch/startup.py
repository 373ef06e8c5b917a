"""A launch script imports this first: what ends it before `lm.cli.run` takes over is said in one line.

It stands beside the scripts, where Python finds it even if lm is not installed. The other imports of a script take
about a tenth of a second, and longer on a cold disk. What comes before the script's first line belongs to Python, which
prints a traceback there. A process that the script spawns imports the script again; it leaves Ctrl-C to its parent.
"""

import os
import signal
import sys


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)  # 128 + SIGINT


def _report(kind, error, trace) -> None:
    """Names a package that this Python lacks, now or later; any other exception keeps its traceback."""
    name = (getattr(error, "name", None) or "").split(".")
    if not isinstance(error, ModuleNotFoundError) or (name[0] == "lm" and len(name) > 1):
        return sys.__excepthook__(kind, error, trace)
    which = f"{sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]})"
    how = "`source .venv/bin/activate`; if there is no .venv, `bash launch/quickstart.sh` makes it"
    print(f"error: {which} lacks the package {name[0]}; activate the environment with {how}.", file=sys.stderr)
    sys.exit(2)


sys.excepthook = _report
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN if "__mp_main__" in sys.modules else _end)
