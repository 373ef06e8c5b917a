"""What happens to every request before and after its route: an id, the API key, a line in the log, the metrics.

Pure ASGI: Starlette's BaseHTTPMiddleware would hide from a handler that its client has left.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm.serving import openai, tei
from lm.serving.metrics import Metrics
from lm.serving.refusals import Refusal
from lm.serving.routes import ErrorFormat, refused

OPEN = ("/health", "/ready", "/ping", "/metrics", "/openapi.json")  # routes that need no key: they hold no user's data
_PAGE = re.compile(r"/|/page/[^/]+")  # its files are open as well; it asks for a key itself
_IS_ID = re.compile(r"[\w.:-]{1,128}")

log = logging.getLogger("lm.serving")


def error_format(path: str) -> ErrorFormat:
    """Returns how the protocol of a path words errors."""
    return tei.error if path in {endpoint.path for endpoint in tei.ENDPOINTS} else openai.error


class Observed:
    """Gives every request an id, and counts and logs it. The log never holds a text of a user."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.monotonic(), 500
        identity = _header(scope, b"x-request-id")
        if not _IS_ID.fullmatch(identity):
            identity = secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["route"] = "other"

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", identity.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, with_id)
        finally:
            seconds, route = time.monotonic() - begun, state["route"]
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            log.info("%s %s %s %d %.1f ms", identity, scope["method"], route, status, 1000 * seconds)


class Keys:
    """Refuses requests without one of the API keys, as `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self._app = app
        # Digests have one length, so that the time of a comparison says nothing about a key.
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and not self._allows(scope):
            refusal = Refusal("unauthorized", "the API key is missing or wrong; send it as Authorization: Bearer KEY.")
            return await refused(error_format(scope["path"]), refusal)(scope, receive, send)
        await self._app(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if scope["path"] in OPEN or (scope["method"] in ("GET", "HEAD") and _PAGE.fullmatch(scope["path"])):
            return True
        kind, _, key = _header(scope, b"authorization").partition(" ")
        digest = _digest(key.strip().encode("latin-1"))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return kind.lower() == "bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
