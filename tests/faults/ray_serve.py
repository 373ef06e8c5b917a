"""What a running Ray Serve does under load, by hand: elasticity, new checkpoints, lost replicas.

python launch/cluster/ray_serve.py serve --checkpoint=A --max_replicas=4 --min_replicas=2 -- --tasks=embed
python -m tests.faults.ray_serve --checkpoint=A --other=B --damaged=C --rate=5

A, B and C are workdirs of one model; B has other weights, C is damaged. It prints a JSON object for each part. A
request that fails is sent once more; both numbers are printed.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import yaml

ROOT = Path(__file__).parents[2]
TEXTS = ["one text about Python", "another text, which is a little longer than the first one"] * 4


@dataclasses.dataclass
class Tally:
    """What happened to the requests of a part."""

    latencies: list[float] = dataclasses.field(default_factory=list)
    answers: set[str] = dataclasses.field(default_factory=set)
    refused: int = 0
    failed_once: int = 0
    failed: int = 0
    replicas: list[int] = dataclasses.field(default_factory=list)

    def line(self, part: str) -> str:
        found = np.array(self.latencies or [np.nan])
        turns = np.sign(np.diff(self.replicas)) if len(self.replicas) > 1 else np.zeros(1)
        moves = turns[turns != 0]
        return json.dumps(
            {
                "part": part,
                "answered": len(self.latencies),
                "refused_429": self.refused,
                "failed_without_retry": self.failed_once,
                "failed_with_one_retry": self.failed,
                "p50": round(float(np.quantile(found, 0.5)), 3),
                "p99": round(float(np.quantile(found, 0.99)), 3),
                "different_answers": len(self.answers),
                "replicas": [n for i, n in enumerate(self.replicas) if i == 0 or n != self.replicas[i - 1]],
                "turns": int((np.diff(moves) != 0).sum()),
            }
        )


class Load:
    """Sends requests at random moments, however many are unanswered."""

    def __init__(self, url: str, dashboard: str):
        self._client = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=500))
        self._dashboard = httpx.AsyncClient(base_url=dashboard, timeout=60)

    async def run(self, rates: list[float], seconds: float, tally: Tally) -> None:
        """Sends for `seconds` at each of the rates, and waits for the answers."""
        watching = asyncio.create_task(self._watch(tally))
        tasks = []
        for rate in rates:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                tasks.append(asyncio.create_task(self._ask(tally)))
                await asyncio.sleep(random.expovariate(rate))
        await asyncio.gather(*tasks)
        watching.cancel()

    async def _ask(self, tally: Tally) -> None:
        begun = time.monotonic()
        for trial in range(2):
            try:
                response = await self._client.post("/embed", json={"inputs": TEXTS})
                status = response.status_code
            except httpx.HTTPError:
                status = 0
            if status == 200:
                tally.latencies.append(time.monotonic() - begun)
                tally.answers.add(json.dumps([round(x, 3) for x in response.json()[0][:4]]))
                return
            if status == 429:
                tally.refused += 1
                return
            tally.failed_once += trial == 0
            await asyncio.sleep(0.2)
        tally.failed += 1

    async def replicas(self) -> list[dict]:
        """The replicas that run, each with its process id."""
        found = (await self._dashboard.get("/api/serve/applications/")).json()
        (deployment,) = found["applications"]["lm"]["deployments"].values()
        return [each for each in deployment["replicas"] if each["state"] == "RUNNING"]

    async def _watch(self, tally: Tally) -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                tally.replicas.append(len(await self.replicas()))
            await asyncio.sleep(1)


def roll(checkpoint: str, config: str) -> None:
    """Gives the running replicas another checkpoint, as launch/cluster/ray_serve.py roll does."""
    made = yaml.safe_load(Path(config).read_text())
    made["applications"][0]["deployments"][0]["user_config"]["checkpoint"] = checkpoint
    Path(f"{config}.rolled").write_text(yaml.safe_dump(made))
    subprocess.run(["serve", "deploy", f"{config}.rolled"], check=True, stdout=sys.stderr)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--dashboard", default="http://127.0.0.1:8265")
    parser.add_argument("--config", default="serve_config.yaml")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--other", required=True)
    parser.add_argument("--damaged", required=True)
    parser.add_argument("--rate", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    load = Load(given.url, given.dashboard)

    tally = Tally()
    await load.run([given.rate, 3 * given.rate, given.rate / 3], given.seconds, tally)
    print(tally.line("the rate triples and falls back"), flush=True)

    for part, checkpoint in (("another checkpoint", given.other), ("a damaged checkpoint", given.damaged)):
        tally = Tally()
        running = asyncio.create_task(load.run([given.rate], given.seconds, tally))
        await asyncio.sleep(given.seconds / 4)
        await asyncio.to_thread(roll, checkpoint, given.config)
        await running
        print(tally.line(part), flush=True)
    await asyncio.to_thread(roll, given.checkpoint, given.config)

    tally = Tally()
    running = asyncio.create_task(load.run([given.rate], given.seconds, tally))
    await asyncio.sleep(given.seconds / 4)
    victim = (await load.replicas())[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    await running
    print(tally.line("kill -9 of a replica"), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
