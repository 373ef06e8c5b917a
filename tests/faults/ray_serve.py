"""What a model that Ray serves does under load, by hand: elasticity, new checkpoints, lost replicas and nodes.

python -m tests.faults.ray_serve --checkpoint=A --other=B --damaged=C [--only=trace,...] [--times=10] [--rate=5]

A, B and C are workdirs of one model that embeds; B has other weights, and C is damaged. It runs in an environment with
the extras [ray,serve], starts a cluster of two nodes on this machine, and ends it. `trace` and `noisy` happen once. The
others happen `--times` times, each under a load of `--seconds`. A request that fails is sent once more, half a second
later; both numbers are printed. With `--record=FILE`, a replica is measured before the trace, and what happened is
written down for tests.faults.fleet.
"""

import asyncio
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from absl import app, flags

from tests.benchmarks import serving_load
from tests.faults.ray_cluster import PORT, Cluster

_checkpoint = flags.DEFINE_string("checkpoint", None, "Workdir.", required=True)
_other = flags.DEFINE_string("other", None, "Workdir with other weights.", required=True)
_damaged = flags.DEFINE_string("damaged", None, "Workdir that cannot be read.", required=True)
_only = flags.DEFINE_list("only", None, "Names of the parts, by default all.")
_times = flags.DEFINE_integer("times", 10, "How often each fault strikes.", lower_bound=1)
_rate = flags.DEFINE_float("rate", 5.0, "Requests a second, before it triples.")
_seconds = flags.DEFINE_float("seconds", 8.0, "Of the load around a fault.")
_trace_seconds = flags.DEFINE_float("trace_seconds", 60.0, "Of each of the five pieces of the trace.")
_texts = flags.DEFINE_integer("texts", 16, "Of a request.")
_batch_tokens = flags.DEFINE_integer("batch_tokens", 257, "Of a replica's batch.")
_target = flags.DEFINE_integer("outstanding_tokens", 400, "Of a replica, that call for one more.")
_up = flags.DEFINE_float("upscale_delay", 5.0, "Seconds that the wish for more has to last.")
_down = flags.DEFINE_float("downscale_delay", 30.0, "Seconds that the wish for fewer has to last.")
_cpu_limit = flags.DEFINE_float("cpu_limit", 0.0, "Cores of a replica that runs; 0: no limit. Needs cgroup v1.")
_record = flags.DEFINE_string("record", "", "File for what the trace saw.")
_seed = flags.DEFINE_integer("seed", 0, "Of the moments of requests.")

MOST = 4  # replicas
PAUSE = 0.5  # seconds before a failed request is sent again
WORDS = ("one text about Python", "another text, which is a little longer than the first one")
BODIES = 8  # different requests
RECENT = 8  # answers; so many of one checkpoint mean that both replicas have it
AFTER = 2.0  # seconds of load after a fault
MEASURED = 20.0  # seconds in which the speed of a replica is measured
NEAR = 2e-3  # between two computations of one vector; two checkpoints differ by far more


@dataclasses.dataclass
class Request:
    """What happened to a request; times are seconds from the start of the load."""

    sent: float
    latency: float = float("nan")
    refused: bool = False
    failures: int = 0
    version: str = ""


