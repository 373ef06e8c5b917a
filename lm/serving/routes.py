"""What all routes share: how a body is read and checked, how an error is worded, and how an answer is streamed."""

import asyncio
import dataclasses
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping

import numpy as np
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lm.errors import InputError
from lm.serving import large, schema
from lm.serving.refusals import Refusal
from lm.serving.schema import JSON, Schema
from lm.serving.service import ClientLeft, Service

_BODY_SECONDS = 30.0  # until a request's body has arrived
_LEFT = 499  # the status in log and metrics of a request whose client has left

log = logging.getLogger("lm.serving")

Handler = Callable[[Service, Request, JSON], Awaitable[Response]]
ErrorFormat = Callable[[Refusal], tuple[int, dict[str, object]]]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One route.

    Attributes:
        path: may have parameters, such as `/tasks/{task}`.
        handler: answers the checked body; None for a GET.
        error: words a refusal as the protocol does.
        summary: a sentence for /openapi.json.
        request: the schema of the body; None for a GET.
        answer: the schema of the answer.
        is_queued: whether a post waits for the engine.
    """

    path: str
    handler: Handler
    error: ErrorFormat
    summary: str
    request: Schema | None = None
    answer: Schema = dataclasses.field(default_factory=dict)
    is_queued: bool = True

    @property
    def method(self) -> str:
        return "GET" if self.request is None else "POST"

    async def __call__(self, service: Service, request: Request) -> Response:
        """Answers a request. Whatever goes wrong becomes an error of the route's protocol."""
        request.state.route = self.path
        try:
            body = None
            if self.request is not None:
                if self.is_queued:
                    service.scheduler.check_open()  # an overloaded server reads no body that it would refuse
                content = await _read_body(request, service.settings.max_body_bytes)
                if not content and not self.request.get("required"):
                    content = b"{}"
                body = schema.check(self.request, schema.parse(content))
            return await self.handler(service, request, body)
        except Refusal as refusal:
            return refused(self.error, refusal)
        except InputError as error:  # options that do not go together, or that the model does not have
            return refused(self.error, Refusal("invalid", str(error)))
        except (ClientLeft, ClientDisconnect):
            return Response(status_code=_LEFT)
        except Exception:  # a bug of ours; the message may hold the user's text, so only the log has it
            log.exception("a handler failed")
            return refused(self.error, Refusal("failed", "the server failed; its log says why."))


async def _read_body(request: Request, most: int) -> bytes:
    too_large = Refusal("too large", f"the body is larger than {most} bytes, the most that this server reads.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > most:
                    raise too_large
    except TimeoutError:
        raise Refusal("deadline", f"the body did not arrive within {_BODY_SECONDS:g} s.") from None
    return b"".join(parts)


def answered(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns a JSON response. Lone surrogates of a text that is returned become question marks."""
    return Response(_dumps(value).encode("utf-8", "replace"), status, headers, "application/json")


async def answered_apart(
    make: Callable[[], object], numbers: int, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a JSON response. A large answer is made and encoded in a thread.

    Args:
        make: returns the answer, which may hold arrays.
        numbers: how many it is made of, to tell if it is large.
        headers: of the response.
    """
    content = await large.apart(lambda: "".join(_pieces(make())).encode("utf-8", "replace"), numbers)
    return Response(content, 200, headers, "application/json")


def _pieces(value: object) -> Iterator[str]:
    """Yields JSON in pieces, one for each vector. Other threads run between pieces, but not during a `json.dumps`."""
    if isinstance(value, dict) and _has_parts(value.values()):
        for number, (key, each) in enumerate(value.items()):
            yield f"{',' if number else '{'}{_dumps(key)}:"
            yield from _pieces(each)
        yield "}"
    elif isinstance(value, list | np.ndarray) and _has_parts(value[:1]):
        for number, each in enumerate(value):
            yield "," if number else "["
            yield from _pieces(each)
        yield "]"
    else:
        yield _dumps(value.tolist() if isinstance(value, np.ndarray) else value)


def _has_parts(values: Iterable[object]) -> bool:
    return any(isinstance(each, dict | list | np.ndarray) for each in values)


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def refused(error: ErrorFormat, refusal: Refusal) -> Response:
    status, value = error(refusal)
    return answered(value, status, refusal.headers)


# ---- Streams ------------------------------------------------------------------------------------


class EventStream(Response):
    """Server-sent events. `make` starts it, so that a refusal before the first event is an ordinary error."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, others: AsyncGenerator[bytes], error: ErrorFormat, patience: float):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first, self._others, self._error, self._patience = first, others, error, patience

    @classmethod
    async def make(cls, events: AsyncGenerator[object], error: ErrorFormat, patience: float) -> "EventStream":
        """Waits for the first event.

        Args:
            events: what to send, each as JSON.
            error: words a refusal that comes later, which becomes the last event.
            patience: seconds that a client may leave an event unread.

        Raises:
            Refusal: there will be no event.
        """
        encoded = _encoded(events)
        return cls(await anext(encoded), encoded, error, patience)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            await self._send(send, self._first)
            async for event in self._others:
                await self._send(send, event)
            await self._send(send, b"data: [DONE]\n\n")
        except Refusal as refusal:
            await self._send(send, _event(self._error(refusal)[1]))
        except (ClientLeft, OSError, TimeoutError):
            return
        finally:
            await self._others.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, event: bytes) -> None:
        async with asyncio.timeout(self._patience):
            await send({"type": "http.response.body", "body": event, "more_body": True})


async def _encoded(events: AsyncGenerator[object]) -> AsyncGenerator[bytes]:
    try:
        async for event in events:
            yield _event(event)
    finally:
        await events.aclose()


def _event(value: object) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode("utf-8", "replace")
