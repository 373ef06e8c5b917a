"""From a validated request to an admitted job, and from its results back to the handler that waits for them.

Texts become rows in worker threads, since a tokenizer may take milliseconds; then the job is submitted, and the event
loop is told of every result by the engine's thread.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from starlette.requests import Request

from lm.data.characters import without_surrogates
from lm.data.sentence_encoder import Normalize
from lm.inference import prompts
from lm.inference.options import Decoding
from lm.inference.packed import Row
from lm.inference.predict import Options
from lm.inference.requests import RequestError
from lm.serving import large
from lm.serving.engine import Engine
from lm.serving.lanes import Progress, Readers, ToRead, ToWrite
from lm.serving.metrics import Metrics
from lm.serving.refusals import Refusal
from lm.serving.scheduler import PRIORITIES, Item, Job, Scheduler
from lm.serving.schema import JSON
from lm.serving.served import VECTORS, Served, Weights
from lm.serving.settings import Settings

TOKENIZING_THREADS = 2

Given = str | list[int]  # a text, or its token ids
T = TypeVar("T")


class ClientLeft(Exception):
    """The client closed the connection, so nobody waits for the answer."""


@dataclasses.dataclass(frozen=True)
class Terms:
    """How a request is scheduled: the deadline in seconds (None for the server's), and its priority."""

    seconds: float | None = None
    priority: str = "normal"

    @classmethod
    def of(cls, request: Request) -> "Terms":
        """Reads the headers `x-timeout-seconds` and `x-priority`.

        Raises:
            Refusal: one of them is wrong.
        """
        priority = request.headers.get("x-priority", "normal")
        if priority not in PRIORITIES:
            raise Refusal("invalid", f"x-priority accepts {', '.join(PRIORITIES)}.", param="x-priority")
        try:
            seconds = float(request.headers.get("x-timeout-seconds", "inf"))
        except ValueError:
            seconds = 0.0
        if not seconds > 0:
            raise Refusal("invalid", "x-timeout-seconds accepts a number above 0.", param="x-timeout-seconds")
        return cls(seconds, priority)


@dataclasses.dataclass
class Times:
    """What an answer cost, for the headers of TEI: seconds in each part, and the tokens that were read."""

    begun: float = dataclasses.field(default_factory=time.monotonic)
    tokenizing: float = 0.0
    queueing: float = 0.0
    computing: float = 0.0
    tokens: int = 0

    @contextlib.contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Adds the seconds of a block to one of the parts."""
        begun = time.monotonic()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + time.monotonic() - begun)


class Service:
    """What the routes share.

    Attributes:
        engine, scheduler, metrics, settings: of the server.
        draining: whether the server was told to stop.
    """

    def __init__(self, engine: Engine, settings: Settings):
        self.engine, self.settings = engine, settings
        self.scheduler: Scheduler = engine.scheduler
        self.metrics: Metrics = engine.metrics
        self.draining = False
        self._threads = concurrent.futures.ThreadPoolExecutor(TOKENIZING_THREADS, "tokenizer")
        self._reloading = concurrent.futures.ThreadPoolExecutor(1, "reload")

    def close(self) -> None:
        for threads in (self._threads, self._reloading):
            threads.shutdown(wait=False, cancel_futures=True)

    def model(self, name: str | None, task: str = "") -> Served:
        """Returns the model of that name; without a name, the first that can do the task.

        Raises:
            Refusal: there is none.
        """
        models = self.engine.models
        if name is not None and name not in models:
            shown = name if len(name) <= 80 else "that name"
            raise Refusal("unknown", f"no model {shown!r} is served here; there is {', '.join(models)}.", param="model")
        candidates = list(models.values()) if name is None else [models[name]]
        able = [model for model in candidates if not task or task in model.tasks]
        if not able:
            tasks = ", ".join(sorted({each for model in candidates for each in model.tasks}))
            raise Refusal("unknown", f"no model here can do {task}; the tasks are {tasks}.", param="model")
        return able[0]

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def reload(self, name: str) -> tuple[int, bool]:
        """Reads the newest checkpoint of a model, after the reloads before it; see `Engine.reload`.

        Reloads have a thread of their own: they take long, and in the threads of tokenizers all requests would wait.
        """
        return await asyncio.get_running_loop().run_in_executor(self._reloading, self.engine.reload, name)

    async def tokenize(self, make: Callable[[], T]) -> T:
        """Returns the rows that a tokenizer makes.

        Raises:
            Refusal: the queue is full. An overloaded server tokenizes nothing that it would refuse.
        """
        self.scheduler.check_open()
        return await self.in_thread(make)

    # ---- Requests to items, and results to outputs ------------------------------------------

    async def embedding_rows(
        self,
        weights: Weights,
        given: Sequence[Given],
        times: Times,
        *,
        truncate: bool | None = None,
        side: str = "",
        prompt_name: str | None = None,
        param: str = "inputs",
        hint: str = "shorten it, or set truncate",
    ) -> list[Row]:
        """Returns the rows of texts or token arrays to embed.

        Args:
            truncate: whether a longer input is cut; None is the server's setting.
            side: `left` or `right`: which end is cut; empty for that of the tokenizer.
            prompt_name: the model's name of a text to put before each text.
            param, hint: the route's field of the inputs, and what a client can do about one that is too long.

        Raises:
            Refusal: an input is too long, or has an id that the tokenizer does not know.
        """
        truncate = self.settings.truncate if truncate is None else truncate
        prompt = weights.reading("embed", Options(prompt_name=prompt_name))[0].prompt
        assert isinstance(prompt, prompts.Embed)
        with times.measured("tokenizing"):
            try:
                rows = await self.tokenize(
                    lambda: [_embedding_row(weights, prompt, each, side, param) for each in given]
                )
            except RequestError as error:
                raise Refusal("invalid", str(error), param=param) from None
        for number, row in enumerate(rows):
            if row.truncated and not truncate:
                longest = weights.predictor.loaded.config.data.seq_length
                message = f"input {number} is longer than the {longest} tokens that the model reads; {hint}."
                raise Refusal("invalid", message, param=param)
        times.tokens += sum(len(row.tokens) for row in rows)
        return rows

    async def embed(
        self,
        request: Request,
        weights: Weights,
        rows: Sequence[Row],
        times: Times,
        *,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> list[np.ndarray]:
        """Returns the embedding of each row, float32 [D].

        Args:
            normalize: None is what the model was made with.
            dimensions: cut the vector to so many, and scale it to length one again.

        Raises:
            Refusal, ClientLeft: there is no answer.
        """
        reading, readers = weights.reading("embed", Options(normalize=normalize))
        assert isinstance(reading.prompt, prompts.Embed)
        large.check(len(rows), "inputs", weights.embedding_size(reading.prompt))
        outputs = await self.read(request, weights, readers, rows, times)
        encoder = reading.prompt.encoder
        vectors = await large.apart(
            lambda: [encoder.finish(output[0]) for output in outputs], sum(map(np.size, outputs))
        )
        width = len(vectors[0])
        if dimensions is None or dimensions == width:
            return vectors
        if dimensions > width:
            raise Refusal("invalid", f"dimensions is {dimensions}; the model has {width}.", param="dimensions")
        return [Normalize()(vector_D[:dimensions]) for vector_D in vectors]

    async def vectors(self, request: Request, weights: Weights, rows: Sequence[Row], times: Times) -> list[np.ndarray]:
        """Returns the vectors of all tokens of each row, float32 [n, D].

        Raises:
            Refusal, ClientLeft: there is no answer.
        """
        large.check(sum(len(row.tokens) for row in rows), "tokens", weights.width)
        everywhere = [dataclasses.replace(row, places=np.arange(len(row.tokens), dtype=np.int32)) for row in rows]
        return await self.read(request, weights, weights.readers[VECTORS], everywhere, times)

    async def read(
        self, request: Request, weights: Weights, readers: Readers, rows: Sequence[Row], times: Times
    ) -> list[np.ndarray]:
        """Returns the outputs at the places of each row; see `Reading.program`.

        Raises:
            Refusal, ClientLeft: there is no answer.
        """
        parts = [readers.split(weights.own(row)) for row in rows]
        items = [Item(readers, len(part.tokens), ToRead(part)) for split in parts for part in split]
        found = iter(await self.results(request, items, times))
        return [np.concatenate([next(found) for _ in split]) for split in parts]

    async def written_rows(self, make: Callable[[], list[Row]]) -> list[Row]:
        """Returns the sources that a tokenizer makes.

        Raises:
            Refusal: a text cannot be read, or is too long where the server does not cut.
        """
        try:
            rows = await self.tokenize(make)
        except RequestError as error:
            raise Refusal("invalid", str(error), param="prompt") from None
        if not self.settings.truncate and any(row.truncated for row in rows):
            raise Refusal("invalid", "an input is longer than the model reads; shorten it.", param="prompt")
        return rows

    def check_count(self, given: Sequence[object], param: str) -> None:
        """Refuses more inputs than a request may have.

        Raises:
            Refusal: there are more.
        """
        if len(given) > (most := self.settings.max_inputs):
            message = f"the request has {len(given)} inputs; this server takes at most {most} at a time."
            raise Refusal("invalid", message, param=param)

    def to_write(self, weights: Weights, row: Row, decoding: Decoding, **how: JSON) -> Item:
        """Returns the item that writes a sequence; for `how` see `ToWrite`.

        Raises:
            Refusal: the server cannot write it so.
        """
        lane = weights.lane(row, decoding)
        return Item(
            lane, len(row.tokens) + decoding.max_length * decoding.num_beams, ToWrite(weights.own(row), decoding, **how)
        )

    # ---- Waiting ----------------------------------------------------------------------------

    async def results(self, request: Request, items: Sequence[Item], times: Times) -> list:
        """Submits items as one job, and returns their results in order.

        Raises:
            Refusal, ClientLeft: there is no answer. The job is cancelled.
        """
        async with Waiting(self, request, items) as waiting:
            found: dict[int, object] = {}
            async for number, result, is_last in waiting.events():
                if is_last:
                    found[number] = result
            waiting.account(times)
            return [found[i] for i in range(len(items))]


class Waiting:
    """A submitted job, whose results arrive on the event loop. Leaving the context cancels what is unfinished."""

    def __init__(self, service: Service, request: Request, items: Sequence[Item]):
        self._service, self._request, self._items = service, request, items
        self._numbers = {item: number for number, item in enumerate(items)}
        terms = Terms.of(request)
        self.job = Job(items, self._tell, terms.seconds, terms.priority)
        self._arrivals: asyncio.Queue[tuple[Item | None, object]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._leaving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Waiting":
        if not self._service.engine.is_ready:
            raise Refusal("draining", "the server is not ready; ask another, or try again later.", retry_after=2.0)
        self._service.scheduler.submit(self.job)
        self._leaving = self._loop.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._service.scheduler.cancel(self.job)
        if self._leaving is not None:
            self._leaving.cancel()

    async def events(self) -> AsyncIterator[tuple[int, object, bool]]:
        """Yields the number of an item, its result or a part of it, and whether it is the last one of the item.

        Raises:
            Refusal: the server gave up.
            ClientLeft: the client did.
        """
        unfinished = len(self._items)
        while unfinished:
            item, result = await self._arrivals.get()
            if isinstance(result, Exception):
                raise result
            assert item is not None
            is_last = not isinstance(result, Progress)
            unfinished -= is_last
            yield self._numbers[item], result, is_last

    def finish(self, number: int) -> None:
        """Ends one item whose further tokens nobody needs; its result never comes."""
        self._service.scheduler.finish(self._items[number], None)

    def account(self, times: Times) -> None:
        """Adds what the job cost."""
        started = self.job.started or self.job.arrived
        times.queueing += started - self.job.arrived
        times.computing += time.monotonic() - started

    def _tell(self, item: Item | None, result: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._arrivals.put_nowait, (item, result))

    async def _watch(self) -> None:
        """Waits until the client closes the connection."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._arrivals.put_nowait((None, ClientLeft()))


def as_list(given: JSON) -> list[JSON]:
    """Returns the inputs of a request as a list: a text and a token array are one input."""
    is_one = isinstance(given, str) or (isinstance(given, list) and isinstance(given[0], int))
    return [given] if is_one else list(given)


def token_ids(weights: Weights, given: list[int], param: str) -> np.ndarray:
    """Returns a token array without the special tokens at its ends, which are put there again.

    Raises:
        Refusal: an id is beyond the vocabulary.
    """
    tokenizer = weights.predictor.loaded.tokenizer
    if max(given) >= tokenizer.vocab_size:
        raise Refusal("invalid", f"{max(given)} is no token id; there are {tokenizer.vocab_size}.", param=param)
    special = tokenizer.special
    begin = 1 if given[0] == special.cls else 0
    end = len(given) - 1 if len(given) > begin and given[-1] == special.sep else len(given)
    return np.array(given[begin:end], np.int32)


def _embedding_row(weights: Weights, prompt: prompts.Embed, given: Given, side: str, param: str) -> Row:
    tokenizer = weights.predictor.loaded.tokenizer
    cuts_as_asked = side in ("", "left" if tokenizer.cuts_left else "right")
    if isinstance(given, str):
        row = prompt.row(given)
        if cuts_as_asked or not row.truncated:
            return row
    ids = (
        prompt.encode([prompt.prompt + without_surrogates(given)])[0]
        if isinstance(given, str)
        else token_ids(weights, given, param)
    )
    room = prompt.longest - tokenizer.frame(1).size
    kept = ids[-room:] if side == "left" else ids[:room]
    row = prompts.assemble(tokenizer, [kept], prompt.longest)
    return dataclasses.replace(row, truncated=len(kept) < len(ids))
