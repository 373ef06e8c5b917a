"""What clients do to a server, thousands of times: python -m tests.faults.hostile --folder=DIR --schemathesis=PATH

DIR is that of `tests.benchmarks.serving`; PATH is the program of an environment that has schemathesis (`pip install
schemathesis`). Requests are made from /openapi.json by schemathesis, and raw bodies by hypothesis. Then clients read
slowly, leave in the middle of a stream, send half a request, and send 100 MB. After each, nothing may be left in the
queue, in a slot or in the memory, and no status may say that the server itself failed.
"""

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.served import Server, report

_folder = flags.DEFINE_string("folder", None, "The models and texts of tests.benchmarks.serving.", required=True)
_schemathesis = flags.DEFINE_string("schemathesis", None, "The program; without it this part is left out.")
_examples = flags.DEFINE_integer("examples", 100, "Requests of schemathesis for each route and phase.")
_bodies = flags.DEFINE_integer("bodies", 3000, "Raw bodies of hypothesis.")

STREAM = {"model": "generate", "prompt": "the list of", "max_tokens": 60, "min_length": 60, "stream": True}
LARGE = 100 << 20  # bytes


class Client:
    """One connection of http.client that is opened again where it was closed."""

    def __init__(self, port: int):
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def post(self, path: str, body: bytes) -> int:
        for _ in range(2):
            try:
                self._connection.request("POST", path, body, {"Content-Type": "application/json"})
                answer = self._connection.getresponse()
                answer.read()
                return answer.status
            except (http.client.HTTPException, OSError):
                self._connection.close()
        return 0


def routes(port: int) -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/openapi.json")
    paths = json.loads(connection.getresponse().read())["paths"]
    tasks = ("embed", "generate", "fill-mask", "nothing")
    posts = [path for path, each in paths.items() if "post" in each and path != "/admin/reload"]
    return [path.replace("{task}", task) for path in posts for task in (tasks if "{task}" in path else ("",))]


# ---- What is done -------------------------------------------------------------------------------


def from_the_description(server: Server) -> str:
    """Requests that schemathesis makes from /openapi.json."""
    command = [_schemathesis.value, "run", f"http://127.0.0.1:{server.port}/openapi.json"]
    command += ["--checks", "not_a_server_error", "--max-examples", str(_examples.value), "--workers", "4"]
    command += ["--exclude-path", "/admin/reload", "--continue-on-failure", "--request-timeout", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stdout.splitlines() if "generated" in line or "Server error" in line]
    return "; ".join(lines)[-300:] or done.stdout[-300:] + done.stderr[-300:]


