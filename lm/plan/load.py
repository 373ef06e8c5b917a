"""What it takes to carry a load of requests: replicas, chips and slots in use, from the plan of one batch."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from lm.accelerators import Topology
from lm.errors import InputError
from lm.plan.cost import per_hour
from lm.plan.serving import Serving
from lm.plan.tables import aligned

# The share of its capacity that a replica is planned to be used. Requests arrive at random: nearer to 1 they wait long.
USED = 0.8

_HEADINGS = ("topology", "slots", "requests/s of one", "replicas", "chips", "used", "slots in use of one", "time")


@dataclasses.dataclass(frozen=True)
class Carried:
    """A load that is carried by replicas of one plan.

    Attributes:
        plan: of a full batch, on one replica.
        capacity: requests a second that one replica answers with all slots in use.
        replicas: so many that each is used for at most `USED` of its capacity.
        chips: of all replicas.
        used: the share of its capacity that each is used for.
        slots_in_use: of each replica on average, by Little's law: rate of arrivals x seconds of a request.
    """

    plan: Serving
    capacity: float
    replicas: int
    chips: int
    used: float
    slots_in_use: float


def carry(plan: Serving, load: float) -> Carried | None:
    """Returns what a load takes; None where the plan does not fit.

    Args:
        plan: its requests are as long as those of the load.
        load: requests a second.
    """
    if plan.predicted_seconds is None:
        return None
    capacity = plan.batch / plan.predicted_seconds
    replicas = max(1, math.ceil(load / (USED * capacity)))
    share = load / replicas
    chips = replicas * Topology.parse(plan.topology).chips
    return Carried(plan, capacity, replicas, chips, share / capacity, share * plan.predicted_seconds)


def tables(plans: Sequence[Serving], load: float | None, prices: Mapping[str, float]) -> list[str]:
    """Returns a table with a line for each plan that fits, fewest chips first and then the fastest; none without load.

    Args:
        plans: of requests as long as those of the load.
        load: requests a second.
        prices: the price of a chip-hour by the kind of chip; with prices a column says what an hour costs.
    """
    if load is None:
        return []
    found = [each for plan in plans if (each := carry(plan, load))]
    found.sort(key=lambda each: (each.chips, each.plan.predicted_seconds))
    note = f"For {load:g} requests a second of these lengths, with replicas used for at most {USED:.0%}. "
    headings = (*_HEADINGS, *(["an hour"] if prices else []))
    if any(plan.max_length for plan in plans):
        note += "Time is that of a request with all slots in use, without waiting. `launch/serve.py --slots` sets them."
    else:
        headings = tuple(each.replace("slots", "rows") for each in headings)
        note += (
            "Time is that of a batch on the device, without HTTP, the tokenizer and waiting. `launch/serve.py "
            "--batch_tokens` sets the tokens of all rows."
        )
    return ["\n".join([*aligned([headings, *(_cells(each, prices) for each in found)]), note])]


def _cells(found: Carried, prices: Mapping[str, float]) -> tuple[str, ...]:
    start = (found.plan.topology, str(found.plan.batch), f"{found.capacity:,.1f}", str(found.replicas))
    middle = (str(found.chips), f"{found.used:.0%}", f"{found.slots_in_use:.1f}")
    hour = per_hour(Topology.parse(found.plan.topology), prices)
    cost = [] if hour is None else [f"{hour * found.replicas:,.2f}"]
    return (*start, *middle, f"{found.plan.predicted_seconds:.3g} s", *cost)


def sizes(given: Sequence[str]) -> list[int]:
    """Returns the sizes of batches that a flag lists.

    Raises:
        InputError: one is no number from 1 on.
    """
    if not given or not all(each.isdecimal() and int(each) for each in given):
        raise InputError(f"--batch is {','.join(given)!r}; accepted: numbers from 1 on, such as 32 or 8,32,128.")
    return [int(each) for each in given]
