"""Restarts and new weights under load: python -m tests.faults.restarts --folder=DIR [--only=rolling,swap]

DIR is that of `tests.benchmarks.serving`. `rolling` needs haproxy: two servers behind a balancer that never tries a
request twice are stopped in turn by SIGTERM and started with another checkpoint, while clients embed texts and read
streams. Then one after the other is started with a damaged checkpoint, which it refuses. `swap` replaces the weights of
a server again and again. Every answer has to be that of one set of weights.
"""

import asyncio
import base64
import collections
import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from tests.benchmarks import serving_load, serving_models
from tests.faults.served import ROOT, Server, report

_folder = flags.DEFINE_string("folder", None, "The models and texts of tests.benchmarks.serving.", required=True)
_only = flags.DEFINE_list("only", ["rolling", "swap"], "What to do.")
_rounds = flags.DEFINE_integer(
    "rounds", 1, "How often both servers get another checkpoint; a damaged one twice as often."
)
_swaps = flags.DEFINE_integer("swaps", 6, "How often weights are replaced.")

READERS, WRITERS = 4, 2  # clients that embed, and clients that read streams
PAUSE = 0.2  # seconds between an answer and the client's next request; without it, no core is left to start a server
DRAIN = 4.0  # seconds
NEAR = 1e-5  # between two computations of one vector; two checkpoints differ by far more
BALANCER = """
defaults
  mode http
  retries 0
  timeout connect 2s
  timeout check 2s
  timeout client 60s
  timeout server 60s
frontend all
  bind 127.0.0.1:{front}
  default_backend servers
backend servers
  balance roundrobin
  option httpchk GET /ready
  default-server check inter 300ms fall 1 rise 1
  server one 127.0.0.1:{one}
  server two 127.0.0.1:{two}
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Load:
    """Clients that ask until they are told to stop, each on a connection of its own."""

    def __init__(self, port: int):
        self._port, self._stopped = port, False
        self.statuses: collections.Counter[object] = collections.Counter()
        self.contents: list[bytes] = []

    async def ask(self, bodies: serving_load.Bodies, keeps: bool = False) -> None:
        client = serving_load.Client(self._port)
        while not self._stopped:
            try:
                answer = await client.ask(*next(bodies))
                self.statuses[answer.status] += 1
                if keeps and answer.status == 200:
                    self.contents.append(client.content)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.statuses[type(error).__name__] += 1
            await asyncio.sleep(PAUSE)
        client.close()

    def stop(self) -> None:
        self._stopped = True

    @property
    def failures(self) -> dict[object, int]:
        return {status: count for status, count in self.statuses.items() if status != 200}


# ---- A rolling restart --------------------------------------------------------------------------


def rolling(folder: Path, texts: list[str]) -> bool:
    front, *ports = free_ports(3)
    with tempfile.TemporaryDirectory() as made, tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
        workdirs = make_workdirs(folder, Path(made))
        servers = [start(folder, workdirs["first"], port) for port in ports]
        config.write(BALANCER.format(front=front, one=ports[0], two=ports[1]))
        config.flush()
        balancer = subprocess.Popen(["haproxy", "-f", config.name], stderr=subprocess.DEVNULL)
        time.sleep(2.0)
        roll = Roll(folder, texts, workdirs, servers, front)
        asyncio.run(roll.run())
        balancer.terminate()
        balancer.wait()
        compiled = [server.metrics()["lm_compilations_total"] for server in roll.servers]
        last = [server.stop() for server in roll.servers]
    answers, load = roll.answers(), roll.load
    return report(
        "rolling",
        [
            ("requests", load.statuses[200], load.statuses[200] > 50),
            ("failed", load.failures, not load.failures),
            ("answers by checkpoint", dict(answers), set(answers) == {"first", "other"}),
            ("restarts with another checkpoint", 2 * _rounds.value, True),
            ("starts with a damaged checkpoint", 2 * _rounds.value, roll.refused == 2 * _rounds.value),
            ("exit codes", roll.codes + last, set(roll.codes + last) == {0}),
            ("seconds of a restart, draining included", roll.seconds, True),
            ("programs compiled since the start", compiled, not any(compiled)),
        ],
    )


def make_workdirs(folder: Path, made: Path) -> dict[str, Path]:
    """Returns workdirs of one model: `first`, `other` with other weights, `damaged` with half of its largest file."""
    workdirs = {name: made / name for name in ("first", "other", "damaged")}
    for workdir in workdirs.values():
        shutil.copytree(folder / "embed", workdir)
    save(folder, workdirs["other"], 1, 1.1)
    files = [path for path in workdirs["damaged"].rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])  # no array needs the last bytes
    return workdirs


def start(folder: Path, workdir: Path, port: int) -> Server:
    """Starts a server that embeds and writes."""
    models = f"embed={workdir},generate={folder / 'tiny'}"
    flags_ = ("--tasks=embed,generate", "--beams=1", "--max_length=64", f"--compilation_cache={folder / 'cache'}")
    return Server(models, *flags_, f"--drain_seconds={DRAIN}", port=port)


class Roll:
    """Two servers behind a balancer, which are restarted under load."""

    def __init__(self, folder: Path, texts: list[str], workdirs: dict[str, Path], servers: list[Server], front: int):
        self._folder, self._texts, self._workdirs, self.servers = folder, texts, workdirs, servers
        self._asked = {"model": "embed", "input": texts[:6], "encoding_format": "base64"}
        self.load, self.codes, self.seconds, self.refused = Load(front), [], [], 0
        self._known: dict[str, np.ndarray] = {}

    async def run(self) -> None:
        """Rolls to the other checkpoint and back, then tries a damaged one, under load all the time."""
        bodies = lambda: itertools.repeat(("/v1/embeddings", self._asked))  # noqa: E731
        clients = [self.load.ask(bodies(), keeps=True) for _ in range(READERS)]
        clients += [self.load.ask(serving_models.requests("generate", self._texts)) for _ in range(WRITERS)]
        asking = asyncio.gather(*clients)
        await self._learn("first", 0)
        for turn in range(_rounds.value):
            name = ("other", "first")[turn % 2]
            for place in range(2):
                await asyncio.to_thread(self._restart, place, name)
                await self._learn(name, place)
                await asyncio.sleep(3.0)
        for turn in range(2 * _rounds.value):
            await asyncio.to_thread(self._restart, turn % 2, "damaged", name)
            await asyncio.sleep(3.0)
        self.load.stop()
        await asking

    async def _learn(self, name: str, place: int) -> None:
        """Remembers what a server answers with this checkpoint."""
        client = serving_load.Client(self.servers[place].port)
        await client.ask("/v1/embeddings", self._asked)
        client.close()
        self._known.setdefault(name, vectors(client.content))

    def _restart(self, place: int, *names: str) -> None:
        """Stops a server, and starts it with the first of the checkpoints that it accepts."""
        begun, port = time.monotonic(), self.servers[place].port
        self.codes.append(self.servers[place].stop())
        for name in names:
            try:
                self.servers[place] = start(self._folder, self._workdirs[name], port)
                break
            except SystemExit:
                self.refused += 1
        self.seconds.append(round(time.monotonic() - begun, 1))

    def answers(self) -> collections.Counter[str]:
        """Returns how many answers came from which checkpoint."""
        found: collections.Counter[str] = collections.Counter()
        for content in self.load.contents:
            near = [name for name, known in self._known.items() if np.abs(vectors(content) - known).max() < NEAR]
            found[near[0] if near else "neither"] += 1
        return found


# ---- New weights --------------------------------------------------------------------------------

_SAVE = """
import sys
import jax, numpy as np
from etils import epath
from lm import checkpoint
from lm.config import CheckpointConfig
from lm.inference.load import load
source, workdir, step, factor = sys.argv[1:]
params = jax.tree.map(lambda leaf: leaf * float(factor), load(source).params)
saved = checkpoint.Checkpoints(epath.Path(workdir), CheckpointConfig(asynchronous=False, keep=2))
saved.save(int(step), {"params": params, "step": np.int32(step)})
saved.close()
"""


def save(folder: Path, workdir: Path, step: int, factor: float) -> None:
    """Saves the weights of `embed`, times a factor, as a step of a workdir."""
    code = [sys.executable, "-c", _SAVE, str(folder / "embed"), str(workdir), str(step), str(factor)]
    subprocess.run(code, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


def swap(folder: Path, texts: list[str]) -> bool:
    workdir = Path(tempfile.mkdtemp()) / "embed"
    shutil.copytree(folder / "embed", workdir)
    server = Server(f"embed={workdir}", "--tasks=embed", f"--compilation_cache={folder / 'cache'}", "--drain_seconds=0")
    asked = {"input": texts[:6], "encoding_format": "base64"}
    bodies = lambda: itertools.repeat(("/v1/embeddings", asked))  # noqa: E731
    load, known, reloads, memory = Load(server.port), [], [], []

    async def ask_once() -> np.ndarray:
        client = serving_load.Client(server.port)
        await client.ask("/v1/embeddings", asked)
        client.close()
        return vectors(client.content)

    async def run() -> None:
        known.append(await ask_once())
        asking = asyncio.gather(*(load.ask(bodies(), keeps=True) for _ in range(READERS)))
        for number in range(1, _swaps.value + 1):
            factor = 1.0 + 0.1 * (number % 2)
            await asyncio.to_thread(save, folder, workdir, number, factor)
            client = serving_load.Client(server.port)
            reloads.append((await client.ask("/admin/reload", {})).status)
            client.close()
            if number == 1:
                known.append(await ask_once())
            memory.append(round(server.megabytes()))
            await asyncio.sleep(1.0)
        load.stop()
        await asking

    asyncio.run(run())
    of: collections.Counter[object] = collections.Counter()
    for content in load.contents:
        found = vectors(content)
        near = [bool(np.abs(found - each).max() < NEAR) for each in known]
        of[near.index(True) if any(near) else "neither"] += 1
    compiled, code = server.metrics()["lm_compilations_total"], server.stop()
    shutil.rmtree(workdir.parent)
    return report(
        "swap",
        [
            ("reloads", reloads, set(reloads) == {200}),
            ("requests", load.statuses[200], load.statuses[200] > 20),
            ("failed", load.failures, not load.failures),
            ("answers by set of weights", dict(of), set(of) == {0, 1}),
            ("memory after each, MB", memory, memory[-1] < 1.1 * max(memory[:4])),
            ("programs compiled since the start", compiled, not compiled),
            ("exit code", code, code == 0),
        ],
    )


def vectors(content: bytes) -> np.ndarray:
    data: list[dict[str, Any]] = json.loads(content)["data"]
    return np.array([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data])


def main(argv: list[str]) -> None:
    del argv
    folder = Path(_folder.value).absolute()
    texts = json.loads((folder / "texts.json").read_text())
    does = {"rolling": rolling, "swap": swap}
    raise SystemExit(0 if all([does[name](folder, texts) for name in _only.value]) else 1)


if __name__ == "__main__":
    app.run(main)
