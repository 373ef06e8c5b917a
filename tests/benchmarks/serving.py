"""The server under load, beside other servers with the same weights.

    python -m tests.benchmarks.serving --folder=DIR --what=embed --servers=lm,onnxruntime:2,infinity:1
    python -m tests.benchmarks.serving --folder=DIR --what=generate --servers=lm,transformers,ctranslate2:16

Embeddings: the real MiniLM and docstrings of the standard library, one text a request. Text: the shapes of T5 small
with random weights, `--length` tokens written greedily for the beginning of a docstring, and streamed. DIR keeps the
models; for onnxruntime, DIR/embed-onnx is made once by
`optimum-cli export onnx --task feature-extraction --library transformers -m DIR/embed-hf DIR/embed-onnx`.

A server is NAME or NAME:BATCH; BATCH counts texts, for ours tokens. `serving_peers.py` has the servers that are not
ours, infinity is its own program. A peer runs with the Python that `--python=NAME=PATH` names, or with this one.
`lm@CHECKOUT` is another checkout of ours. All servers are started first and then take turns, `--rounds` times, so that
other work on the machine meets all of them. The figure of a server is the median of its rounds; its ratio is that of
ours to it, round by round.

Closed loop: so many clients each ask again as soon as they are answered. Poisson: requests arrive at random, at a share
of the rate that the server itself reached in the closed loop of the most clients.
"""

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from absl import app, flags

from tests.benchmarks import serving_load, serving_models

_folder = flags.DEFINE_string("folder", None, "Keeps the models, the texts and compiled programs.", required=True)
_what = flags.DEFINE_enum("what", "embed", ["embed", "generate"], "What to measure.")
_servers = flags.DEFINE_list("servers", ["lm"], "Whom to measure.")
_python = flags.DEFINE_list("python", [], "NAME=PATH of a peer's Python.")
_clients = flags.DEFINE_list("clients", ["16"], "Clients of the closed loops.")
_seconds = flags.DEFINE_float("seconds", 8.0, "Of each measurement.")
_rounds = flags.DEFINE_integer("rounds", 3, "Turns of each server.")
_length = flags.DEFINE_integer("length", 64, "Tokens to write.")
_rate = flags.DEFINE_float("rate", 0.0, "Poisson at this rate for every server, instead of a share of its own.")
_poisson = flags.DEFINE_float("poisson", 0.8, "Share of the closed loop's rate; 0 for no such measurement.")

ROOT = Path(__file__).parent.parent.parent
Turn = dict[str, dict[str, float]]  # figures by load and name


