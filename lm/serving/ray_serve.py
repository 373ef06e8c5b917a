"""The engine as a deployment of Ray Serve, whose proxies are its HTTP server. lm/cluster/ray_serve.py has the config.

Ray imports `application` on every node. Each replica is one process with one engine; its routes are those of
launch/serve.py. `/metrics` is that of the replica which answers. `/replica` says which one that is, which checkpoint
Ray gave it last, and why it refused that one.
"""

import asyncio
import dataclasses
import logging
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from starlette.types import Receive, Scope, Send

from lm.cluster.ray_roll import REPLICA
from lm.cluster.ray_serve import DEPLOYMENT, OUTSTANDING
from lm.config.paths import named_models
from lm.data import workers
from lm.errors import InputError
from lm.serving.middleware import Keys
from lm.serving.models import read_models
from lm.serving.routes import answered
from lm.serving.server import make_app, make_service
from lm.serving.settings import Settings, read_keys

# --log_requests in every form that absl takes; the group is there if it is on.
_LOGS = re.compile(r"--(?:(log_requests(?:=(?:true|t|1))?)|nolog_requests|log_requests=(?:false|f|0))", re.IGNORECASE)

log = logging.getLogger("lm.serving")


class Replica:
    """One server without a socket: Ray calls it with requests."""

    def __init__(self, options: Sequence[str] = ()):
        """Reads the settings. `reconfigure` names the checkpoint, and Ray calls it before any request.

        Raises:
            InputError: an option is none of launch/serve.py's settings.
        """
        matches = {option: match for option in options if (match := _LOGS.fullmatch(option))}
        if [bool(matches[option][1]) for option in options if option in matches][-1:] == [True]:
            log.setLevel(logging.INFO)
        self._settings = settings([option for option in options if option not in matches])
        self._names: list[str] = []  # of the models, as long as the replica lives
        self._service = self._app = None
        self._identity = secrets.token_hex(8)
        self._given = self._refusal = ""  # the checkpoint that Ray gave last, and why it is not served
        self._about = Keys(self._say, self._settings.api_keys)  # paths are for those who have a key

    def __serve_build_asgi_app__(self):
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await self._answer(scope, receive, send)

        return answer  # a function: uvicorn takes a bound method for an application of ASGI 2

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # Ray's, around the life of the replica: before there is a checkpoint
            await self._live(receive, send)
        elif scope["type"] == "http" and scope["path"] == REPLICA:
            await self._about(scope, receive, send)
        else:
            assert self._app is not None
            await self._app(scope, receive, send)

    async def _say(self, scope: Scope, receive: Receive, send: Send) -> None:
        models = self._service.engine.models if self._service else {}
        said = {
            "replica": self._identity,
            "checkpoint": self._given,
            "refusal": self._refusal,
            "steps": {name: model.weights.step for name, model in models.items()},
        }
        await answered(said)(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Answers the startup, and stops the engine at the shutdown."""
        while True:
            event = (await receive())["type"]
            if event == "lifespan.shutdown" and self._service is not None:
                await asyncio.to_thread(self._service.engine.close)
                self._service.close()
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Serves a checkpoint. The first one is compiled for; a later one replaces the weights under load.

        A later one has the names of the first; a lone model keeps its name, whatever the later one is called.

        Raises:
            InputError: the first one cannot be served, so the replica does not start. A later one that cannot be
                served changes nothing; the log and `/replica` have the reason.
        """
        given = user_config["checkpoint"]
        models = named_models(given)
        if self._service is None:
            await asyncio.to_thread(self._begin, models)
            self._given = given
            return
        refusals = await self._reload(models)
        for refusal in refusals:
            log.error("%s", refusal)
        self._refusal, self._given = " ".join(refusals), given

    async def _reload(self, models: Sequence[tuple[str, str]]) -> list[str]:
        """Gives each model its new path; returns why some were not taken."""
        assert self._service is not None
        if len(self._names) == len(models) == 1:
            models = [(self._names[0], path) for _, path in models]
        if sorted(self._names) != sorted(name for name, _ in models):
            given = ",".join(f"{name}={path}" for name, path in models)
            return [f"{given} is not served; accepted: new paths of the models {', '.join(self._names)}."]
        refusals = []
        for name, path in models:
            try:
                await asyncio.to_thread(self._service.engine.reload, name, path=path)
            except InputError as error:
                refusals.append(f"{path} is not served: {error}")
        return refusals

    def _begin(self, models: Sequence[tuple[str, str]]) -> None:
        with workers.announced(f"loading {', '.join(path for _, path in models)}", at_once=True):
            service = make_service(read_models(models, self._settings), self._settings)
        service.engine.start()
        with workers.announced("compiling every program", at_once=True):
            while not service.engine.is_ready:
                if service.engine.fault is not None:
                    raise service.engine.fault
                time.sleep(0.02)
        self._names = [name for name, _ in models]
        self._service, self._app = service, make_app(service)

    def check_health(self) -> None:
        """Raises what ended the engine, so that Ray replaces the replica."""
        if self._service is not None and self._service.engine.fault is not None:
            raise self._service.engine.fault

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Returns what the autoscaling policy adds up."""
        return {OUTSTANDING: self._service.scheduler.outstanding_tokens() if self._service else 0.0}


def application(arguments: dict[str, Any]) -> object:
    """Returns the application of a Ray Serve config.

    Args:
        arguments: `options`: flags of launch/serve.py that are settings of a server.
    """
    from ray import serve  # pyright: ignore[reportMissingImports]  # of the extra [ray]

    deployment = serve.deployment(serve.ingress()(Replica))
    return deployment.options(name=DEPLOYMENT).bind(list(arguments.get("options", ())))


def settings(options: Sequence[str]) -> Settings:
    """Returns the settings that `--NAME=VALUE` flags give.

    Raises:
        InputError: there is no such setting, or the value is of another kind.
    """
    fields = {field.name: field.default for field in dataclasses.fields(Settings) if field.name != "api_keys"}
    given: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.removeprefix("--").partition("=")
        if not equals and isinstance(fields.get(name.removeprefix("no")), bool):  # --truncate and --notruncate
            name, equals, text = name.removeprefix("no"), "=", str(not name.startswith("no"))
        if name not in fields or not equals:
            raise InputError(f"{option!r} is no setting of a server; accepted: --NAME=VALUE of {', '.join(fields)}.")
        default = () if name == "mesh" else fields[name]  # as its flag
        try:
            if isinstance(default, bool):
                given[name] = {"true": True, "false": False}[text.lower()]
            elif isinstance(default, tuple):
                given[name] = text.split(",") if text else []
            else:
                given[name] = type(default)(text)
        except (KeyError, ValueError):
            raise InputError(f"{option!r} has a value of another kind; the default is {default!r}.") from None
    lists = {name: list(value) for name, value in fields.items() if isinstance(value, tuple)}
    keys = read_keys("")
    return Settings.of({**lists, "beams": [str(n) for n in Settings().beams], **given}, keys)
