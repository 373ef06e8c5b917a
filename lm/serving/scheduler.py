"""Decides which requests are admitted and what is computed next. Nothing here needs jax.

A request is a `Job` of one or more `Item`s. An item is one text to read, or one text to write, and belongs to a `Group`
of items that may be computed together. A group without slots is an encoder's: `next_batch` takes its oldest items, up
to a budget of tokens. A group with slots is a decoder's: `fill_slots` puts its oldest items into free slots, and an
item keeps its slot until it is finished, cancelled or late.

Items wait in the order of their `rank`. It is fixed at admission and grows with time, so no item waits forever.
"""

import bisect
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lm.cluster.pace import FILLED, Recent
from lm.serving.refusals import Refusal

PRIORITIES = {"high": 0, "normal": 1, "low": 2}
_PRIORITY_SECONDS = 5.0  # a request waits as if it had come so much later for each level of its priority
# Seconds by which an item moves back for each token of its own request before it. So a short request passes a long one
# that came a moment before.
_SECONDS_A_TOKEN = 1e-4
_MEASURED = 0.5  # seconds over which the pace of the queue is measured
_FORGOTTEN = 10.0  # seconds after which a pace counts no more, once the queue has been empty
_LONGEST_RETRY = 60.0  # seconds


class Group:
    """Items that may be computed together. Two groups are equal only if they are the same object.

    Attributes:
        slots: how many items a decoder writes at a time; 0 for an encoder.
    """

    slots: int = 0


@dataclasses.dataclass(eq=False)
class Item:
    """One text of a request.

    Attributes:
        group: the items that it may be computed with.
        tokens: what it costs: the tokens to read, and those that it may write at most.
        work: what the engine needs to compute it.
        job: its request.
        rank: its place in the queue; lower is earlier.
        waits: whether it is in the queue.
        slot: while it is written; None before and after.
        ended: whether it is finished, failed or cancelled.
    """

    group: Group
    tokens: int
    work: Any = None
    job: "Job" = dataclasses.field(init=False, repr=False)
    rank: float = 0.0
    waits: bool = False
    slot: int | None = None
    ended: bool = False


