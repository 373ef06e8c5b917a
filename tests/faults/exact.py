"""Answers under load beside those of the idle server: python -m tests.faults.exact --folder=DIR [--rounds=3]

DIR is that of `tests.benchmarks.serving`: the real MiniLM, and T5 small with random weights. The server takes the
device that JAX finds here, such as a GPU. Every request is asked once alone, then 64 at a time, again and again in
another order. Requests embed texts of 1 to 400 words, or write texts greedily, by sampling with a seed, or by beams.
Every eighth client leaves before its answer is ready.
"""

import asyncio
import collections
import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from tests.benchmarks import serving_load
from tests.faults.served import Server, report

_folder = flags.DEFINE_string("folder", None, "The models and texts of tests.benchmarks.serving.", required=True)
_rounds = flags.DEFINE_integer("rounds", 3, "Of all requests together.", lower_bound=1)
_more = flags.DEFINE_list("serve", [], "More flags of launch/serve.py, such as --serve=--slots=32.")

CLIENTS = 64
REQUESTS = 192
LEAVES = 0.02  # seconds after which a client leaves
NEAR = 1e-6  # between two embeddings of a text

Request = tuple[str, dict[str, Any]]


def mixed(texts: list[str]) -> list[Request]:
    """Returns requests of every kind, with texts and outputs of every length."""
    draw, found = random.Random(0), []
    for number in range(REQUESTS):
        text = texts[number % len(texts)]
        words, length = text.split(), draw.randint(1, 48)
        part = " ".join(words[: draw.randint(1, 400)]) or "a"
        write = {"model": "generate", "prompt": " ".join(words[:30]) or "a", "max_tokens": length}
        beams = {"model": "generate", "inputs": [part[:200]], "num_beams": 4, "max_length": length}
        kinds: list[Request] = [
            ("/v1/embeddings", {"model": "embed", "input": part}),
            ("/v1/completions", {**write, "temperature": 0}),
            ("/v1/embeddings", {"model": "embed", "input": [part, words[0]]}),
            ("/v1/completions", {**write, "seed": number, "top_p": 0.9, "n": 2}),
            ("/tasks/generate", beams),
        ]
        found.append(kinds[number % len(kinds)])
    return found


async def ask(client: serving_load.Client, request: Request) -> Any:
    """Returns an answer without its id and time."""
    status = (await client.ask(*request)).status
    if status != 200:
        raise SystemExit(f"{request[0]} was answered with {status}: {client.content[:200]!r}")
    return {name: value for name, value in json.loads(client.content).items() if name not in ("id", "created")}


async def alone(port: int, requests: list[Request]) -> list[Any]:
    """Returns the answers of requests that follow each other."""
    client = serving_load.Client(port)
    found = [await ask(client, request) for request in requests]
    client.close()
    return found


async def together(port: int, requests: list[Request], order: list[int]) -> tuple[dict[int, Any], int]:
    """Returns the answers by the number of the request, and how many clients left."""
    found: dict[int, Any] = {}
    waiting, left = collections.deque(order), 0

    async def client_of_many() -> None:
        nonlocal left
        client = serving_load.Client(port)
        while waiting:
            number = waiting.popleft()
            if number % 8 == 7:
                leaving = serving_load.Client(port)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(leaving.ask(*requests[number]), LEAVES)
                leaving.close()
                left += 1
            found[number] = await ask(client, requests[number])
        client.close()

    await asyncio.gather(*(client_of_many() for _ in range(CLIENTS)))
    return found, left


def differences(requests: list[Request], expected: list[Any], found: dict[int, Any]) -> tuple[float, int]:
    """Returns the largest difference between embeddings, and how many other answers are not equal."""
    furthest, unequal = 0.0, 0
    for number, (path, _) in enumerate(requests):
        if path != "/v1/embeddings":
            unequal += found[number] != expected[number]
            continue
        mine, other = (np.array([each["embedding"] for each in of["data"]]) for of in (found[number], expected[number]))
        furthest = max(furthest, float(np.abs(mine - other).max()))
    return furthest, unequal


def main(argv: list[str]) -> None:
    del argv
    folder = Path(_folder.value).absolute()
    models = f"embed={folder}/embed,generate={folder}/generate"
    flags_of_server = ["--tasks=embed,generate", "--max_length=48", f"--compilation_cache={folder}/cache"]
    server = Server(models, *flags_of_server, *_more.value)
    requests = mixed(json.loads((folder / "texts.json").read_text()))
    expected = asyncio.run(alone(server.port, requests))
    facts: list[tuple[str, object, bool]] = []
    for turn in range(_rounds.value):
        order = random.Random(turn).sample(range(len(requests)), len(requests))
        found, left = asyncio.run(together(server.port, requests, order))
        furthest, unequal = differences(requests, expected, found)
        facts.append((f"round {turn}: requests, {CLIENTS} at a time", len(found), len(found) == REQUESTS))
        facts.append((f"round {turn}: clients that left", left, left > 0))
        facts.append((f"round {turn}: largest difference of embeddings", f"{furthest:.1e}", furthest <= NEAR))
        facts.append((f"round {turn}: texts that are not equal", unequal, unequal == 0))
    compiled = server.metrics()["lm_compilations_total"]
    facts.append(("programs compiled since the start", compiled, compiled == 0))
    facts.append(("exit code", code := server.stop(), code == 0))
    raise SystemExit(0 if report("exact", facts) else 1)


if __name__ == "__main__":
    app.run(main)
