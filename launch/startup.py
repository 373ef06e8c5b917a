"""A launch script imports this first: what ends it before `lm.cli.run` takes over is said in one line.

It stands beside the scripts, where Python finds it even if lm is not installed. So they are run by their path and not
with -m. The other imports of a script take about a tenth of a second, and longer on a cold disk. What comes before the
script's first line belongs to Python, which prints a traceback there. A process that the script spawns imports the
script again; it leaves Ctrl-C to its parent.
"""

import os
import signal
import sys


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)  # 128 + SIGINT


def _report(kind, error, trace) -> None:
    """Names a package that this Python lacks, now or later; any other exception keeps its traceback."""
    name = (isinstance(error, ModuleNotFoundError) and error.name) or ""
    if not name or "." in name:  # a package without one of its modules is a fault
        return sys.__excepthook__(kind, error, trace)
    which = f"{sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]})"
    how = "activate the environment with `source .venv/bin/activate`; `bash launch/quickstart.sh` makes it"
    if sys.prefix != sys.base_prefix:  # one is active
        how = "install it, or what the project needs with `pip install -e .`"
    print(f"error: {which} lacks the package {name}; {how}.", file=sys.stderr)
    sys.exit(2)


sys.excepthook = _report
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN if "__mp_main__" in sys.modules else _end)
