"""What clients do to a server that they should not: wrong bodies, halves of requests, streams that nobody reads."""

import http.client
import json
import socket
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.served import Server

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


def raw_bodies(server: Server, count: int) -> dict[int, int]:
    """Sends bodies that hypothesis makes: bytes, JSON, objects of known fields, deep nesting, lone surrogates.

    Returns:
        How often each status came; 0: the server closed the connection twice.
    """
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
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(st.sampled_from(paths), bodies)
    def ask(path: str, body: bytes) -> None:
        status = client.post(path, body)
        statuses[status] = statuses.get(status, 0) + 1

    ask()
    return statuses


def slow_readers(server: Server) -> str:
    """Clients that open a stream and do not read it, for as long as the others work."""
    opened = [open_stream(server) for _ in range(60)]
    time.sleep(4.0)
    busy = server.metrics()["lm_slots_in_use"]
    for each in opened:
        each.close()
    return f"{len(opened)} streams, slots in use after 4 s: {busy:.0f}"


def leaving(server: Server) -> str:
    """Clients that leave in the middle of a stream."""
    for _ in range(200):
        stream = open_stream(server)
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


def open_stream(server: Server) -> socket.socket:
    """Asks for a stream, and reads nothing."""
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
