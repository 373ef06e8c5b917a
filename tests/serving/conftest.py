"""A server with a tiny encoder and a tiny encoder-decoder, shared by all tests: starting it compiles the programs."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from lm.config import Config
from lm.data.store import Store
from lm.serving.served import Served
from lm.serving.server import Server, make_service
from lm.serving.service import Service
from lm.serving.settings import Settings
from tests.inference.conftest import make_workdir
from tests.training.conftest import WORDS, tiny_config, tiny_seq2seq, tiny_store  # noqa: F401

# A small batch has few shapes.
SETTINGS = Settings(slots=4, beams=(1, 2), max_length=96, batch_tokens=64, top_logprobs=5)


@dataclasses.dataclass
class Running:
    """A server in a thread, and a client of it."""

    service: Service
    server: Server
    thread: threading.Thread
    client: httpx.Client

    @property
    def url(self) -> str:
        return self.server.url

    def post(self, path: str, body: object, **options: Any) -> Any:
        """The JSON of an answer."""
        response = self.client.post(path, json=body, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def refusal(self, path: str, body: object, **options: Any) -> httpx.Response:
        response = self.client.post(path, json=body, **options)
        assert response.status_code >= 400, response.text
        return response


def until(fact: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for a fact that comes true by itself."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.005)


def start(service: Service) -> Running:
    """Starts a server around a service, whose engine may be running."""
    server = Server(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: bool(server.url) and service.engine.is_ready, 300)
    return Running(service, server, thread, httpx.Client(base_url=server.url, timeout=120))


def stop(running: Running) -> None:
    running.client.close()
    running.server.should_exit = True
    running.thread.join()


@pytest.fixture(scope="session")
def workdirs(tiny_config: Config, tiny_seq2seq: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:  # noqa: F811
    tokenizer = Store.open(tiny_config.data.store).tokenizer
    folder = tmp_path_factory.mktemp("serving")
    return {
        "reader": make_workdir(folder / "reader", tiny_config, tokenizer),
        "writer": make_workdir(folder / "writer", tiny_seq2seq, tokenizer),
    }


@pytest.fixture(scope="package")  # modules of others clear the caches, and the server would compile again
def running(workdirs: dict[str, str]) -> Iterator[Running]:
    service = make_service([Served(name, path, SETTINGS) for name, path in workdirs.items()], SETTINGS)
    service.engine.start()
    running = start(service)
    yield running
    stop(running)
    service.engine.close()
    service.close()


@pytest.fixture(autouse=True, scope="module")
def free_memory() -> None:
    """Clears no caches between these modules: the server would have to compile its programs again."""


@pytest.fixture(autouse=True)
def nothing_is_left_or_compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test no slot is taken, nothing waits, and no program was compiled."""
    yield
    if "running" in request.fixturenames:
        service = request.getfixturevalue("running").service
        until(lambda: not service.scheduler.slots_in_use() and not service.scheduler.items)
        assert service.engine.compilations == 0
        assert service.engine.fault is None


@contextlib.contextmanager
def limited(service: Service, **limits: Any) -> Iterator[None]:
    """Other limits of the queue for a while."""
    before = service.scheduler.limits
    service.scheduler.limits = dataclasses.replace(before, **limits)
    try:
        yield
    finally:
        service.scheduler.limits = before
