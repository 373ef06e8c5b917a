"""The HTTP server: the routes around an engine, and how it starts, drains and stops."""

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lm.data import workers
from lm.errors import InputError
from lm.serving import completions, explore, openai, openapi, tasks, tei
from lm.serving.engine import Engine
from lm.serving.metrics import Metrics
from lm.serving.middleware import Keys, Observed, error_format
from lm.serving.models import read_models
from lm.serving.refusals import Refusal
from lm.serving.routes import answered, refused
from lm.serving.scheduler import Limits, Scheduler
from lm.serving.served import Served
from lm.serving.service import Service
from lm.serving.settings import Settings

ENDPOINTS = (*openai.ENDPOINTS, *completions.ENDPOINTS, *tei.ENDPOINTS, *tasks.ENDPOINTS, *explore.ENDPOINTS)

# Seconds until an idle connection is closed. Balancers keep theirs for a minute and send again on them. A server that
# closes earlier loses the request that is on its way.
_KEEP_ALIVE = 75

log = logging.getLogger("lm.serving")


def make_service(models: Sequence[Served], settings: Settings) -> Service:
    """Returns a service whose engine is not started."""
    runner = models[0].predictor.runner
    batch_tokens = min(model.batch_tokens for model in models) * runner.multiple
    limits = Limits(settings.waiting_items, settings.waiting_tokens, batch_tokens, settings.deadline)
    scheduler, metrics = Scheduler(limits), Metrics()
    engine = Engine(models, scheduler, metrics)
    metrics.watch("lm_queue_items", "Inputs that wait", lambda: scheduler.items)
    metrics.watch("lm_queue_tokens", "Tokens that wait", lambda: scheduler.tokens)
    metrics.watch("lm_slots_in_use", "Sequences that are written", scheduler.slots_in_use)
    metrics.watch("lm_ready", "1 if every program is compiled", lambda: float(engine.is_ready))
    return Service(engine, settings)


def make_app(service: Service) -> Starlette:
    """Returns the ASGI application of a service."""
    settings = service.settings
    routes = [
        Route(path, functools.partial(_call, handler, service), methods=["GET"])
        for path, handler in (
            ("/health", health),
            ("/ping", health),
            ("/ready", ready),
            ("/metrics", metrics),
            ("/openapi.json", description),
        )
    ]
    routes += [Route(each.path, functools.partial(_call, each, service), methods=[each.method]) for each in ENDPOINTS]
    routes += [Route(path, file, methods=["GET"]) for path, file in explore.page_files().items()]
    middleware = [Middleware(Observed, metrics=service.metrics), Middleware(Keys, keys=settings.api_keys)]
    if settings.cors_origins:
        cors = functools.partial(CORSMiddleware, allow_methods=["*"], allow_headers=["*"])
        middleware.insert(1, Middleware(cors, allow_origins=settings.cors_origins))
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _no_route})


async def _call(handler: Callable, service: Service, request: Request) -> Response:
    return await handler(service, request)


async def _no_route(request: Request, error: Exception) -> Response:
    """Answers a request for a path, or with a method, that no route has."""
    assert isinstance(error, HTTPException)
    refusal = Refusal("unknown", f"{error.detail}; GET /openapi.json lists the routes.")
    refusal.status = error.status_code
    response = refused(error_format(request.url.path), refusal)
    response.status_code = error.status_code
    response.headers.update(error.headers or {})
    return response


# ---- The state of the server ------------------------------------------------------------------------


async def health(service: Service, request: Request) -> Response:
    """Whether the engine moves. A full queue is no reason to end a server, so it is not looked at."""
    request.state.route = request.url.path
    engine = service.engine
    if engine.fault is None and engine.seconds_since_beat() < service.settings.heartbeat_seconds:
        return answered({"status": "ok"})
    return answered({"error": "unhealthy", "error_type": "Unhealthy"}, 503)


async def ready(service: Service, request: Request) -> Response:
    """Whether a balancer may send requests: loaded, compiled, and not told to stop."""
    request.state.route = "/ready"
    if service.engine.is_ready and not service.draining:
        return answered({"status": "ready"})
    return answered({"status": "draining" if service.draining else "starting"}, 503)


