"""What a simulated fleet did, as a table, as JSON and as a picture."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lm.plan.fleet import Outcome
from lm.plan.fleet_flags import Setting
from lm.plan.tables import aligned
from lm.plan.traffic import Traffic

_HEADINGS = (
    *("replicas", "target", "read/s", "mean", "most", "p50", "p99"),
    *("refused", "sent again", "hours", "cost", "turns"),
)
_BINS = 288  # of a picture: five minutes of a day


@dataclasses.dataclass(frozen=True)
class Day:
    """A setting and what it led to. `price` is that of a replica's hour; None if it is not known."""

    setting: Setting
    outcome: Outcome
    price: float | None

    @property
    def cost(self) -> float | None:
        return None if self.price is None else self.price * self.outcome.replica_hours

    @property
    def mean_replicas(self) -> float:
        """Replicas that are paid for, on average over the time."""
        return _mean(self.outcome.times, self.outcome.replicas)

    @property
    def refused_share(self) -> float:
        return self.outcome.refused / max(1, len(self.outcome.latencies))

    def to_dict(self) -> dict[str, object]:
        outcome = self.outcome
        return {
            **dataclasses.asdict(self.setting),
            "requests": len(outcome.latencies),
            "refused": outcome.refused,
            "sent_again": outcome.repeated,
            "p50_seconds": _number(outcome.quantile(0.5)),
            "p99_seconds": _number(outcome.quantile(0.99)),
            "mean_replicas": self.mean_replicas,
            "most_replicas": int(outcome.replicas.max()),
            "replica_hours": outcome.replica_hours,
            "turns": outcome.changes,
            "cost": self.cost,
            "replicas_over_time": [[float(t), int(n)] for t, n in zip(outcome.times, outcome.replicas, strict=True)],
        }


def ranked(days: Sequence[Day], target_p99: float, refused: float) -> list[Day]:
    """Returns the days, best first: those that keep the targets, by cost; then the others, by p99.

    Args:
        target_p99: seconds.
        refused: share of the requests that may be refused.
    """

    def key(day: Day) -> tuple[bool, float, float]:
        p99 = day.outcome.quantile(0.99)
        misses = not keeps(day, target_p99, refused)
        return misses, (p99 if misses else day.outcome.replica_hours), p99

    return sorted(days, key=key)


def keeps(day: Day, target_p99: float, refused: float) -> bool:
    """Returns whether a day keeps the targets of `ranked`."""
    return day.outcome.quantile(0.99) <= target_p99 and day.refused_share <= refused


def table(days: Sequence[Day]) -> str:
    """Returns a table with a line for each setting. Column `read/s` is the launcher's --read_tokens."""
    return "\n".join(aligned([_HEADINGS, *map(_cells, days)]))


def _cells(day: Day) -> tuple[str, ...]:
    setting, outcome = day.setting, day.outcome
    return (
        f"{setting.least}-{setting.most}",
        f"{setting.target:g}",
        f"{setting.read or '-'}",
        f"{day.mean_replicas:.1f}",
        f"{outcome.replicas.max()}",
        f"{outcome.quantile(0.5):.3g} s",
        f"{outcome.quantile(0.99):.3g} s",
        f"{outcome.refused} ({day.refused_share:.2%})",
        f"{outcome.repeated}",
        f"{outcome.replica_hours:.1f}",
        "?" if day.cost is None else f"{day.cost:,.2f}",
        f"{outcome.changes}",
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean(times: np.ndarray, values: np.ndarray) -> float:
    """Returns the mean of a step function, whose last step has no length."""
    lengths = np.diff(times)
    return float(np.average(values[:-1], weights=lengths)) if lengths.sum() else float(values[-1])


def draw(day: Day, traffic: Traffic, path: str) -> None:
    """Draws requests a second, replicas and p99 over the time into a file: .png, .pdf or .svg."""
    from matplotlib.figure import Figure  # half a second

    end = max(float(traffic.arrivals[-1]), 1.0)
    edges = np.linspace(0.0, end, _BINS + 1)
    hours = edges[:-1] / 3600
    places = np.digitize(traffic.arrivals, edges) - 1
    p99 = []
    for each in range(_BINS):
        latencies = day.outcome.latencies[places == each]
        latencies = latencies[~np.isnan(latencies)]
        p99.append(np.quantile(latencies, 0.99) if len(latencies) else np.nan)
    figure = Figure(figsize=(9, 7), layout="constrained")
    rate, replicas, latency = figure.subplots(3, 1, sharex=True)
    rate.plot(hours, np.bincount(places.clip(0, _BINS - 1), minlength=_BINS) / (edges[1] - edges[0]))
    rate.set_ylabel("requests a second")
    kept = day.outcome.times <= end
    counts = day.outcome.replicas[kept]
    replicas.step(np.append(day.outcome.times[kept], end) / 3600, np.append(counts, counts[-1]), where="post")
    replicas.set_ylabel("replicas")
    latency.plot(hours, p99)
    latency.set_ylabel("p99 (s)")
    latency.set_xlabel("hours")
    for axes in (rate, replicas, latency):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
