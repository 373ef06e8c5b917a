"""Loses a node of Ray in the middle of launch/prepare.py and compares the store with the local runner's, by hand.

python -m tests.faults.ray_work prepare --megabytes=40

Ray has two nodes on this machine, of one core each. One is killed with its workers when a third of the shards is
complete. It prints a JSON object.
"""

import argparse
import contextlib
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
from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]  # of the extra [ray]

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Cluster, Callable[[], None]]]:
    """Starts Ray with a head and two nodes; yields it and what kills one of the nodes with all its processes."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill() -> None:
        processes = [psutil.Process(info.process.pid) for found in nodes[1].all_processes.values() for info in found]
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
        while (complete := len(list((folder / "ray").glob("shards/*/complete.json")))) < wanted / 3:
            time.sleep(0.05)
        kill()
        seconds = finished(process)
    found, expected = contents(folder / "ray"), contents(folder / "local")
    result = {"shards": wanted, "complete_when_a_node_was_killed": complete, "files": len(expected)}
    print(json.dumps(result | {"equal": found == expected, "seconds_local": alone, "seconds_after_the_kill": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["prepare"])
    parser.add_argument("--megabytes", type=int, default=40)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), given.megabytes)


if __name__ == "__main__":
    main()
