"""A launch script imports this first: until `lm.cli.run` takes over, Ctrl-C ends it with one line and no traceback.

The imports of a script take about a tenth of a second, and longer on a cold disk. What comes before the script's first
line belongs to Python, which prints a traceback there. A process that the script spawns imports the script again; it
leaves Ctrl-C to its parent.
"""

import os
import signal
import sys


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)  # 128 + SIGINT


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN if "__mp_main__" in sys.modules else _end)
