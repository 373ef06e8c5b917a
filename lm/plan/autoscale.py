"""The rules of autoscalers: how many replicas they want, given what waits."""

import dataclasses
import math
from collections import deque
from typing import Protocol

from lm.cluster.pace import DOWN, RAY_DOWN, RAY_UP, UP, Pace

SYNC = 15.0  # seconds between two decisions of a HorizontalPodAutoscaler
TOLERANCE = 0.1  # it does nothing while the sum is within a tenth of what the replicas may have


class Rule(Protocol):
    """Decides from time to time.

    Attributes:
        every: seconds between two decisions.
    """

    every: float

    def wanted(self, now: float, replicas: int, load: float) -> int:
        """Returns the number of replicas that there should be.

        Args:
            now: seconds.
            replicas: those that run or start.
            load: the sum of the gauge over the replicas, divided by what one may have.
        """
        ...


@dataclasses.dataclass
class Fixed:
    """Keeps a number of replicas."""

    replicas: int
    every: float = SYNC

    def wanted(self, now: float, replicas: int, load: float) -> int:
        return self.replicas


class Horizontal:
    """Kubernetes' HorizontalPodAutoscaler, alone or made by KEDA.

    It wants `ceil(load)` replicas. Of the wishes of a window it takes the most cautious one. A policy limits the change
    within a period. pkg/controller/podautoscaler/horizontal.go of kubernetes/kubernetes.
    """

    every = SYNC

    def __init__(self, least: int, most: int, up: Pace = UP, down: Pace = DOWN):
        self._least, self._most, self._up, self._down = least, most, up, down
        self._wishes: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()  # when, and by how many replicas

    def wanted(self, now: float, replicas: int, load: float) -> int:
        wish = replicas if abs(load / max(1, replicas) - 1) <= TOLERANCE else math.ceil(load)
        wish = self._limited(now, replicas, self._cautious(now, replicas, wish))
        wish = min(max(wish, self._least), self._most)
        if wish != replicas:
            self._changes.append((now, wish - replicas))
        return wish

    def _cautious(self, now: float, replicas: int, wish: int) -> int:
        """Returns the present number, moved as little as the wishes of both windows allow."""
        self._wishes.append((now, wish))
        while self._wishes[0][0] < now - max(self._up.window, self._down.window):
            self._wishes.popleft()
        lowest = min(wish for when, wish in self._wishes if when >= now - self._up.window)
        highest = max(wish for when, wish in self._wishes if when >= now - self._down.window)
        return min(max(replicas, lowest), highest)

    def _limited(self, now: float, replicas: int, wish: int) -> int:
        while self._changes and self._changes[0][0] <= now - max(self._up.period, self._down.period):
            self._changes.popleft()
        if wish > replicas:
            before = replicas - self._changed(now, self._up.period)
            return min(wish, max(before + self._up.pods, math.ceil(before * (1 + self._up.percent / 100))))
        before = replicas - self._changed(now, self._down.period)
        return max(wish, min(before - self._down.pods, int(before * (1 - self._down.percent / 100))))

    def _changed(self, now: float, period: float) -> int:
        return sum(change for when, change in self._changes if when > now - period)


class Delayed:
    """Ray Serve's rule: a wish for more, or for fewer, replicas has to last before it is followed.

    ray/serve/autoscaling_policy.py, with scaling factors of 1.

    Args:
        least, most: replicas.
        up, down: seconds that a wish has to last.
        every: seconds between two decisions.
    """

    def __init__(self, least: int, most: int, up: float = RAY_UP, down: float = RAY_DOWN, every: float = 1.0):
        self.every = every
        self._least, self._most, self._up, self._down = least, most, up, down
        self._since: float | None = None
        self._direction = 0

    def wanted(self, now: float, replicas: int, load: float) -> int:
        wish = min(max(math.ceil(load), self._least), self._most)
        direction = (wish > replicas) - (wish < replicas)
        if direction != self._direction:
            self._since, self._direction = now, direction
        if not direction or self._since is None or now - self._since < (self._up if direction > 0 else self._down):
            return replicas
        self._direction = 0
        return wish
