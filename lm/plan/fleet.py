"""Simulates a fleet of replicas: requests arrive, replicas compute them, an autoscaler adds and takes replicas.

A replica that reads (an encoder) takes all waiting requests up to a budget of tokens as one batch. A replica that
writes has slots, and a request keeps one until its last token. The balancer draws two replicas and takes the one with
fewer unanswered requests, as Envoy and Ray Serve do. Times are seconds, from 0 on.
"""

import dataclasses
import heapq
from collections import deque
from collections.abc import Sequence

import numpy as np

from lm.cluster.pace import AVERAGED, COOL_DOWN, FILLED, POLLING, Recent
from lm.plan.autoscale import Rule

_SCRAPE = 10.0  # seconds between two looks of Prometheus at a gauge
_GRACE = 15.0  # seconds between the notice of a preemption and the end of the machine
_END, _STARTED, _LOOK, _DECIDE, _POLL, _PREEMPT, _GONE = range(7)


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What one replica can do, measured or planned.

    Attributes:
        tokens_per_second: that it reads in full batches; for a model that writes, that it writes with all slots in use.
        batch_tokens: of a full batch.
        seconds: the shortest time of a batch, or until a sequence's first token.
        slots: sequences written at a time; 0 for a model that reads.
        waiting_tokens, deadline: limits of the queue. A request is refused that would wait for more than half
            of its time.
        startup: from the wish for a replica until it is ready: machine, image, weights, compiling.
    """

    tokens_per_second: float
    batch_tokens: int = 1024
    seconds: float = 0.0
    slots: int = 0
    waiting_tokens: int = 1 << 20
    deadline: float = 60.0
    startup: float = 120.0

    def batch_seconds(self, tokens: int) -> float:
        """Returns the time of a batch. It grows with its tokens, up to that of a full batch at full speed."""
        full = self.batch_tokens / self.tokens_per_second
        return self.seconds + max(0.0, full - self.seconds) * tokens / self.batch_tokens

    def writing_seconds(self, tokens: int) -> float:
        """Returns how long a sequence keeps its slot."""
        return self.seconds + tokens * self.slots / self.tokens_per_second


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Replicas and what changes their number.

    Attributes:
        target: waiting tokens, or slots in use, that one replica may have; the autoscaler's target.
        least: replicas at the start; 0: KEDA starts the first when a request comes.
        preemptions: of a machine in an hour.
        every: seconds between two looks at a replica's gauge.
        averaged: seconds over which a replica's gauge is averaged.
        counts: `queue`: waiting tokens; `slots`: slots in use; `outstanding`: all tokens that are not answered, in the
            mean of the last seconds.
        read: tokens read a second that one replica may have, a second target beside `target`; 0: none.
        rated: seconds over which the tokens read are counted, by all replicas that there were. An HPA counts only those
            that there are, so it sees less for a while after one has left.
    """

    target: float
    least: int = 1
    preemptions: float = 0.0
    every: float = _SCRAPE
    averaged: float = AVERAGED
    counts: str = "queue"
    read: float = 0.0
    rated: float = AVERAGED


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A simulated day.

    Attributes:
        latencies: seconds of each request, in the order of arrival; NaN for one that was refused.
        refused: requests that found no replica or no room.
        repeated: requests that were sent again because their machine was taken away.
        times, replicas: when the number of replicas that are paid for changed, and to what.
        changes: how often the autoscaler changed its mind from more to fewer, or back.
        replica_hours: of all replicas, those that start included.
    """

    latencies: np.ndarray
    refused: int
    repeated: int
    times: np.ndarray
    replicas: np.ndarray
    changes: int
    replica_hours: float

    def quantile(self, share: float) -> float:
        """Returns the time within which this share of the answered requests was answered."""
        answered = self.latencies[~np.isnan(self.latencies)]
        return float(np.quantile(answered, share)) if len(answered) else float("nan")


class _Replica:
    __slots__ = (
        "alive",
        "born",
        "busy",
        "draining",
        "looks",
        "outstanding",
        "ready",
        "running",
        "unanswered",
        "waiting",
        "waiting_tokens",
    )

    def __init__(self, born: float):
        self.born, self.alive, self.ready, self.draining = born, True, False, False
        self.waiting: deque[int] = deque()
        self.waiting_tokens = self.unanswered = self.busy = 0
        self.running: set[int] = set()
        self.outstanding = Recent(born)  # tokens
        self.looks: deque[tuple[float, float]] = deque()  # when, and what the gauge said


class Simulation:
    """One run of the simulation; `run` gives its outcome."""

    def __init__(
        self,
        arrivals: Sequence[float] | np.ndarray,
        tokens: Sequence[int] | np.ndarray,
        capacity: Capacity,
        fleet: Fleet,
        rule: Rule,
        seed: int = 0,
    ):
        """Sets the scene.

        Args:
            arrivals: when each request comes, ascending.
            tokens: what each request costs: tokens to read, or to write.
            seed: of the balancer's choices and of preemptions.
        """
        self._arrivals = np.asarray(arrivals, float).tolist()
        self._tokens = np.asarray(tokens, int).tolist()
        self._capacity, self._fleet, self._rule = capacity, fleet, rule
        self._random = np.random.default_rng(seed)
        self._drawn = self._random.random(2 * len(self._arrivals) + 2).tolist()
        self._latencies = [float("nan")] * len(self._arrivals)
        self._refused = self._repeated = self._changes = self._direction = 0
        self._events: list[tuple[float, int, int, object]] = []
        self._order = self._draws = 0
        self._living: list[_Replica] = []
        self._ready: list[_Replica] = []
        self._seen: list[_Replica] = []  # those with looks, also the ones that left lately
        self._seconds, self._last = 0.0, float("-inf")  # replica-seconds of the ended; the last arrival
        self._counts: list[tuple[float, int]] = []
        self._read = 0  # tokens, by all replicas
        self._reads: deque[tuple[float, int]] = deque([(0.0, 0)])  # when, and what had been read

    def run(self) -> Outcome:
        """Returns what happens until the last request is answered."""
        for _ in range(self._fleet.least):
            self._add(0.0, ready=True)
        self._at(self._fleet.every, _LOOK)
        self._at(self._rule.every, _DECIDE)
        if not self._fleet.least:
            self._at(POLLING, _POLL)
        next_request, count = 0, len(self._arrivals)
        now = 0.0
        while next_request < count or any(replica.unanswered for replica in self._living):
            if next_request < count and (not self._events or self._arrivals[next_request] <= self._events[0][0]):
                now = self._last = self._arrivals[next_request]
                self._send(now, next_request)
                next_request += 1
            else:
                now, _, kind, what = heapq.heappop(self._events)
                self._happen(now, kind, what)
        self._seconds += sum(now - replica.born for replica in self._living)
        self._note(now)
        times, replicas = zip(*self._counts, strict=True)
        return Outcome(
            np.array(self._latencies),
            self._refused,
            self._repeated,
            np.array(times),
            np.array(replicas),
            self._changes,
            self._seconds / 3600,
        )

    def _at(self, time: float, kind: int, what: object = None) -> None:
        self._order += 1
        heapq.heappush(self._events, (time, self._order, kind, what))

    def _happen(self, now: float, kind: int, what: object) -> None:
        if kind == _END:
            assert isinstance(what, tuple)
            self._end(now, *what)
        elif kind == _LOOK:
            self._look(now)
            self._at(now + self._fleet.every, _LOOK)
        elif kind == _DECIDE:
            self._decide(now)
            self._at(now + self._rule.every, _DECIDE)
        elif kind == _POLL:
            self._poll(now)
            self._at(now + POLLING, _POLL)
        else:
            assert isinstance(what, _Replica)
            if kind == _STARTED and what.alive and not what.draining:
                what.ready = True
                self._ready.append(what)
            elif kind == _PREEMPT and what.alive:
                self._at(now + _GRACE, _GONE, what)
                if not what.draining:
                    self._drain(now, what)
                    self._add(now)  # the Deployment replaces it at once
            elif kind == _GONE and what.alive:
                self._lose(now, what)

    # ---- Requests -------------------------------------------------------------------------------

    def _send(self, now: float, request: int) -> None:
        ready = self._ready
        if not ready:
            self._refused += 1
            return
        first = ready[self._draw(len(ready))]
        second = ready[self._draw(len(ready))]
        replica = second if second.unanswered < first.unanswered else first
        capacity, tokens = self._capacity, self._tokens[request]
        waiting = replica.waiting_tokens
        in_time = FILLED * capacity.deadline * capacity.tokens_per_second
        if waiting + tokens > capacity.waiting_tokens or waiting > in_time:
            self._refused += 1
            return
        replica.unanswered += 1
        replica.waiting.append(request)
        replica.waiting_tokens += tokens
        replica.outstanding.add(tokens, now)
        self._start(now, replica)

    def _draw(self, below: int) -> int:
        self._draws = (self._draws + 1) % len(self._drawn)
        return int(self._drawn[self._draws] * below)

    def _start(self, now: float, replica: _Replica) -> None:
        """Begins what the replica has room for."""
        capacity, tokens, waiting = self._capacity, self._tokens, replica.waiting
        if capacity.slots:
            while waiting and replica.busy < capacity.slots:
                request = waiting.popleft()
                replica.waiting_tokens -= tokens[request]
                replica.busy += 1
                replica.running.add(request)
                self._at(now + capacity.writing_seconds(tokens[request]), _END, (replica, (request,)))
        elif waiting and not replica.busy:
            batch, total = [waiting.popleft()], 0
            total = tokens[batch[0]]
            while waiting and total + tokens[waiting[0]] <= capacity.batch_tokens:
                total += tokens[waiting[0]]
                batch.append(waiting.popleft())
            replica.waiting_tokens -= total
            replica.busy = 1
            replica.running.update(batch)
            self._at(now + capacity.batch_seconds(total), _END, (replica, tuple(batch)))

    def _end(self, now: float, replica: _Replica, batch: tuple[int, ...]) -> None:
        if not replica.alive:  # its machine was taken away
            return
        for request in batch:
            self._latencies[request] = now - self._arrivals[request]
        self._read += sum(self._tokens[request] for request in batch)
        replica.running.difference_update(batch)
        replica.outstanding.add(-sum(self._tokens[request] for request in batch), now)
        replica.unanswered -= len(batch)
        replica.busy -= 1
        self._start(now, replica)
        if replica.draining and not replica.unanswered:
            self._remove(now, replica)

    # ---- Replicas -------------------------------------------------------------------------------

    def _add(self, now: float, ready: bool = False) -> None:
        replica = _Replica(now)
        self._living.append(replica)
        self._note(now)
        if ready:
            replica.ready = True
            self._ready.append(replica)
        else:
            self._at(now + self._capacity.startup, _STARTED, replica)
        if self._fleet.preemptions:
            life = self._random.exponential(3600 / self._fleet.preemptions)
            self._at(now + float(life), _PREEMPT, replica)

    def _drain(self, now: float, replica: _Replica) -> None:
        """Gives it no further requests; it leaves when the present ones are answered."""
        replica.draining = True
        if replica in self._ready:
            self._ready.remove(replica)
        if not replica.unanswered:
            self._remove(now, replica)

    def _remove(self, now: float, replica: _Replica) -> None:
        self._living.remove(replica)
        replica.alive = False
        self._seconds += now - replica.born
        self._note(now)

    def _lose(self, now: float, replica: _Replica) -> None:
        """Ends a machine whose requests are not answered; the gateway sends them to others."""
        self._remove(now, replica)
        for request in sorted(replica.running) + list(replica.waiting):
            self._repeated += 1
            self._send(now, request)

    def _note(self, now: float) -> None:
        if self._counts and self._counts[-1][0] == now:
            self._counts.pop()
        self._counts.append((now, len(self._living)))

    # ---- The autoscaler -------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Reads the gauge of every replica, and forgets what is too old for the mean."""
        for replica in self._living:
            if replica.ready:
                if not replica.looks:
                    self._seen.append(replica)
                replica.looks.append((now, self._gauge(now, replica)))
        for replica in self._seen:
            while replica.looks and replica.looks[0][0] < now - self._fleet.averaged:
                replica.looks.popleft()
        self._seen = [replica for replica in self._seen if replica.looks]
        self._reads.append((now, self._read))
        while self._reads[0][0] < now - self._fleet.rated:
            self._reads.popleft()

    def _gauge(self, now: float, replica: _Replica) -> float:
        if self._fleet.counts == "slots":
            return float(replica.busy)
        if self._fleet.counts == "queue":
            return float(replica.waiting_tokens)
        return replica.outstanding.mean(now)

    def _load(self) -> float:
        """Returns the sum of the replicas' means, by what one may have. Of two targets the larger wish counts.

        Ray leaves out those that leave, Prometheus does not.
        """
        is_ray = self._fleet.counts == "outstanding"
        counted = [replica.looks for replica in self._seen if not (is_ray and replica.draining)]
        load = sum(sum(value for _, value in looks) / len(looks) for looks in counted) / self._fleet.target
        (first, before), (last, after) = self._reads[0], self._reads[-1]
        if self._fleet.read and last > first:
            load = max(load, (after - before) / (last - first) / self._fleet.read)
        return load

    def _present(self) -> list[_Replica]:
        return [replica for replica in self._living if not replica.draining]

    def _decide(self, now: float) -> None:
        present = self._present()
        if not present:  # only KEDA's polling starts the first
            return
        wanted = self._rule.wanted(now, len(present), self._load())
        direction = (wanted > len(present)) - (wanted < len(present))
        self._changes += direction * self._direction < 0
        self._direction = direction or self._direction
        for _ in range(wanted - len(present)):
            self._add(now)
        # Kubernetes takes those first that are not ready, then the youngest.
        youngest = sorted(present, key=lambda replica: (replica.ready, -replica.born))
        for replica in youngest[: max(0, len(present) - wanted)]:
            self._drain(now, replica)

    def _poll(self, now: float) -> None:
        """KEDA starts the first replica, and stops the last one after a quiet time."""
        present, quiet = self._present(), now - self._last
        if not present and quiet <= POLLING:
            self._add(now)
        elif len(present) == 1 and quiet > COOL_DOWN and not present[0].unanswered:
            self._drain(now, present[0])
