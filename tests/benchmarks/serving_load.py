"""A load of HTTP requests, and what their answers took."""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

Body = dict[str, Any] | bytes | None  # None: a GET; bytes are JSON already
Bodies = Iterator[tuple[str, Body]]  # path and body of one request after the other

_IDLE = 3.0  # seconds; an older connection may just be closed by its server


class Answer(NamedTuple):
    """When a request was sent, first answered and wholly answered, in seconds, and its status."""

    sent: float
    first: float
    last: float
    status: int


class Client:
    """One connection that is kept: httpx would take a good part of two cores."""

    def __init__(self, port: int):
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0
        self.content = b""  # of the last answer that was no stream

    async def ask(self, path: str, body: Body, headers: str = "") -> Answer:
        """Sends a request and reads the answer."""
        if self._streams is not None and (self._streams[0].at_eof() or time.perf_counter() - self._used > _IDLE):
            self.close()
        self._streams = self._streams or await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        line = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        sent = time.perf_counter()
        writer.write(f"{line}{headers}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            first = time.perf_counter()
            if b"chunked" in head:
                first = await self._read_chunks(reader, first)
            else:
                length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
                self.content = await reader.readexactly(int(length.split(b":")[1]))
        except (asyncio.IncompleteReadError, OSError):
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        self._used = time.perf_counter()
        return Answer(sent, first, self._used, int(head[9:12]))

    async def _read_chunks(self, reader: asyncio.StreamReader, first: float) -> float:
        """Reads a stream, and returns the time of its first event."""
        events = 0
        while size := int(await reader.readline(), 16):
            events += (await reader.readexactly(size + 2)).count(b"data: {")
            first = first if events > 1 else time.perf_counter()
        await reader.readline()
        return first

    def close(self) -> None:
        """Gives the connection up; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def closed_loop(port: int, bodies: Bodies, clients: int, seconds: float) -> list[Answer]:
    """So many clients each ask again as soon as they are answered."""
    end = time.perf_counter() + seconds

    async def ask() -> list[Answer]:
        client, found = Client(port), []
        while time.perf_counter() < end:
            found.append(await client.ask(*next(bodies)))
        client.close()
        return found

    return [answer for found in await asyncio.gather(*(ask() for _ in range(clients))) for answer in found]


async def poisson(port: int, bodies: Bodies, rate: float, seconds: float, headers: str = "") -> list[Answer]:
    """Asks `rate` times a second, at random; a connection that is free is used again."""
    rng, free, waiting = random.Random(0), [], []

    async def ask() -> Answer:
        client = free.pop() if free else Client(port)
        answer = await client.ask(*next(bodies), headers)
        free.append(client)
        return answer

    begun, at = time.perf_counter(), 0.0
    while (at := at + rng.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        waiting.append(asyncio.create_task(ask()))
    found = list(await asyncio.gather(*waiting))
    for client in free:
        client.close()
    return found


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def summary(answers: list[Answer]) -> dict[str, float]:
    """Answers a second, and the times of an answer and of its first part in milliseconds."""
    seconds = max(answer.last for answer in answers) - min(answer.sent for answer in answers)
    whole = [1000 * (answer.last - answer.sent) for answer in answers]
    first = [1000 * (answer.first - answer.sent) for answer in answers]
    return {
        "answers": len(answers),
        "per_second": round(len(answers) / seconds, 2),
        "p50_ms": round(quantile(whole, 0.5), 1),
        "p99_ms": round(quantile(whole, 0.99), 1),
        "first_p50_ms": round(quantile(first, 0.5), 1),
    }
