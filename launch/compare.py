"""Compares runs: python launch/compare.py RUN RUN...

It prints the last metrics of the runs side by side and the settings in which they differ, and draws their losses.
"""

import startup  # noqa: F401

import sys

from lm import cli

_output = cli.define_picture("output", "compare.png", "File for the picture of the losses.", (".png",))


def main() -> None:
    from lm.training import compared

    runs = compared.read(cli.words())
    print(compared.table(runs))
    with cli.opened(_output, "wb", sys.stdout.buffer) as file:
        file.write(compared.picture(runs))
    print(f"\n{_output.value}: the losses of {len(runs.names)} runs")


if __name__ == "__main__":
    cli.run(main, arguments="working directories of runs, as in: compare.py runs/a runs/b")
