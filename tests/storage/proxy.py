"""A proxy before a storage server that can refuse, drop or hold back requests."""

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterator

PASS, REFUSE, RESET, HOLD = range(4)


class Proxy:
    """Forwards every request on a connection of its own.

    Attributes:
        port: where it listens.
        decide: what becomes of a request, from its head; called for each in turn.
        counts: how many requests met each fate.
    """

    def __init__(self, upstream: int, decide: Callable[[bytes], int]):
        self._upstream = upstream
        self.decide = decide
        self.counts = [0] * 4
        self.port = 0

    async def serve(self, ready: threading.Event) -> None:
        """Listens on a free port, and says so."""
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with server:
            await server.serve_forever()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            fate = self.decide(head)
            self.counts[fate] += 1
            if fate == REFUSE:
                writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif fate == RESET:
                writer.transport.abort()
            elif fate == HOLD:
                await reader.read()  # until the client has gone
            else:
                await self._forward(head, reader, writer)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async def _forward(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = re.sub(rb"\r\nConnection: [^\r]*", b"", head, flags=re.IGNORECASE)
        server, to_server = await asyncio.open_connection("127.0.0.1", self._upstream)
        to_server.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        sending = asyncio.create_task(_copy(reader, to_server))
        await _copy(server, writer)
        sending.cancel()
        to_server.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


@contextlib.contextmanager
def running(upstream: int, decide: Callable[[bytes], int]) -> Iterator[Proxy]:
    """A proxy before a port of this machine, in a thread of its own."""
    proxy, ready, loop = Proxy(upstream, decide), threading.Event(), asyncio.new_event_loop()
    serving = loop.create_task(proxy.serve(ready))

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)
        rest = asyncio.all_tasks(loop)
        for task in rest:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join()
