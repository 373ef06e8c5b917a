"""A proxy before a storage server that can refuse, drop or hold back requests."""

import contextlib
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator

PASS, REFUSE, RESET, HOLD = range(4)


class Proxy(socketserver.ThreadingTCPServer):
    """Listens on a free port and forwards every request on a connection of its own.

    Attributes:
        upstream: the server's port on this machine.
        decide: what becomes of a request, from its head.
        counts: how many requests met each fate.
        sent: bytes that clients were sent.
    """

    daemon_threads = True
    block_on_close = False  # a request that is held back ends with its client

    def __init__(self, upstream: int, decide: Callable[[bytes], int]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.decide = decide
        self.counts = [0] * 4
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.StreamRequestHandler):
    server: Proxy
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            head = b""
            while (line := self.rfile.readline()) != b"\r\n":
                if not line:  # the client has gone without a request
                    return
                head += line
            fate = self.server.decide(head)
            self.server.counts[fate] += 1
            if fate == REFUSE:
                self.wfile.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            elif fate == RESET:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif fate == HOLD:
                self.rfile.read()
            else:
                self._forward(head)

    def _forward(self, head: bytes) -> None:
        head = re.sub(rb"\r\nConnection: [^\r]*", b"", head, flags=re.IGNORECASE) + b"Connection: close\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self.server.upstream)) as upstream:
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            upstream.sendall(head)
            threading.Thread(target=self._send, args=(upstream,), daemon=True).start()
            while data := upstream.recv(1 << 16):
                self.wfile.write(data)
                self.server.sent += len(data)

    def _send(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed where the answer is complete
            while data := self.rfile.read1(1 << 16):
                upstream.sendall(data)


@contextlib.contextmanager
def running(upstream: int, decide: Callable[[bytes], int]) -> Iterator[Proxy]:
    """A proxy before a port of this machine."""
    with Proxy(upstream, decide) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
