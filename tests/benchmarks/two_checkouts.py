"""Times two checkouts in turn: a change that should not change speed shows a ratio of one.

    git worktree add /tmp/before COMMIT
    python tests/benchmarks/two_checkouts.py --before=/tmp/before
    python tests/benchmarks/two_checkouts.py --before=/tmp/before --only=decoding --turns=9

Each checkout has a process of its own for each case, which compiles once. The two then take turns, the order changing
from turn to turn; a turn begins with a run that is not timed. The ratio is the median of the earlier checkout's seconds
over the median of the later one's: above one, the later one is faster.

Cases: `pretraining` (BERT base, 8 x 128 tokens, full and ragged rows), `seq2seq` (T5 small, full and ragged, without a
scan over layers), `decoding` (T5 small, 1, 8 and 32 sources, greedily and with four beams).
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CASES = {
    "pretraining": [{"setting": "full"}, {"setting": "ragged"}],
    "seq2seq": [{"setting": "full"}, {"setting": "ragged"}],
    "decoding": [{"batch": batch, "beams": beams} for beams in (1, 4) for batch in (1, 8, 32)],
}


# ---- The process of one checkout: it imports that checkout's benchmarks ----------------------


def make_turn(name: str, case: dict, folder: str) -> Callable[[], object]:
    """What one turn runs."""
    from absl import flags

    if name == "decoding":
        from tests.benchmarks import decoding

        flags.FLAGS(["decoding"])
        return decoding.ours(decoding.make_sources(case["batch"]), case["beams"])
    from tests.benchmarks import pretraining_step as shared

    if name == "pretraining":
        from lm.config import DataConfig
        from lm.data import prepare

        flags.FLAGS(["pretraining_step", "--steps=1"])
        store = prepare.prepare(DataConfig(source="installed-docs", vocab_size=shared.VOCAB_SIZE), f"{folder}/store")
        make_case = {"full": shared.full_case, "ragged": shared.ragged_case}[case["setting"]]
        made = make_case(store, 128)
    else:
        from tests.benchmarks import seq2seq_step

        flags.FLAGS(["seq2seq_step", "--steps=1", "--unroll=0"])
        make_case = {"full": seq2seq_step.full_case, "ragged": seq2seq_step.ragged_case}[case["setting"]]
        made = make_case(folder)
    step, _ = shared.our_step("float32", made)
    return functools.partial(step, 0)


def serve(name: str, case: dict, folder: str) -> None:
    """Runs a turn for each line of standard input, and answers with its seconds."""
    turn = make_turn(name, case, folder)
    turn()
    print("ready", flush=True)
    for _ in sys.stdin:
        turn()
        began = time.perf_counter()
        turn()
        print(time.perf_counter() - began, flush=True)


# ---- The process that compares ---------------------------------------------------------------


def start(checkout: Path, name: str, case: dict, folder: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--serve", name, "--case", json.dumps(case), "--folder", folder]
    environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def read(process: subprocess.Popen) -> str:
    line = process.stdout.readline() if process.stdout else ""
    while line and not (line == "ready\n" or line[0].isdigit()):  # a benchmark may print, too
        line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise SystemExit("A process ended; see above.")
    return line


def compare(before: Path, name: str, case: dict, turns: int, folder: str) -> dict:
    """The seconds of both checkouts, turn by turn."""
    processes = {}
    for which, checkout in (("before", before), ("after", ROOT)):
        processes[which] = start(checkout, name, case, folder)
        assert read(processes[which]) == "ready\n"
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    for turn in range(turns):
        for which in ("before", "after") if turn % 2 == 0 else ("after", "before"):
            processes[which].stdin.write("turn\n")
            seconds[which].append(float(read(processes[which])))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--only", choices=list(CASES), action="append")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--serve", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        sys.path.pop(0)  # the folder of this file, which is not the checkout's
        serve(given.serve, given.case, given.folder)
        return
    if not given.before:
        parser.error("--before is missing: give the earlier checkout.")
    print("| case | before, median s | best | after, median s | best | before / after, median | best |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in given.only or CASES:
            for case in CASES[name]:
                found = compare(given.before.resolve(), name, case, given.turns, given.folder or temporary)
                (a, b), (c, d) = ((statistics.median(found[k]), min(found[k])) for k in ("before", "after"))
                what = ", ".join(f"{key} {value}" for key, value in case.items())
                print(
                    f"| {name}, {what} | {a:.3f} | {b:.3f} | {c:.3f} | {d:.3f} | {a / c:.2f} | {b / d:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
