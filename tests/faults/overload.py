"""Ten times the requests that a server can answer: python -m tests.faults.overload --folder=DIR

DIR is that of `tests.benchmarks.serving`. A request has eight docstrings to embed, so that most of the work is the
server's and not that of the load beside it. Requests come at random, and clients do not come again after a 429.
"""

import asyncio
import collections
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from tests.benchmarks import serving_load
from tests.faults.served import Server, report

_folder = flags.DEFINE_string("folder", None, "The models and texts of tests.benchmarks.serving.", required=True)
_seconds = flags.DEFINE_float("seconds", 60.0, "Of the overload.")
_times = flags.DEFINE_float("times", 10.0, "Requests, over what the server can answer.")
_deadline = flags.DEFINE_float("deadline", 5.0, "Seconds until a request's deadline.")

TOGETHER = 8  # texts of a request
CLIENTS = 8  # of the closed loop that measures the capacity


def requests(texts: list[str]) -> serving_load.Bodies:
    """The load shares the machine with the server, so the bodies are made before."""
    starts = range(0, len(texts), TOGETHER)
    bodies = [{"input": texts[start : start + TOGETHER], "encoding_format": "base64"} for start in starts]
    return itertools.cycle([("/v1/embeddings", json.dumps(body).encode()) for body in bodies])


def capacity(server: Server, bodies: serving_load.Bodies, seconds: float) -> float:
    """Answers a second with enough clients."""
    return serving_load.summary(asyncio.run(serving_load.closed_loop(server.port, bodies, CLIENTS, seconds)))[
        "per_second"
    ]


class Watch:
    """Looks at /health and at the memory, ten times a second, while the server is overloaded."""

    def __init__(self, server: Server):
        self._server, self.health, self.memory = server, collections.Counter(), []

    async def run(self, seconds: float) -> None:
        client, end = serving_load.Client(self._server.port), time.monotonic() + seconds
        while time.monotonic() < end:
            answer = await client.ask("/health", None)
            self.health[answer.status] += 1
            self.memory.append(self._server.megabytes())
            await asyncio.sleep(0.1)


def overloaded(server: Server, bodies: serving_load.Bodies, rate: float, watch: Watch) -> list[serving_load.Answer]:
    async def both() -> list[serving_load.Answer]:
        watching = asyncio.create_task(watch.run(_seconds.value))
        found = await serving_load.poisson(server.port, bodies, rate, _seconds.value)
        await watching
        return found

    return asyncio.run(both())


def facts(speeds: tuple[float, float, float], answers: list[serving_load.Answer], watch: Watch, server: Server) -> list:
    before, after, later = speeds
    statuses = collections.Counter(answer.status for answer in answers)
    admitted = [answer for answer in answers if answer.status != 429]
    times = [answer.last - answer.sent for answer in admitted]
    refused = [1000 * (answer.last - answer.sent) for answer in answers if answer.status == 429]
    good = [answer for answer in answers if answer.status == 200]
    span = max(answer.last for answer in good) - min(answer.sent for answer in good)
    p99, goodput = serving_load.quantile(times, 0.99), len(good) / span
    quarter = len(watch.memory) // 4
    early, late = (statistics.mean(each) for each in (watch.memory[quarter : 2 * quarter], watch.memory[-quarter:]))
    usual = (before + later) / 2
    print("memory, MB, every 5 s:", [round(each) for each in watch.memory[::50]], flush=True)
    found: list[tuple[str, Any, bool]] = [
        ("capacity, requests a second, before and after", (before, later), True),
        ("requests by status", dict(statuses), set(statuses) <= {200, 429, 504}),
        ("goodput over capacity", round(goodput / usual, 2), goodput >= 0.9 * usual),
        ("p99 of the admitted, s", round(p99, 2), p99 <= _deadline.value),
        ("p99 of a refusal, ms", round(serving_load.quantile(refused, 0.99)), True),
        ("/health by status", dict(watch.health), set(watch.health) == {200}),
        ("memory, MB, second and last quarter", (round(early), round(late)), late < 1.03 * early),
        ("speed in the next 5 s, over that of 10 s later", round(after / later, 2), after >= 0.9 * later),
        ("programs compiled since the start", server.metrics()["lm_compilations_total"],
         not server.metrics()["lm_compilations_total"]),
    ]  # fmt: skip
    return found


def main(argv: list[str]) -> None:
    del argv
    folder = Path(_folder.value).absolute()
    bodies = requests(json.loads((folder / "texts.json").read_text()))
    flags_ = ("--tasks=embed", f"--deadline={_deadline.value}", f"--compilation_cache={folder / 'cache'}")
    server = Server(f"embed={folder / 'embed'}", *flags_, "--drain_seconds=0")
    capacity(server, bodies, 3.0)  # warms up
    before = capacity(server, bodies, 10.0)
    watch = Watch(server)
    answers = overloaded(server, bodies, _times.value * before, watch)
    after, later = capacity(server, bodies, 5.0), capacity(server, bodies, 10.0)
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    holds = report("overload", facts((before, after, later), answers, watch, server))
    code = server.stop()
    raise SystemExit(0 if report("overload", [("exit code", code, code == 0)]) and holds else 1)


if __name__ == "__main__":
    app.run(main)
