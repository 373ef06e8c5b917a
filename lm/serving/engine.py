"""The one thread that runs programs: it takes work from the scheduler, and tells requests their results.

A turn puts waiting sequences into free slots, takes a few steps for all running ones, and reads one batch of an
encoder. So readers and writers share the device, and neither waits for the other to finish.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import jax

from lm import sharding
from lm.errors import InputError
from lm.serving.lanes import Lane, Progress, Readers
from lm.serving.metrics import Metrics
from lm.serving.refusals import Refusal
from lm.serving.scheduler import Group, Item, Scheduler
from lm.serving.served import Served

_IDLE = 1.0  # seconds of a wait; the heartbeat is younger than this while nothing is to do
# Steps between two looks at the queue. A call costs a CPU a part of a step, and an accelerator several steps.
_STEPS = {"cpu": 1}
_STEPS_ON_ACCELERATORS = 4
_COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event of a compilation, or of its cache's answer

log = logging.getLogger("lm.serving")


class Engine:
    """Owns the device.

    Attributes:
        models: by name.
        scheduler: where the work comes from.
        is_ready: whether every program is compiled, and the thread runs.
        compilations: programs that were compiled since the engine was ready.
        fault: why the thread ended; None if nothing went wrong.
    """

    def __init__(self, models: Sequence[Served], scheduler: Scheduler, metrics: Metrics):
        self.models = {model.name: model for model in models}
        self.scheduler, self.metrics = scheduler, metrics
        self.compilations = 0
        self.fault: Exception | None = None
        self.is_ready = self._closed = False
        self._beat: float | None = None
        self._loading, self._loader = threading.Lock(), 0  # held by the thread that reads a checkpoint, and its number
        self._steps = _STEPS.get(sharding.platform(), _STEPS_ON_ACCELERATORS)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ---- For the server's threads -------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread, which first compiles every program."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after its present turn."""
        self._closed = True
        self.scheduler.wake()
        if self._thread.ident is not None:
            self._thread.join()

    def seconds_since_beat(self) -> float:
        """Returns how long ago the loop began its last turn; 0 before it has begun the first."""
        return 0.0 if self._beat is None else time.monotonic() - self._beat

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def reload(self, name: str, *, path: str = "", again: bool = True) -> tuple[int, bool]:
        """Reads the newest checkpoint of a model and uses it for the requests that are admitted from then on.

        Running requests finish with the weights that they began with.

        Args:
            name: of the model.
            path: where it is read from now on; empty: where it was.
            again: whether a checkpoint that was refused before is read once more.

        Returns:
            The step in use, and whether it is a new one.

        Raises:
            InputError: the checkpoint cannot be used; the present one stays.
        """
        with self._loading:
            self._loader = threading.get_ident()
            try:
                return self._load(self.models[name], path, again)
            finally:
                self._loader = 0

    def _load(self, model: Served, path: str, again: bool) -> tuple[int, bool]:
        """Does what `reload` says."""
        before, model.path = model.path, path or model.path
        try:
            new = model.load(again)
        except Exception as error:
            model.path = before
            if isinstance(error, InputError):
                self.metrics.reloads.labels(model.name, "refused").inc()
                log.warning("%s keeps step %d: %s", model.name, model.weights.step, error)
            raise
        if new is not None:
            model.use(new)
            self.metrics.reloads.labels(model.name, "loaded").inc()
            log.info("%s now has step %d", model.name, model.weights.step)
        return model.weights.step, new is not None

    # ---- The thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        for name in self.models:  # a counter that begins at 1 has no increase, so no alert
            for result in ("refused", "loaded"):
                self.metrics.reloads.labels(name, result)
        jax.monitoring.register_event_duration_secs_listener(self._count)
        try:
            for model in self.models.values():
                for _ in model.warm_up():
                    if self._closed:
                        return
            self.is_ready = True
            while not self._closed:
                self._beat = time.monotonic()
                self._turn()
        except Exception as error:  # whatever it is, the server has to say it and to stop
            log.exception("the engine stopped")
            self.fault, self.is_ready = error, False
            self.scheduler.stop(Refusal("failed", "the engine stopped; the server's log has the reason."))
        finally:
            self.is_ready = False
            jax.monitoring.unregister_event_duration_listener(self._count)

    def _count(self, event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        if event == _COMPILED and self.is_ready and threading.get_ident() in (self._thread.ident, self._loader):
            self.compilations += 1
            self.metrics.compilations.inc()
            log.warning("a program was compiled after the start", stack_info=True)

    def _turn(self) -> None:
        scheduler = self.scheduler
        scheduler.expire()
        self._insert(scheduler.fill_slots())
        running = scheduler.running()
        for lane, items in running.items():
            assert isinstance(lane, Lane)
            self._guarded(list(items.values()), lane, lambda lane=lane, items=items: self._advance(lane, items))
        if batch := scheduler.next_batch():
            readers = batch[0].group
            assert isinstance(readers, Readers)
            self._guarded(batch, readers, lambda: self._read(readers, batch))
        elif not running:
            scheduler.wait(_IDLE)

    def _insert(self, entered: Sequence[tuple[Item, int]]) -> None:
        by_lane: dict[Group, dict[int, Item]] = {}
        for item, slot in entered:
            by_lane.setdefault(item.group, {})[slot] = item
        for lane, items in by_lane.items():
            assert isinstance(lane, Lane)
            self.metrics.read_tokens.inc(sum(len(item.work.row.tokens) for item in items.values()))
            self._guarded(list(items.values()), lane, lambda lane=lane, items=items: lane.insert(items))
        self._started([item for item, _ in entered])

    def _advance(self, lane: Lane, running: Mapping[int, Item]) -> None:
        for item, result in lane.advance(running, self._steps):
            if item.ended:  # its client has left meanwhile
                continue
            if isinstance(result, Progress):
                self._time_tokens(item, len(result.tokens))
                if item.work.streams:
                    item.job.tell(item, result)
            else:
                if lane.shape.beams > 1:
                    self.metrics.written_tokens.inc(result.length)
                self.scheduler.finish(item, result)

    def _time_tokens(self, item: Item, count: int) -> None:
        now = time.monotonic()
        self.metrics.written_tokens.inc(count)
        if item.work.told == count:
            self.metrics.first_token_seconds.observe(now - item.job.arrived)
        elif count:
            self.metrics.token_seconds.observe((now - item.work.told_at) / count)
        item.work.told_at = now

    def _read(self, readers: Readers, batch: Sequence[Item]) -> None:
        self._started(batch)
        tokens = sum(item.tokens for item in batch)
        self.metrics.batch_tokens.observe(tokens)
        self.metrics.read_tokens.inc(tokens)
        for found in readers.read(batch):
            for item, outputs in found.outputs:
                self.scheduler.finish(item, outputs)
            self.metrics.padding_tokens.inc(found.padding)

    def _started(self, items: Sequence[Item]) -> None:
        for job in {item.job for item in items}:
            if job.started is not None and not job.is_counted:
                job.is_counted = True
                self.metrics.queue_seconds.observe(job.started - job.arrived)

    def _guarded(self, items: Sequence[Item], group: Group, compute: Callable[[], None]) -> None:
        """Computes; after an exception, fails the requests of these items alone, or those whose state is lost."""
        try:
            compute()
        except Exception:  # a request must not end the loop, whatever it causes
            log.exception("a computation failed")
            self.metrics.faults.inc()
            if isinstance(group, Lane) and group.lost:
                items = [*items, *self.scheduler.running().get(group, {}).values()]
            self.scheduler.fail(items, Refusal("failed", "the computation failed; the server's log says why."))