def raw_bodies(server: Server) -> str:
    """Bodies that hypothesis makes: bytes, JSON of any type, objects of known fields, deep nesting, lone surrogates."""
    names = st.sampled_from(["input", "inputs", "model", "prompt", "messages", "query", "texts", "ids", "stream", "n"])
    texts = st.one_of(st.text(max_size=40), st.sampled_from(["\ud800", "\x00", "a" * 5000, "你好", "</s>", "embed"]))
    numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 2**31, 2**63, 10**400]))
    leaves = st.one_of(st.none(), st.booleans(), numbers, texts)
    values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4))
    objects = st.dictionaries(names, values, min_size=1, max_size=4).map(lambda value: json.dumps(value).encode())
    nested = st.integers(1, 200_000).map(lambda depth: b'{"inputs":' + b"[" * depth)
    bodies = st.one_of(
        st.binary(max_size=200), objects, objects, values.map(lambda each: json.dumps(each).encode()), nested
    )
    paths, client, statuses = routes(server.port), Client(server.port), {}

    @settings(
        max_examples=_bodies.value, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(st.sampled_from(paths), bodies)
    def ask(path: str, body: bytes) -> None:
        status = client.post(path, body)
        statuses[status] = statuses.get(status, 0) + 1

    ask()
    return str(statuses)


def slow_readers(server: Server) -> str:
    """Clients that open a stream and do not read it, for as long as the others work."""
    opened = [_open_stream(server) for _ in range(60)]
    time.sleep(4.0)
    busy = server.metrics()["lm_slots_in_use"]
    for each in opened:
        each.close()
    return f"{len(opened)} streams, slots in use after 4 s: {busy:.0f}"


def leaving(server: Server) -> str:
    """Clients that leave in the middle of a stream."""
    for _ in range(200):
        stream = _open_stream(server)
        stream.recv(200)
        stream.close()
    return "200 streams"


def half_requests(server: Server) -> str:
    """Clients that send a part of a head, or of a body, and then nothing."""
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n"
    opened = [_send(server, head if number % 2 else head + b'\r\n{"input": "') for number in range(300)]
    answered = Client(server.port).post("/v1/embeddings", b'{"input": "a text"}')
    for each in opened:
        each.close()
    return f"{len(opened)} halves; a whole request between them: {answered}"


def large_bodies(server: Server) -> str:
    """100 MB, with a length and in chunks."""
    found = []
    for chunked in (False, True):
        how = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % LARGE
        stream = _send(server, b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\n" + how + b"\r\n\r\n")
        block, status, sent = b"a" * (1 << 16), b"", 0
        try:
            while sent < LARGE:
                stream.sendall(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
                sent += len(block)
        except OSError:
            pass  # refused before all was sent
        try:
            stream.settimeout(10)
            status = stream.recv(64)
        except OSError:
            pass
        found.append(f"{status[9:12].decode()} after {sent >> 20} MB")
        stream.close()
    return ", ".join(found)


def _send(server: Server, content: bytes) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    opened.sendall(content)
    return opened


def _open_stream(server: Server) -> socket.socket:
    body = json.dumps(STREAM).encode()
    return _send(server, b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


# ---- What may not be left -----------------------------------------------------------------------


def left(server: Server) -> tuple[float, float, int]:
    """What still waits, what still runs, and the files that are open, once all clients have gone."""
    end = time.monotonic() + 40.0
    while True:
        found = server.metrics()
        queue, slots = found["lm_queue_items"], found["lm_slots_in_use"]
        if not (queue or slots) or time.monotonic() > end:
            return queue, slots, len(list(Path(f"/proc/{server.pid}/fd").iterdir()))
        time.sleep(0.1)


def main(argv: list[str]) -> None:
    del argv
    folder = Path(_folder.value).absolute()
    models = f"embed={folder / 'embed'},generate={folder / 'tiny'}"
    flags_ = ("--tasks=embed,generate", "--beams=1,2", "--max_length=64", f"--compilation_cache={folder / 'cache'}")
    server = Server(models, *flags_, "--drain_seconds=0")
    parts: list[Callable[[Server], str]] = [raw_bodies, slow_readers, leaving, half_requests, large_bodies, raw_bodies]
    parts = ([from_the_description] if _schemathesis.value else []) + parts
    _, _, files = left(server)
    holds, memory = True, []
    for part in parts:
        begun, said = time.monotonic(), part(server)
        queue, slots, open_files = left(server)
        memory.append(round(server.megabytes()))
        failures = int(server.metrics().get("requests_500", 0)), server.log().count("failed")
        facts: list[tuple[str, Any, bool]] = [
            (f"done in {time.monotonic() - begun:.0f} s", said, True),
            ("answers with status 500, and failures in the log", failures, not any(failures)),
            ("left in queue, slots", (queue, slots), not queue and not slots),
            ("open files", open_files, open_files < files + 20),
            ("health", server.status("/health"), server.status("/health") == 200),
        ]  # fmt: skip
        holds &= report(part.__name__, facts)
    metrics = server.metrics()
    print({name: int(count) for name, count in metrics.items() if name.startswith("requests_")}, flush=True)
    compiled, growth = metrics["lm_compilations_total"], memory[-1] - memory[-2]  # the second time that hypothesis asks
    holds &= report(
        "hostile",
        [
            ("memory after each part, MB", memory, growth < 0.03 * memory[-2]),
            ("batches that failed", metrics["lm_faults_total"], not metrics["lm_faults_total"]),
            ("programs compiled since the start", compiled, not compiled),
            ("exit code", code := server.stop(), code == 0),
        ],
    )  # fmt: skip
    if not holds:
        print(server.log()[-3000:])
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    app.run(main)
