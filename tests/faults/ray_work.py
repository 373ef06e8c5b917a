"""Loses a node of Ray in the middle of launch/prepare.py and of launch/predict.py, by hand.

python -m tests.faults.ray_work prepare --megabytes=40
python -m tests.faults.ray_work embed --texts=100000
python -m tests.faults.ray_work embed --texts=1000000 --runner=local

Ray has two nodes on this machine, of one core each. `prepare`: a node is killed with its workers when a third of the
shards is complete; the store is compared with the local runner's. `embed`: the command is killed after a third of the
parts and given again, and on Ray a node is killed after two thirds; the ids are counted, and the first parts compared
with those of an undisturbed local run. The encoder has two layers of width 128. Each prints a JSON object.
"""

import argparse
import contextlib
import glob
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # pyright: ignore[reportMissingModuleSource]  # comes with ray
import pyarrow.parquet as pq
from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]  # of the extra [ray]

from lm.inference import parts
from tests.benchmarks import embedding
from tests.benchmarks.turns import apart

COMPARED = 3  # parts
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Cluster, Callable[[], None]]]:
    """Starts Ray with a head and another node; yields it and what kills the other node with all its processes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)

    def kill() -> None:
        processes = [psutil.Process(info.process.pid) for found in node.all_processes.values() for info in found]
        for process in [*processes, *(child for each in processes for child in each.children(recursive=True))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    try:
        yield cluster, kill
    finally:
        cluster.shutdown()


def launch(script: str, *flags: str, address: str = "") -> subprocess.Popen:
    environment = os.environ | ({"RAY_ADDRESS": address} if address else {})
    return subprocess.Popen([sys.executable, f"launch/{script}.py", *flags], cwd=ROOT, env=environment)


def finished(process: subprocess.Popen) -> float:
    """Waits for a process; returns the seconds."""
    begun = time.monotonic()
    if process.wait() != 0:
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    return round(time.monotonic() - begun, 1)


def waited(pattern: Path, count: float) -> int:
    """Waits until there are so many files; returns how many."""
    while (found := len(glob.glob(str(pattern)))) < count:
        time.sleep(0.05)
    return found


def contents(folder: Path) -> dict[str, str]:
    """Returns the hash of every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_corpus(path: Path, megabytes: int) -> None:
    """Writes random English-like documents of about 100 words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]
    with path.open("w") as file:
        while file.tell() < megabytes << 20:
            file.write(" ".join(draw.choices(words, k=100)).capitalize() + ".\n\n")


def prepare(folder: Path, megabytes: int) -> None:
    write_corpus(folder / "corpus.txt", megabytes)
    flags = ["--config=configs/mini.py", f"--config.data.path={folder}/corpus.txt", "--config.data.source=text"]
    alone = finished(launch("prepare", *flags, f"--out={folder}/local"))
    with two_nodes() as (cluster, kill):
        process = launch("prepare", *flags, f"--out={folder}/ray", "--runner=ray", address=cluster.address)
        wanted = len(list((folder / "local/shards").iterdir()))
        complete = waited(folder / "ray/shards/*/complete.json", wanted / 3)
        kill()
        seconds = finished(process)
    found, expected = contents(folder / "ray"), contents(folder / "local")
    result = {"shards": wanted, "complete_when_a_node_was_killed": complete, "files": len(expected)}
    print(json.dumps(result | {"equal": found == expected, "seconds_local": alone, "seconds_after_the_kill": seconds}))


def embed(folder: Path, texts: int, runner: str) -> None:
    apart(embedding.make_small, folder)
    embedding.write_texts(folder / "all.parquet", texts)
    rows = pq.read_table(folder / "all.parquet")
    pq.write_table(rows.slice(0, COMPARED * parts._ROWS), folder / "first.parquet")
    total = len(parts.cut(str(folder / "all.parquet")))
    flags = [f"--checkpoint={folder}/run", "--task=embed"]
    found = [*flags, f"--output={folder}/found", f"--input={folder}/all.parquet", f"--runner={runner}"]
    killed: dict[str, int] = {}
    with two_nodes() if runner == "ray" else contextlib.nullcontext() as nodes:
        address = nodes[0].address if nodes else ""
        begun = time.monotonic()
        process = launch("predict", *found, address=address)
        killed["the command"] = waited(folder / "found/part-*.parquet", total / 3)
        process.kill()
        process.wait()
        process = launch("predict", *found, address=address)
        if nodes:
            killed["a node"] = waited(folder / "found/part-*.parquet", 2 * total / 3)
            nodes[1]()
        finished(process)
        seconds = round(time.monotonic() - begun, 1)
    ids = pq.read_table(folder / "found", columns=["id"])["id"].to_pylist()
    finished(launch("predict", *flags, f"--output={folder}/local", f"--input={folder}/first.parquet"))
    names = [path.name for path in (folder / "local").glob("part-*.parquet")]
    equal = all((folder / "found" / name).read_bytes() == (folder / "local" / name).read_bytes() for name in names)
    result = {"runner": runner, "parts": total, "parts_complete_at_the_kill_of": killed, "seconds": seconds}
    result |= {"answers": len(ids), "different_ids": len(set(ids)), "complete": ids == list(range(texts))}
    summary = json.loads((folder / "found/_summary.json").read_text())
    print(json.dumps(result | {"parts_compared": len(names), "equal": equal, "summary": summary}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["prepare", "embed"])
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--runner", choices=["local", "ray"], default="ray", help="Of embed.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.part == "prepare":
            prepare(Path(folder), given.megabytes)
        else:
            embed(Path(folder), given.texts, given.runner)


if __name__ == "__main__":
    main()
