"""What replicas and their autoscaler keep to, and what the fleet's plan simulates."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Pace:
    """How fast the number of replicas may change in one direction.

    Attributes:
        window: seconds; the most cautious wish of the last ones counts.
        percent, pods: of replicas in a period; the larger change is allowed.
        period: seconds.
    """

    window: int
    percent: int
    pods: int
    period: int


UP = Pace(window=0, percent=100, pods=4, period=15)
DOWN = Pace(window=300, percent=10, pods=1, period=60)
RECENT = 2.0  # seconds after which a moment counts e times less in a mean
POLLING = 15  # seconds between two questions of KEDA
COOL_DOWN = 300  # seconds without work after which KEDA stops the last replica
FILLED = 0.5  # share of a request's time that a server's queue may take: its pace varies, and answers take time as well
QUEUE_TOKENS = 4096  # waiting tokens a replica that call for one more
READ_SHARE = 0.75  # share of the tokens a second that an encoder can read, above which a replica calls for one more
BUSY_SLOTS, SLOTS = 12, 16  # slots in use a replica that call for one more, of those that a server has by default
AVERAGED = 60  # seconds over which KEDA's query averages a gauge, or takes the rate of a counter
ADAPTED = 300  # seconds over which prometheus-adapter takes the rate of a counter, by its own rules
# Ray: seconds between two reports of a replica (with its own 10 a tripled load is seen after 12 to 22 s), and over
# which they are averaged; outstanding tokens a replica; seconds that the wish for more, or for fewer, has to last.
RAY_REPORTS, RAY_AVERAGED = 2.0, 30.0
RAY_TARGET, RAY_UP, RAY_DOWN = 4096, 10.0, 300.0


class Recent:
    """An amount that changes, and its mean over the last seconds.

    Where a server has little of a core, who asks is served when nothing is computed. What it would see at that moment
    is no measure of the load.
    """

    def __init__(self, now: float):
        self._amount, self._mean, self._known = 0, 0.0, now

    def add(self, amount: int, now: float) -> None:
        self.mean(now)
        self._amount += amount

    def mean(self, now: float) -> float:
        kept = math.exp((self._known - now) / RECENT)
        self._mean = kept * self._mean + (1 - kept) * self._amount
        self._known = now
        return self._mean
