"""What faults cost the other clients of a server, as a table for RESULTS.md.

python -m tests.faults.serving --folder=DIR --times=10 [--only=NAME,...]

DIR is that of `tests.benchmarks.serving`. While a fault strikes, other clients embed known texts, and every answer is
compared with the known vectors. tests.faults.ray_serve and tests.faults.restarts have the faults of several servers.
"""

import asyncio
import base64
import collections
import dataclasses
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from tests.benchmarks import serving_load
from tests.faults import clients
from tests.faults.served import Server

_folder = flags.DEFINE_string("folder", None, "The models and texts of tests.benchmarks.serving.", required=True)
_times = flags.DEFINE_integer("times", 10, "How often each fault strikes.", lower_bound=1)
_only = flags.DEFINE_list("only", None, "Names of the faults, by default all.")
_seed = flags.DEFINE_integer("seed", 0, "Of what is drawn at random.")

OTHERS = 2  # other clients
TOGETHER = 4  # texts of their requests
OVERLOAD = 10.0  # requests, over what the server can answer
OVERLOADED = 6.0  # seconds
DEADLINE = 5.0  # seconds of a request
NEAR = 1e-4  # between two computations of one vector
MALFORMED = 200  # bodies a strike
BAD_ITEMS: list[Any] = [None, 7, {"text": "a"}, ["a", "list"], "word " * 5000]


class Others:
    """Clients that embed known texts in a thread of their own, for as long as the context lasts."""

    def __init__(self, server: Server, texts: list[str]):
        self._port = server.port
        self._bodies = [{"model": "embed", "input": texts[at : at + TOGETHER]} for at in range(0, 40, TOGETHER)]
        self.statuses: collections.Counter[object] = collections.Counter()
        self.latencies: list[float] = []
        self.wrong = 0
        self._known = [asyncio.run(self._ask_once(body)) for body in self._bodies]

    async def _ask_once(self, body: dict[str, Any]) -> np.ndarray:
        client = serving_load.Client(self._port)
        assert (await client.ask("/v1/embeddings", body)).status == 200, client.content
        client.close()
        return vectors(client.content)

    def __enter__(self) -> "Others":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask(first) for first in range(OTHERS)))

    async def _ask(self, first: int) -> None:
        client = serving_load.Client(self._port)
        for number in itertools.islice(itertools.cycle(range(len(self._bodies))), first, None):
            if self._ended.is_set():
                break
            try:
                answer = await client.ask("/v1/embeddings", self._bodies[number])
            except (OSError, asyncio.IncompleteReadError) as error:
                self.statuses[type(error).__name__] += 1
                continue
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.latencies.append(answer.last - answer.sent)
                self.wrong += bool(np.abs(vectors(client.content) - self._known[number]).max() > NEAR)
            else:
                await asyncio.sleep(0.1)
        client.close()


def vectors(content: bytes) -> np.ndarray:
    found = [row["embedding"] for row in json.loads(content)["data"]]
    return np.array([np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row for row in found])


# ---- Faults: each returns how often each status came


@dataclasses.dataclass
class Struck:
    """What a fault may use: the server, the workdir that it reads, texts, and the chance that decides."""

    server: Server
    workdir: Path
    texts: list[str]
    chance: random.Random
    capacity: float = 0.0  # requests a second


def overload(struck: Struck) -> dict[int, int]:
    bodies = requests(struck.texts)
    if not struck.capacity:
        answers = asyncio.run(serving_load.closed_loop(struck.server.port, bodies, 8, OVERLOADED))
        struck.capacity = serving_load.summary(answers)["per_second"]
    rate = OVERLOAD * struck.capacity
    answers = asyncio.run(serving_load.poisson(struck.server.port, bodies, rate, OVERLOADED))
    return collections.Counter(answer.status for answer in answers)


def requests(texts: list[str]) -> serving_load.Bodies:
    for start in itertools.cycle(range(0, len(texts), 8)):
        yield "/v1/embeddings", {"model": "embed", "input": texts[start : start + 8]}