class Running:
    """A server in a process of its own."""

    def __init__(self, name: str, what: str, folder: Path):
        """Starts it, and waits until it is ready."""
        self.name = name
        kind, _, batch = name.partition(":")
        kind, _, checkout = kind.partition("@")
        python = dict(each.split("=", 1) for each in _python.value).get(kind, sys.executable)
        source = folder / (f"{what}-onnx" if kind.startswith("onnxruntime") else f"{what}-hf")
        if kind == "lm":
            command = [python, "launch/serve.py", f"--checkpoint={what}={folder / what}", "--port=0", "--beams=1"]
            command += [f"--tasks={what}", "--drain_seconds=0", f"--compilation_cache={folder / 'cache'}"]
            command += [f"--max_length={_length.value}"] if what == "generate" else []
            command += [f"--batch_tokens={batch}"] if batch else []
        elif kind == "infinity":
            self.port = _free_port()
            command = [str(Path(python).parent / "infinity_emb"), "v2", "--model-id", str(source), "--port"]
            command += [str(self.port), "--url-prefix", "/v1", "--served-model-name", "embed", "--device", "cpu"]
            command += ["--host", "127.0.0.1", "--batch-size", batch or "32"]
        else:
            command = [python, str(ROOT / "tests/benchmarks/serving_peers.py"), kind, str(source), batch or "1"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        environment.pop("PYTHONPATH", None)
        root = Path(checkout or ROOT)
        if kind == "lm":
            environment["PYTHONPATH"] = str(root)
        self._process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True, env=environment)
        if kind == "infinity":
            self._wait()
        else:
            self.port = self._read_port()

    def _read_port(self) -> int:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("serving on "):
                return int(line.rstrip().rpartition(":")[2])
        raise SystemExit(f"the server {self.name} did not start")

    def _wait(self) -> None:
        while self._process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise SystemExit(f"the server {self.name} did not start")

    def cpu_seconds(self) -> float:
        """The time that it has computed so far, over all its threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def models(folder: Path) -> list[str]:
    """Makes the models unless they are there, in a process whose memory and threads end with it; returns the texts."""
    if not (folder / "texts.json").exists():
        code = (
            "import json, sys; from pathlib import Path; from tests.benchmarks import serving_models as models;"
            "folder = Path(sys.argv[1]); models.make(folder);"
            "(folder / 'texts.json').write_text(json.dumps(models.docstrings()))"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    return json.loads((folder / "texts.json").read_text())


def measure(server: Running, bodies: serving_load.Bodies) -> Turn:
    """Returns one turn of a server: what it reached under each load."""
    found = {}
    for clients in map(int, _clients.value):
        found[f"{clients} clients"] = figures(
            server, lambda clients=clients: serving_load.closed_loop(server.port, bodies, clients, _seconds.value)
        )
    if _poisson.value:
        own = _poisson.value * found[f"{_clients.value[-1]} clients"]["per_second"]
        rate, load = (
            (_rate.value, f"Poisson at {_rate.value:g}/s") if _rate.value else (own, f"Poisson at {_poisson.value:.0%}")
        )
        found[load] = figures(server, lambda: serving_load.poisson(server.port, bodies, rate, _seconds.value))
    return found


def figures(server: Running, load: Callable[[], Coroutine[Any, Any, list[serving_load.Answer]]]) -> dict[str, float]:
    """Returns the summary of a load, and the milliseconds of a core that an answer took."""
    before = server.cpu_seconds()
    answers = asyncio.run(load())
    if wrong := [answer.status for answer in answers if answer.status != 200]:
        raise SystemExit(f"{server.name} answered {wrong[0]}")
    core_ms = 1000 * (server.cpu_seconds() - before) / len(answers)
    return {**serving_load.summary(answers), "core_ms": round(core_ms, 2)}


def compare(turns: dict[str, list[Turn]]) -> None:
    """Prints a line for each load and server: its medians, and ours over it, round by round."""
    ours = turns[next(iter(turns))]
    for load in ours[0]:
        for name, rounds in turns.items():
            median = {key: statistics.median(each[load][key] for each in rounds) for key in rounds[0][load]}
            ratio = {
                key: statistics.median(
                    mine[load][key] / theirs[load][key] for mine, theirs in zip(ours, rounds, strict=True)
                )
                for key in ("per_second", "p99_ms", "first_p50_ms", "core_ms")
            }
            line: dict[str, Any] = {"load": load, "server": name, **median}
            line |= {f"first server over it: {key}": round(value, 2) for key, value in ratio.items()}
            print(json.dumps(line), flush=True)


def main(argv: list[str]) -> None:
    del argv
    folder, what = Path(_folder.value).absolute(), _what.value
    texts = models(folder)
    bodies = serving_models.requests(what, texts, _length.value)
    running = []
    try:
        for name in _servers.value:
            running.append(Running(name, what, folder))
            asyncio.run(serving_load.closed_loop(running[-1].port, bodies, 8, 2.0))  # warms up
        turns: dict[str, list[Turn]] = {server.name: [] for server in running}
        for turn in range(_rounds.value):
            for server in running[::-1] if turn % 2 else running:
                turns[server.name].append(measure(server, bodies))
                print(f"load {os.getloadavg()[0]:.1f}", server.name, json.dumps(turns[server.name][-1]), flush=True)
        compare(turns)
    finally:
        for server in running:
            server.stop()


if __name__ == "__main__":
    app.run(main)