@dataclasses.dataclass(eq=False)
class Job:
    """One request.

    Attributes:
        items: its texts.
        tell: is called by the engine's thread with an item and its result, or a part of it, or with the `Refusal` of
            the whole request. It must return at once and never raise.
        seconds: the answer is due so long after admission; None is the scheduler's own limit.
        priority: one of `PRIORITIES`.
        arrived, started, due: times of admission, of the first item's start (None before) and of the deadline.
        unfinished: how many items are neither finished nor failed.
        is_counted: whether the time that it waited is in the metrics.
    """

    items: Sequence[Item]
    tell: Callable[[Item | None, object], None]
    seconds: float | None = None
    priority: str = "normal"
    arrived: float = 0.0
    started: float | None = None
    due: float = 0.0
    unfinished: int = 0
    is_counted: bool = False

    def __post_init__(self) -> None:
        for item in self.items:
            item.job = self
        self.unfinished = len(self.items)

    @property
    def tokens(self) -> int:
        return sum(item.tokens for item in self.items)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the scheduler accepts.

    Attributes:
        waiting_items: texts that wait, over all requests.
        waiting_tokens: tokens that wait, over all requests.
        batch_tokens: tokens of an encoder's batch, and of the items that enter slots between two steps.
        seconds: until a request's deadline, if it names none; the most that it may name.
    """

    waiting_items: int = 4096
    waiting_tokens: int = 1 << 20
    batch_tokens: int = 1024
    seconds: float = 60.0


class _Queue:
    """The items of one group: those that wait, in the order of their rank, and those that hold a slot."""

    def __init__(self, slots: int):
        self.waiting: list[Item] = []
        self.running: dict[int, Item] = {}
        self.free = list(range(slots))

    def give_back(self, item: Item) -> None:
        if item.slot is not None:
            del self.running[item.slot]
            bisect.insort(self.free, item.slot)
            item.slot = None


class Scheduler:
    """The queue of a server. Any thread may submit and cancel; one thread, the engine's, takes work.

    Attributes:
        limits: see `Limits`.
        items, tokens: how many of them wait.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self.limits = limits
        self.items = self.tokens = 0
        self._clock = clock
        self._changed = threading.Condition()
        self._queues: dict[Group, _Queue] = {}
        self._jobs: set[Job] = set()
        self._stopped: Refusal | None = None
        self._outstanding = Recent(clock())  # tokens that wait or are computed
        self._pace: float | None = None  # tokens that leave the queue in a second, while it is not empty
        self._measured = clock()  # when the pace was
        self._since, self._left = clock(), 0  # since when `_left` tokens have left the queue

    # ---- For the server's threads -------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Admits a request as a whole, or refuses it.

        Raises:
            Refusal: "too large" if it could never be admitted, "overloaded" if it can later.
        """
        with self._changed:
            self._check_room(len(job.items), job.tokens, job.seconds)
            now = self._clock()
            job.arrived = now
            job.due = now + min(job.seconds or self.limits.seconds, self.limits.seconds)
            if not self.items:
                self._since, self._left = now, 0
                # Else a pace that is too low would keep the queue so short that it is never measured again.
                if now - self._measured > _FORGOTTEN:
                    self._pace = None
            rank = now + _PRIORITY_SECONDS * PRIORITIES[job.priority]
            for item in job.items:
                item.rank, item.waits = rank, True
                rank += _SECONDS_A_TOKEN * item.tokens
                queue = self._queues.setdefault(item.group, _Queue(item.group.slots))
                bisect.insort(queue.waiting, item, key=lambda each: each.rank)
            self.items += len(job.items)
            self.tokens += job.tokens
            self._jobs.add(job)
            self._outstanding.add(job.tokens, now)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Forgets a request: its items leave the queue and their slots. Nobody is told."""
        with self._changed:
            self._end(job)

    def check_open(self) -> None:
        """Refuses what even the smallest request would be refused for, before the work of making items.

        Raises:
            Refusal: "overloaded".
        """
        with self._changed:
            self._check_room(1, 1, None)

    def _check_room(self, items: int, tokens: int, seconds: float | None) -> None:
        if self._stopped:
            raise self._stopped
        limits = self.limits
        for name, wanted, most in (("inputs", items, limits.waiting_items), ("tokens", tokens, limits.waiting_tokens)):
            if wanted > most:
                raise Refusal("too large", f"the request has {wanted} {name}; this server takes at most {most}.")
        wait = self.expected_wait()
        if self.items + items > limits.waiting_items or self.tokens + tokens > limits.waiting_tokens:
            raise Refusal("overloaded", "the queue is full; try again later.", retry_after=self._retry_after(wait))
        seconds = min(seconds or limits.seconds, limits.seconds)
        if wait > FILLED * seconds:
            message = f"the queue is {wait:.1f} s long, but the answer is due in {seconds:g} s; try again later."
            raise Refusal("overloaded", message, retry_after=self._retry_after(wait))

    def expected_wait(self) -> float:
        """Returns how many seconds a new request would wait; 0 as long as nothing was measured."""
        return self.tokens / self._pace if self._pace else 0.0

    def outstanding_tokens(self) -> float:
        """Returns how many tokens waited or were computed, in the mean over the last seconds."""
        with self._changed:
            return self._outstanding.mean(self._clock())

    @staticmethod
    def _retry_after(wait: float) -> float:
        return min(max(0.5 * wait, 1.0), _LONGEST_RETRY)

    # ---- For the engine's thread --------------------------------------------------------------

    def next_batch(self) -> list[Item]:
        """Takes the oldest items of one encoder's group, up to the budget; at least one if any waits."""
        with self._changed:
            heads = [queue.waiting[0] for group, queue in self._queues.items() if not group.slots and queue.waiting]
            if not heads:
                return []
            waiting = self._queues[min(heads, key=lambda item: item.rank).group].waiting
            room, taken = self.limits.batch_tokens, []
            for item in waiting:
                if not taken or item.tokens <= room:
                    taken.append(item)
                    room -= item.tokens
                if room <= 0:
                    break
            self._take(taken)
            self._measure(was_full=bool(waiting))
            return taken

    def fill_slots(self) -> list[tuple[Item, int]]:
        """Puts the oldest items of each decoder's group into its free slots, and returns them with their slots.

        They have at most the budget of tokens together, so that running sequences do not stop for long; at least one
        enters if there is one and a slot for it.
        """
        with self._changed:
            entered: list[tuple[Item, int]] = []
            room = self.limits.batch_tokens
            while room > 0:
                heads = [queue.waiting[0] for queue in self._queues.values() if queue.waiting and queue.free]
                if not heads:
                    break
                item = min(heads, key=lambda item: item.rank)
                if entered and item.tokens > room:
                    break
                queue = self._queues[item.group]
                self._take([item])
                item.slot = slot = queue.free.pop(0)
                queue.running[slot] = item
                entered.append((item, slot))  # a client that leaves at once takes `item.slot` away
                room -= item.tokens
            if entered:
                self._measure(any(queue.waiting for group, queue in self._queues.items() if group.slots))
            return entered

    def running(self) -> dict[Group, dict[int, Item]]:
        """Returns the items in slots, by group and slot."""
        with self._changed:
            return {group: dict(queue.running) for group, queue in self._queues.items() if queue.running}

    def finish(self, item: Item, result: object) -> None:
        """Frees the slot of an item, and tells its request the result."""
        with self._changed:
            if item.ended:
                return
            item.ended = True
            self._outstanding.add(-item.tokens, self._clock())
            self._leave(item)
            item.job.unfinished -= 1
            if not item.job.unfinished:
                self._jobs.discard(item.job)
            self._tidy()
        item.job.tell(item, result)

    def fail(self, items: Sequence[Item], refusal: Refusal) -> None:
        """Ends the requests of some items, with all their other items, and tells them why."""
        for job in {item.job for item in items}:
            with self._changed:
                known = job in self._jobs
                self._end(job)
            if known:
                job.tell(None, refusal)

    def stop(self, refusal: Refusal) -> None:
        """Ends every request, and refuses all that come later."""
        with self._changed:
            self._stopped = refusal
            items = [item for job in self._jobs for item in job.items]
        self.fail(items, refusal)

    def expire(self) -> None:
        """Ends the requests whose deadline has passed."""
        with self._changed:
            now = self._clock()
            late = [job for job in self._jobs if job.due <= now]
        for job in late:
            seconds = job.due - job.arrived
            self.fail(job.items, Refusal("deadline", f"the answer was not ready within {seconds:g} s."))

    def wait(self, seconds: float) -> None:
        """Returns when an item waits or runs, or `wake` was called, or `seconds` have passed."""
        with self._changed:
            if not self.items and not any(queue.running for queue in self._queues.values()):
                self._changed.wait(seconds)

    def wake(self) -> None:
        """Ends a `wait`."""
        with self._changed:
            self._changed.notify_all()

    def slots_in_use(self) -> int:
        with self._changed:
            return sum(len(queue.running) for queue in self._queues.values())

    # ---- With the lock held -------------------------------------------------------------------

    def _take(self, items: Sequence[Item]) -> None:
        """Removes items from their queue."""
        now = self._clock()
        for item in items:
            self._remove(item)
            item.job.started = now if item.job.started is None else item.job.started
            self._left += item.tokens

    def _measure(self, was_full: bool) -> None:
        """Measures the pace of the queue.

        Args:
            was_full: whether what was taken has left others of its kind behind. Otherwise the tokens that have left
                the queue are those that were asked for, and say nothing about the pace.
        """
        now = self._clock()
        if (passed := now - self._since) < _MEASURED:
            return
        if was_full:
            measured = self._left / passed
            self._pace = measured if self._pace is None else 0.7 * self._pace + 0.3 * measured
            self._measured = now
        self._since, self._left = now, 0

    def _remove(self, item: Item) -> None:
        waiting = self._queues[item.group].waiting
        index = bisect.bisect_left(waiting, item.rank, key=lambda each: each.rank)
        while waiting[index] is not item:
            index += 1
        del waiting[index]
        item.waits = False
        self.items -= 1
        self.tokens -= item.tokens

    def _leave(self, item: Item) -> None:
        """Takes an item out of its slot."""
        if item.group in self._queues:
            self._queues[item.group].give_back(item)

    def _end(self, job: Job) -> None:
        """Takes all items of a request out of the queue and out of their slots."""
        if job not in self._jobs:
            return
        self._jobs.discard(job)
        for item in job.items:
            if item.ended:
                continue
            item.ended = True
            self._outstanding.add(-item.tokens, self._clock())
            if item.slot is not None:
                self._leave(item)
            elif item.waits:
                self._remove(item)
        self._tidy()
        self._changed.notify_all()

    def _tidy(self) -> None:
        """Forgets the queues of groups that nothing waits or runs for: weights may have been replaced."""
        for group in [group for group, queue in self._queues.items() if not queue.waiting and not queue.running]:
            del self._queues[group]