def bad_weights(struck: Struck) -> dict[int, int]:
    """A newer checkpoint with a cut or changed file, and the request to use it."""
    checkpoints = struck.workdir / "checkpoints"
    number = max(int(path.name) for path in checkpoints.iterdir()) + 1
    shutil.copytree(checkpoints / "0", checkpoints / str(number))
    files = [path for path in (checkpoints / str(number)).rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    file = struck.chance.choice(sorted(files))
    content = bytearray(file.read_bytes())
    if struck.chance.random() < 0.5:
        content = content[: struck.chance.randrange(len(content))]
    else:
        content[struck.chance.randrange(len(content))] ^= 1 << struck.chance.randrange(8)
    file.write_bytes(content)
    time.sleep(1.0)
    status = clients.Client(struck.server.port).post("/admin/reload", b'{"model": "embed"}')
    time.sleep(1.0)
    return {status: 1}


def slow_readers(struck: Struck) -> dict[int, int]:
    clients.slow_readers(struck.server)
    return {}


def bad_item(struck: Struck) -> dict[int, int]:
    """Requests of eight texts, one of which is none."""
    found: collections.Counter[int] = collections.Counter()
    client = clients.Client(struck.server.port)
    for item in BAD_ITEMS:
        inputs = [*struck.texts[:7]]
        inputs.insert(struck.chance.randrange(8), item)
        found[client.post("/embed", json.dumps({"inputs": inputs, "truncate": False}).encode())] += 1
    return found


def malformed(struck: Struck) -> dict[int, int]:
    return clients.raw_bodies(struck.server, MALFORMED)


FAULTS: dict[str, tuple[str, Callable[[Struck], dict[int, int]]]] = {
    "overload": ("ten times the requests that it can answer", overload),
    "bad-weights": ("a damaged newer checkpoint, and /admin/reload", bad_weights),
    "slow-readers": ("60 streams that nobody reads", slow_readers),
    "bad-item": ("one bad item in a request of eight", bad_item),
    "malformed": (f"{MALFORMED} malformed bodies", malformed),
}


def row(name: str, struck: Struck) -> tuple[str, bool]:
    """Strikes again and again; returns a row of the table, and whether nobody else was harmed."""
    what, strike = FAULTS[name]
    others, own = Others(struck.server, struck.texts), collections.Counter[int]()
    for _ in range(_times.value):
        with others:
            time.sleep(0.5)
            own.update(strike(struck))
            queue, slots, _ = clients.left(struck.server)
            assert not queue, f"{queue} items were left in the queue"
            assert not slots, f"{slots} slots stayed in use"
        print(f"{name}: {dict(own)}, others {dict(others.statuses)}", file=sys.stderr, flush=True)
    refused = others.statuses.pop(429, 0)
    answered = others.statuses.pop(200, 0)
    failed, p99 = sum(others.statuses.values()), serving_load.quantile(others.latencies, 0.99)
    servers = sum(count for status, count in own.items() if not 200 <= status < 500)
    holds = not (failed or others.wrong or servers or struck.server.status("/health") != 200)
    statuses = (
        ", ".join(f"{count} times {status}" for status, count in sorted(own.items(), key=str)) or "no answer read"
    )
    numbers = f"{answered} | {refused} | {failed} | {others.wrong} | {p99:.2f} s"
    return f"| {what} | {_times.value} | {statuses or 'nothing'} | {numbers} |{'' if holds else ' FAILS'}", holds


def main(argv: list[str]) -> None:
    del argv
    wanted = _only.value or list(FAULTS)
    if unknown := set(wanted) - set(FAULTS):
        sys.exit(f"error: --only={','.join(sorted(unknown))}; accepted: {', '.join(FAULTS)}.")
    folder = Path(_folder.value).absolute()
    with tempfile.TemporaryDirectory(prefix="faults-") as copies:
        workdir = Path(copies) / "embed"
        shutil.copytree(folder / "embed", workdir)
        flags_ = ("--tasks=embed,generate", "--beams=1,2", "--max_length=64", f"--deadline={DEADLINE}")
        models = f"embed={workdir},generate={folder / 'tiny'}"
        server = Server(models, *flags_, f"--compilation_cache={folder / 'cache'}", "--drain_seconds=0")
        texts = json.loads((folder / "texts.json").read_text())
        struck = Struck(server, workdir, texts, random.Random(_seed.value))
        print("| fault | times | its own requests got | others: answered | refused | failed | wrong | p99 |")
        print("|---|---:|---|---:|---:|---:|---:|---:|", flush=True)
        holds = True
        for name in wanted:
            line, fine = row(name, struck)
            holds &= fine
            print(line, flush=True)
        metrics = server.metrics()
        compiled, faults, code = metrics["lm_compilations_total"], metrics["lm_faults_total"], server.stop()
    print(f"compiled {compiled:.0f}, failed batches {faults:.0f}, exit code {code}, load {os.getloadavg()[0]:.1f}")
    raise SystemExit(0 if holds and not (compiled or faults or code) else 1)


if __name__ == "__main__":
    app.run(main)