class Load:
    """Sends requests at random moments, however many are unanswered, and compares the answers with known ones."""

    def __init__(self, cluster: Cluster):
        self._cluster, self._random = cluster, random.Random(_seed.value)
        self._bodies = [
            {"inputs": [f"{number} {text}" for text in WORDS * (_texts.value // 2)]} for number in range(BODIES)
        ]
        self._free: list[serving_load.Client] = []
        self.known: dict[str, list[np.ndarray]] = {}
        self.requests: list[Request] = []
        self.recent: collections.deque[str] = collections.deque(maxlen=RECENT)  # checkpoints of the last answers
        self.replicas: list[tuple[float, int, int]] = []  # when, how many, and how many of them run

    async def learn(self, version: str) -> None:
        """Remembers the answers of the checkpoint that is served."""
        client, vectors = serving_load.Client(PORT), []
        for body in self._bodies:
            assert (await client.ask("/embed", body)).status == 200, client.content
            vectors.append(np.array(json.loads(client.content)))
        client.close()
        self.known[version] = vectors

    async def tokens(self) -> float:
        """Returns the mean number of tokens of a request."""
        client, counts = serving_load.Client(PORT), []
        for body in self._bodies:
            assert (await client.ask("/tokenize", body)).status == 200, client.content
            counts.append(sum(map(len, json.loads(client.content))))
        client.close()
        return float(np.mean(counts))

    def bodies(self) -> serving_load.Bodies:
        return (("/embed", body) for body in itertools.cycle(self._bodies))

    async def run(self, pieces: Sequence[tuple[float, float]], strike: Callable[[], object] | None = None) -> object:
        """Sends at each of the rates for so many seconds, and waits for the answers.

        Args:
            pieces: requests a second, and seconds.
            strike: what happens in a thread, after a quarter of the time; its result is returned. The last rate lasts
                at least as long as it does.
        """
        self.requests, self.replicas, ended = [], [], threading.Event()
        begun = time.monotonic()
        watching = threading.Thread(target=self._watch, args=(begun, ended))
        watching.start()
        after = sum(seconds for _, seconds in pieces) / 4
        struck = threading.Event()
        sending, striking = self._send(begun, pieces, struck), self._strike(strike, after, struck)
        self.requests, result = await asyncio.gather(sending, striking)
        ended.set()
        await asyncio.to_thread(watching.join)
        return result

    async def _send(
        self, begun: float, pieces: Sequence[tuple[float, float]], struck: threading.Event
    ) -> list[Request]:
        at, asking = 0.0, []
        for number, (rate, seconds) in enumerate(pieces, 1):
            end = at + seconds
            while (at := at + self._random.expovariate(rate)) < end or (number == len(pieces) and not struck.is_set()):
                await asyncio.sleep(max(0.0, begun + at - time.monotonic()))
                asking.append(asyncio.create_task(self._ask(begun)))
            at = end
        return list(await asyncio.gather(*asking))

    async def _strike(self, strike: Callable[[], object] | None, after: float, struck: threading.Event) -> object:
        try:
            if strike is None:
                return None
            await asyncio.sleep(after)
            result = await asyncio.to_thread(strike)
            await asyncio.sleep(AFTER)
            return result
        finally:
            struck.set()

    async def _ask(self, begun: float) -> Request:
        number, found = self._random.randrange(BODIES), Request(time.monotonic() - begun)
        for _ in range(2):
            client = self._free.pop() if self._free else serving_load.Client(PORT)
            try:
                status = (await asyncio.wait_for(client.ask("/embed", self._bodies[number]), 120)).status
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                client.close()
                status = 0
            self._free.append(client)
            if status == 429:
                return dataclasses.replace(found, refused=True)
            if status == 200:
                version = self._version(number, client.content)
                self.recent.append(version)
                return dataclasses.replace(found, latency=time.monotonic() - begun - found.sent, version=version)
            found.failures += 1
            await asyncio.sleep(PAUSE)
        return found

    def _version(self, number: int, content: bytes) -> str:
        """Returns the checkpoint that all vectors of an answer come from."""
        vectors = np.array(json.loads(content))
        versions = [name for name, known in self.known.items() if np.abs(vectors - known[number]).max() < NEAR]
        return versions[0] if versions else "of no checkpoint alone"

    def _watch(self, begun: float, ended: threading.Event) -> None:
        while not ended.wait(1.0):
            with contextlib.suppress(OSError):  # the dashboard is slow on a busy machine
                states = [replica["state"] for replica in self._cluster.replicas()]
                self.replicas.append((time.monotonic() - begun, len(states), states.count("RUNNING")))

    # ---- What is printed

    def counts(self) -> dict[str, object]:
        latencies = [request.latency for request in self.requests if request.version]
        return {
            "requests": len(self.requests),
            "answered": len(latencies),
            "refused": sum(request.refused for request in self.requests),
            "failed_without_retry": sum(request.failures > 0 for request in self.requests),
            "failed": sum(request.failures > 1 for request in self.requests),
            "p50": round(float(np.quantile(latencies, 0.5)), 3),
            "p99": round(float(np.quantile(latencies, 0.99)), 3),
            "answers": dict(collections.Counter(request.version for request in self.requests if request.version)),
            "load_of_machine": round(os.getloadavg()[0], 1),
        }

    def path(self) -> list[int]:
        """Returns the numbers of replicas, one after the other."""
        numbers = [count for _, count, _ in self.replicas]
        return [n for place, n in enumerate(numbers) if place == 0 or n != numbers[place - 1]]

    def turns(self) -> int:
        """Returns how often the number of replicas began to fall after it rose, or the other way round."""
        moves = np.sign(np.diff(self.path()))
        return int((np.diff(moves) != 0).sum())


def show(part: str, found: dict[str, object]) -> None:
    print(json.dumps({"part": part, **found}), flush=True)


# ---- Elasticity


async def trace(cluster: Cluster, load: Load) -> None:
    """The rate triples and falls back."""
    rates = [_rate.value, 3 * _rate.value, 3 * _rate.value, _rate.value, _rate.value]
    replica = await measure(cluster, load) if _record.value else {}
    cluster.serve("serve", _checkpoint.value, *scaling(1, MOST))
    cluster.wait(1)
    await load.run([(rate, _trace_seconds.value) for rate in rates])
    show("the rate triples and falls back", {**load.counts(), "replicas": load.path(), "turns": load.turns()})
    if _record.value:
        seen = {"requests": [dataclasses.asdict(each) for each in load.requests], "replicas": load.replicas}
        Path(_record.value).write_text(json.dumps({"replica": replica, **seen}))


async def measure(cluster: Cluster, load: Load) -> dict[str, float]:
    """Returns the flags of launch/plan.py --fleet that describe a replica and its autoscaler."""
    cluster.serve("serve", _checkpoint.value, *scaling(1, MOST))
    cluster.wait(1)
    # They start together and beside a replica that works, as in the trace.
    busy = serving_load.closed_loop(PORT, load.bodies(), 8, 2 * MEASURED)
    startup, _ = await asyncio.gather(asyncio.to_thread(start_all, cluster), busy)
    cluster.serve("serve", _checkpoint.value, *scaling(1, 1))
    cluster.wait(1)
    tokens = await load.tokens()
    found = {}
    for clients in (1, 8):
        answers = await serving_load.closed_loop(PORT, load.bodies(), clients, MEASURED)
        found[clients] = serving_load.summary(answers)
    show("one replica", {"tokens_of_a_request": tokens, "one_client": found[1], "eight_clients": found[8]})
    return {
        "tokens": tokens,
        "tokens_per_second": tokens * found[8]["per_second"],
        "batch_tokens": _batch_tokens.value,
        "startup_seconds": round(startup, 1),
        "target": _target.value,
        "min_replicas": 1,
        "max_replicas": MOST,
        "upscale_delay": _up.value,
        "downscale_delay": _down.value,
    }


def start_all(cluster: Cluster) -> float:
    """Asks for all replicas; returns the seconds from the moment that Ray wants them until they run."""
    asking = threading.Thread(target=cluster.serve, args=("serve", _checkpoint.value, *scaling(MOST, MOST)))
    asking.start()
    wait(lambda: len(cluster.replicas()) == MOST)
    begun = time.monotonic()
    wait(lambda: [replica["state"] for replica in cluster.replicas()] == ["RUNNING"] * MOST)
    asking.join()
    return time.monotonic() - begun


async def noisy(cluster: Cluster, load: Load) -> None:
    """The rate jumps every five seconds, around its mean."""
    cluster.serve("serve", _checkpoint.value, *scaling(1, MOST))
    cluster.wait(1)
    chance, rates = random.Random(_seed.value), []
    while len(rates) * 5 < 5 * _trace_seconds.value:
        rates.append(_rate.value * chance.choice((0.2, 0.5, 1.0, 2.0, 4.0)))
    await load.run([(rate, 5.0) for rate in rates])
    show("a noisy rate", {**load.counts(), "replicas": load.path(), "turns": load.turns(), "jumps": len(rates)})


def scaling(least: int, most: int) -> list[str]:
    """Returns flags. Each node has room for two replicas if there may be more than two, otherwise for one."""
    own = [f"--min_replicas={least}", f"--max_replicas={most}", f"--outstanding_tokens={_target.value}"]
    own.append("--cpus=0.5" if most > 2 else "--cpus=1")
    own += [f"--upscale_delay={_up.value}", f"--downscale_delay={_down.value}"]
    return [*own, "--", "--tasks=embed", f"--batch_tokens={_batch_tokens.value}"]


# ---- Faults: each strikes two replicas, one on each node


def kill_replica(cluster: Cluster, load: Load, turn: int) -> None:
    del load, turn
    os.kill(random.choice(cluster.running())["pid"], signal.SIGKILL)


def kill_node(cluster: Cluster, load: Load, turn: int) -> None:
    del load, turn
    lost = cluster.kill_node()
    assert lost == 1, f"the node had {lost} replicas"
    time.sleep(_seconds.value / 2)  # the load goes on without the node
    cluster.add_node()


def roll(cluster: Cluster, load: Load, turn: int) -> None:
    """Returns once both replicas answer with the other checkpoint."""
    version, checkpoint = (("other", _other.value), ("first", _checkpoint.value))[turn % 2]
    cluster.serve("roll", checkpoint, *scaling(2, 2))
    wait(lambda: list(load.recent) == [version] * RECENT)


def roll_to_damaged(cluster: Cluster, load: Load, turn: int) -> None:
    """Returns once a replica has refused the checkpoint and Ray has the one before it again."""
    del load, turn
    with pytest.raises(SystemExit, match="Ray has the config before it again"):
        cluster.serve("roll", _damaged.value, *scaling(2, 2))


def wait(condition: Callable[[], bool], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing changed in {seconds:g} s"
        time.sleep(0.1)


async def strikes(name: str, cluster: Cluster, load: Load) -> None:
    """Strikes again and again, and prints a row of the table."""
    what, strike = FAULTS[name]
    cluster.serve("serve", _checkpoint.value, *scaling(2, 2))
    cluster.wait(2)
    totals: collections.Counter[str] = collections.Counter()
    versions: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for turn in range(_times.value):
        await load.run([(_rate.value, _seconds.value)], lambda turn=turn: strike(cluster, load, turn))
        await asyncio.to_thread(cluster.wait, 2)
        found = load.counts()
        show(name, found)
        slowest = max(slowest, float(str(found["p99"])))
        totals.update({key: int(str(found[key])) for key in ("requests", "refused", "failed_without_retry", "failed")})
        versions.update(request.version for request in load.requests if request.version)
    answers = ", ".join(f"{count} {version}" for version, count in sorted(versions.items()))
    print(
        f"| {what} | {_times.value} | {totals['requests']} | {totals['refused']} | {totals['failed_without_retry']} |"
        f" {totals['failed']} | {slowest:.1f} s | {answers} |",
        flush=True,
    )


FAULTS: dict[str, tuple[str, Callable[[Cluster, Load, int], None]]] = {
    "roll": ("Ray: another checkpoint", roll),
    "damaged": ("Ray: a damaged checkpoint", roll_to_damaged),
    "replica": ("Ray: kill -9 of one of two replicas", kill_replica),
    "node": ("Ray: kill -9 of one of two nodes", kill_node),
}
PARTS = ("trace", "noisy", *FAULTS)


async def campaign(wanted: Sequence[str], cluster: Cluster) -> None:
    load = Load(cluster)
    cluster.serve("serve", _checkpoint.value, *scaling(1, 1))
    print(f"the first replica started in {cluster.wait(1):.1f} s", flush=True)
    for version, checkpoint in (("other", _other.value), ("first", _checkpoint.value)):
        cluster.serve("roll", checkpoint, *scaling(1, 1))
        cluster.wait(1)
        await asyncio.sleep(3.0)  # reading it takes a moment in which Ray says nothing yet
        cluster.wait(1)
        await load.learn(version)
    same = [np.abs(one - two).max() < NEAR for one, two in zip(*load.known.values(), strict=True)]
    assert not any(same), "both checkpoints give the same vectors"
    for part in wanted:
        if part in FAULTS:
            await strikes(part, cluster, load)
        else:
            await {"trace": trace, "noisy": noisy}[part](cluster, load)


def main(argv: list[str]) -> None:
    del argv
    wanted = _only.value or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        sys.exit(f"error: --only={','.join(sorted(unknown))}; accepted: {', '.join(PARTS)}.")
    with tempfile.TemporaryDirectory(prefix="ray-serve-") as folder:
        cluster = Cluster(Path(folder), _cpu_limit.value)
        try:
            asyncio.run(campaign(wanted, cluster))
        finally:
            cluster.stop()


if __name__ == "__main__":
    app.run(main)