async def metrics(service: Service, request: Request) -> Response:
    request.state.route = "/metrics"
    return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")


async def description(service: Service, request: Request) -> Response:
    request.state.route = "/openapi.json"
    return answered(openapi.describe(ENDPOINTS, bool(service.settings.api_keys)))


# ---- Its life -----------------------------------------------------------------------------------


class Server(uvicorn.Server):
    """A server that goes on for a while after SIGTERM.

    uvicorn closes its socket at SIGTERM. A balancer that has not noticed yet would lose requests. So `/ready` says 503
    first, while requests are still answered; then the socket is closed, running requests finish, and the server ends.
    """

    def __init__(self, service: Service, host: str, port: int, when_ready: Callable[[], object] = lambda: None):
        """Makes it; `when_ready` is called once every program is compiled, before it says where it serves."""
        config = uvicorn.Config(
            make_app(service),
            host,
            port,
            loop="uvloop",
            http="httptools",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE,
        )
        super().__init__(config)
        self._service, self._when_ready = service, when_ready
        self.url = ""

    @contextlib.contextmanager
    def capture_signals(self):
        """Drains at the first SIGTERM or SIGINT, and stops at the second."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        yield

    def drain(self) -> None:
        """Begins to stop; a second call stops at once."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        seconds, what = self._service.settings.drain_seconds, "requests are taken for {:g} s more"
        if not self._service.engine.is_ready:
            seconds, what = 0.0, "it waits for the program that is compiled now"
        print(f"stopping: {what.format(seconds)}; a second signal ends at once", file=sys.stderr)
        asyncio.get_running_loop().call_later(seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Binds the port, then waits until every program is compiled and says so."""
        await super().startup(sockets)
        if self.started:
            bound = self.servers[0].sockets[0].getsockname()
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            self.url = f"http://{host}:{bound[1]}"
            self._announcing = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        engine = self._service.engine
        with workers.announced("compiling every program; /ready says when it is done"):
            while not engine.is_ready:
                if engine.fault is not None or self.should_exit:
                    self.should_exit = True
                    return
                await asyncio.sleep(0.02)
        self._when_ready()
        print(f"serving on {self.url}", flush=True)
        while True:
            if engine.fault is not None:
                self.should_exit = True
            await asyncio.sleep(1.0)


def collect_often() -> None:
    """Lets Python look for cycles among what requests make, soon and among nothing else.

    A process that traces models looks rarely (`lm.cli.run`): a server would hold tens of megabytes of old requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 10, 10)


def serve(models: Sequence[tuple[str, str]], settings: Settings, host: str, port: int) -> None:
    """Serves models until SIGTERM.

    Args:
        models: the name and the path of each.
        host, port: to listen on; port 0 is any free one.

    Raises:
        InputError: a model cannot be read, or the port cannot be used.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"--host={host} --port={port}: {error.strerror}; choose another, or 0 for any port.") from None
    with listening:
        with workers.announced(f"loading {', '.join(path for _, path in models)}"):
            found = read_models(models, settings)
        service = make_service(found, settings)
        server = Server(service, host, port, collect_often)
        service.engine.start()
        watching = Watcher(service) if settings.watch_seconds else None
        try:
            server.run([listening])
        finally:
            if watching is not None:
                watching.close()
            service.engine.close()
            service.close()
    if service.engine.fault is not None:
        raise service.engine.fault


class Watcher:
    """Looks for new checkpoints from time to time, in a thread of its own."""

    def __init__(self, service: Service):
        self._service, self._closed = service, threading.Event()
        threading.Thread(target=self._watch, name="watcher", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        engine = self._service.engine
        while not self._closed.wait(self._service.settings.watch_seconds):
            for name in engine.models if engine.is_ready else ():
                try:
                    with contextlib.suppress(InputError):  # the engine has logged it, and keeps what it has
                        engine.reload(name, again=False)
                except Exception:  # the storage may fail for a while
                    log.exception("%s could not be looked at", name)
