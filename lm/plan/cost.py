"""What a plan costs: the hours and the money of a whole run, which plan is best, and the money of served tokens."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from lm.accelerators import Topology
from lm.errors import InputError
from lm.plan.serving import Serving
from lm.plan.step import Plan


@dataclasses.dataclass(frozen=True)
class Run:
    """A whole run by one plan.

    Attributes:
        plan: the plan of a step.
        hours: all steps at the predicted speed; None where the plan predicts none.
        cost: the price of the chip-hours; None without a price.
    """

    plan: Plan
    hours: float | None
    cost: float | None

    def to_dict(self) -> dict[str, object]:
        return {**dataclasses.asdict(self.plan), "run_hours": self.hours, "run_cost": self.cost}


def whole_run(plan: Plan, steps: int, prices: dict[str, float]) -> Run:
    """Returns the hours and the cost of `steps` steps of a plan.

    Args:
        plan: the plan of a step.
        steps: of the run.
        prices: the price of a chip-hour by the kind of chip.
    """
    topology = Topology.parse(plan.topology)
    if not plan.predicted_step_seconds:
        return Run(plan, None, None)
    hours = plan.predicted_step_seconds * steps / 3600
    hour = per_hour(topology, prices)
    return Run(plan, hours, None if hour is None else hours * hour)


def per_hour(topology: Topology, prices: Mapping[str, float]) -> float | None:
    """Returns the price of an hour of a topology, by the price of a chip-hour of its kind; None without that."""
    price = prices.get(topology.kind)
    return None if price is None else price * topology.chips


def million_tokens(plan: Serving, prices: Mapping[str, float]) -> float | None:
    """Returns what a million tokens cost, written or for an encoder read, on a replica that is always full."""
    hour = per_hour(Topology.parse(plan.topology), prices)
    speed = plan.predicted_tokens_per_second
    return None if hour is None or not speed else hour / 3600 / speed * 1e6


def ranked(runs: Sequence[Run], deadline: float | None = None) -> list[Run]:
    """Returns the runs, best first: those that fit and meet the deadline, by cost, or without prices by chip-hours.

    Runs that miss the deadline follow, by time.

    Args:
        runs: to rank.
        deadline: hours.
    """

    def key(run: Run) -> tuple[bool, bool, float, float, int]:
        hours = float("inf") if run.hours is None else run.hours
        late = deadline is not None and hours > deadline
        spent = hours * Topology.parse(run.plan.topology).chips if run.cost is None else run.cost
        return not run.plan.fits, late, (hours if late else spent), hours, run.plan.estimated_cycles

    return sorted(runs, key=key)


def read_prices(path: str | None, kinds: Iterable[str]) -> dict[str, float]:
    """Reads the price of a chip-hour of each kind from a JSON file such as `{"v5e": 1.2}`; no path: no prices.

    Args:
        path: of the file.
        kinds: that are compared; money and chip-hours could not be.

    Raises:
        InputError: there is no such file, it lacks a kind, or it holds something else.
    """
    if not path:
        return {}
    try:
        with open(path) as file:
            prices = {kind: float(price) for kind, price in json.load(file).items()}
    except OSError as error:
        raise InputError(f"--prices is {path!r}: {error.strerror}; give a JSON file.") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f'--prices is {path!r}, which is no JSON object of prices; give one such as {{"v5e": 1.2}}.'
        ) from error
    if lacking := [kind for kind in dict.fromkeys(kinds) if kind not in prices]:
        raise InputError(
            f"--prices is {path!r}, which has no price of {', '.join(lacking)}; give that of an hour, or no --prices."
        )
    return prices
