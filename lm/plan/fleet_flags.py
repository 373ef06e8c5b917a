"""launch/plan.py --fleet: its flags, and what they lead to."""

import dataclasses
import sys

from absl import flags

from lm import cli
from lm.cluster import pace, planned
from lm.data import workers
from lm.errors import InputError
from lm.plan import traffic
from lm.plan.autoscale import Delayed, Fixed, Horizontal, Rule
from lm.plan.fleet import Capacity, Fleet, Outcome, Simulation
from lm.plan.traffic import Traffic

flags.disclaim_key_flags()  # --help of the launcher lists these flags with its own

_D = Capacity(tokens_per_second=1.0)
_F = flags.FLAGS
_TARGETS = (0.25, 0.5, 1.0, 2.0)  # that --search tries, as multiples of --target
_READS = (2 / 3, 1.0, 1.2)  # and of --read_tokens, which decides where it is set
_REFUSED = 0.001  # share of the requests that --search lets a setting refuse
_OF_OTHERS = (  # flags of launch/plan.py that change no simulation
    *("config", "topology", "layouts", "workers", "deadline", "serve", "batch", "load", "length", "max_length"),
    "num_beams",
)
_own: list[str] = []


@dataclasses.dataclass(frozen=True)
class Setting:
    """What may be chosen: the fewest and the most replicas, and what one may have before another is wanted.

    Attributes:
        target: as in `Fleet`.
        read: tokens read a second; 0: they are not looked at.
    """

    least: int
    most: int
    target: float
    read: int = 0

    def __str__(self) -> str:
        read = f", {self.read} tokens read a second" if self.read else ""
        return f"{self.least} to {self.most} replicas, target {self.target:g}{read}"


def define_fleet() -> None:
    """Defines the flags of a fleet. `run` reads them."""
    before = set(_F)
    flags.DEFINE_bool("fleet", False, "Simulate replicas that serve a day's requests.")
    cli.define_path("trace", "", "CSV file: time,tokens of each request, or time,rate.")
    flags.DEFINE_string("rate", "", "Requests a second, such as 20, or 2:20 for night and day.")
    flags.DEFINE_integer("tokens", 64, "Mean tokens of a request.", lower_bound=1)
    flags.DEFINE_float("tokens_per_second", None, "Of a full replica, as measured.", lower_bound=1e-9)
    cli.define_path("plan", "", "Plan of --serve, instead of --tokens_per_second and --batch_tokens or --slots.")
    flags.DEFINE_integer("slots", 0, "Sequences written at a time; 0: the model reads.", lower_bound=0)
    flags.DEFINE_integer("batch_tokens", _D.batch_tokens, "Tokens of a full batch.", lower_bound=1)
    flags.DEFINE_float("seconds", _D.seconds, "Shortest time of a batch, or until a first token.", lower_bound=0)
    flags.DEFINE_integer("waiting_tokens", _D.waiting_tokens, "Limit of a replica's queue.", lower_bound=1)
    flags.DEFINE_float("startup_seconds", _D.startup, "Until a new replica is ready.", lower_bound=0)
    flags.DEFINE_enum("autoscaler", "keda", ["keda", "hpa", "ray", "none"], "Whose rule.")
    what = "Waiting tokens, slots in use, or with Ray outstanding tokens, of a replica. Default: the launcher's."
    flags.DEFINE_float("target", None, what, lower_bound=1e-9)
    what = "Tokens read a second by a replica that call for one more; 0: never. Default: 0.75 of what it can read."
    flags.DEFINE_integer("read_tokens", None, what, lower_bound=0)
    flags.DEFINE_integer("min_replicas", 2, "Fewest replicas.", lower_bound=0)
    flags.DEFINE_integer("max_replicas", 10, "Most replicas.", lower_bound=1)
    flags.DEFINE_float("upscale_delay", pace.RAY_UP, "With --autoscaler=ray: seconds.", lower_bound=0)
    flags.DEFINE_float("downscale_delay", pace.RAY_DOWN, "With --autoscaler=ray: seconds.", lower_bound=0)
    flags.DEFINE_float("preemptions_per_hour", 0.0, "How often a machine is taken away.", lower_bound=0)
    flags.DEFINE_string("accelerator", "cpu", "Key of --prices: what an hour of a replica costs.")
    flags.DEFINE_float("target_p99", 1.0, "Seconds that a setting of --search keeps.", lower_bound=0)
    what = "File for a picture of requests, replicas and p99 over the time."
    cli.define_picture("picture", "", what, (".png", ".pdf", ".svg"))
    flags.DEFINE_integer("seed", 0, "Of what is drawn at random.", lower_bound=0)
    _own[:] = [name for name in _F if name not in before and name != "fleet"]


def refuse_without_fleet() -> None:
    """Refuses the flags of a fleet where none is simulated."""
    cli.refuse_given(_own, "without --fleet")


def run(output: flags.FlagHolder[str]) -> None:
    """Simulates the day that the flags describe, prints the table and writes the files.

    Args:
        output: names the file for JSON; empty: none.

    Raises:
        InputError: flags do not go together, or a file is not what it should be.
    """
    _refuse_unused()
    capacity = _capacity()
    most = _F.min_replicas if _F.autoscaler == "none" and not _F.search else _F.max_replicas
    settings = _settings(Setting(_F.min_replicas, most, _target(capacity), _read(capacity)))
    from lm.plan import cost, fleet_report, tables  # with jax

    price = cost.read_prices(_F.prices, [_F.accelerator]).get(_F.accelerator)
    with workers.announced("reading the requests" if _F.trace else "drawing the requests"):
        requests = _traffic()
    days = []
    for number, each in enumerate(settings, 1):
        which = f"setting {number} of {len(settings)}: {each}"
        with workers.announced(f"simulating {len(requests.arrivals):,} requests, {which}"):
            days.append(fleet_report.Day(each, simulate(requests, capacity, each), price))
    days = fleet_report.ranked(days, _F.target_p99, _REFUSED)
    print(fleet_report.table(days))
    if _F.search:
        is_kept = fleet_report.keeps(days[0], _F.target_p99, _REFUSED)
        print(f"The first line {'is the cheapest that keeps' if is_kept else 'comes nearest; none keeps'} the target.")
    if output.value:
        with cli.opened(output, "w", sys.stdout) as file:
            file.write(tables.as_json([each.to_dict() for each in days], single=not _F.search))
    if _F.picture:
        fleet_report.draw(days[0], requests, _F.picture)


def _refuse_unused() -> None:
    """Refuses flags that do nothing, or nothing beside others."""
    cli.refuse_given(_OF_OTHERS, "with --fleet")
    if not _F.prices:
        cli.refuse_given(("accelerator",), "without --prices")
    if not _F.search:
        cli.refuse_given(("target_p99",), "without --search")
        if _F.autoscaler == "none":
            cli.refuse_given(("max_replicas",), "with --autoscaler=none")
    if _F.plan:
        cli.refuse_given(("tokens_per_second", "batch_tokens", "slots"), "with --plan")
    if _F.slots:
        cli.refuse_given(("batch_tokens",), "with --slots")
    if _F.autoscaler != "ray":
        cli.refuse_given(("upscale_delay", "downscale_delay"), "without --autoscaler=ray")
    if _F.autoscaler == "none":
        cli.refuse_given(("target",), "with --autoscaler=none")


def _counts(capacity: Capacity) -> str:
    """Returns what the autoscaler counts, as in `Fleet`."""
    return "outstanding" if _F.autoscaler == "ray" else "slots" if capacity.slots else "queue"


def _target(capacity: Capacity) -> float:
    """Returns --target, by default that of the launcher.

    Raises:
        InputError: it is more than a replica can have.
    """
    if _counts(capacity) != "slots":
        return _F.target or {"outstanding": pace.RAY_TARGET, "queue": pace.QUEUE_TOKENS}[_counts(capacity)]
    target = _F.target or capacity.slots * pace.BUSY_SLOTS / pace.SLOTS
    if _F.autoscaler != "none" and target >= capacity.slots:
        raise InputError(
            f"--target is {target:g} slots in use, and a replica has {capacity.slots}, so that no other would ever be "
            "added; give fewer."
        )
    return target


def _read(capacity: Capacity) -> int:
    """Returns --read_tokens, by default that of the launcher for a replica that is planned.

    Raises:
        InputError: it is given, and the replica writes, or the autoscaler does not look at it.
    """
    if capacity.slots:
        cli.refuse_given(("read_tokens",), "with a model that writes")
        return 0
    if _F.autoscaler not in ("keda", "hpa"):
        cli.refuse_given(("read_tokens",), f"with --autoscaler={_F.autoscaler}")
        return 0
    return int(pace.READ_SHARE * capacity.tokens_per_second) if _F.read_tokens is None else _F.read_tokens


def simulate(requests: Traffic, capacity: Capacity, setting: Setting) -> Outcome:
    """Returns what a setting leads to."""
    fleet = Fleet(setting.target, setting.least, _F.preemptions_per_hour, counts=_counts(capacity), read=setting.read)
    if _F.autoscaler == "hpa":  # prometheus-adapter hands the newest value of a gauge on
        fleet = dataclasses.replace(fleet, averaged=0.0, rated=pace.ADAPTED)
    elif _F.autoscaler == "ray":
        fleet = dataclasses.replace(fleet, every=pace.RAY_REPORTS, averaged=pace.RAY_AVERAGED)
    return Simulation(requests.arrivals, requests.tokens, capacity, fleet, _rule(setting), _F.seed).run()


def _rule(setting: Setting) -> Rule:
    if _F.autoscaler == "none":
        return Fixed(setting.least)
    if _F.autoscaler == "ray":
        return Delayed(setting.least, setting.most, _F.upscale_delay, _F.downscale_delay)
    return Horizontal(max(1, setting.least), setting.most)


def _traffic() -> Traffic:
    if bool(_F.trace) == bool(_F.rate):
        raise InputError(f"--trace is {_F.trace!r} and --rate is {_F.rate!r}; give one of them.")
    read = traffic.read_trace(_F.trace, _F.tokens, _F.seed) if _F.trace else None
    found = read or traffic.from_rate(_F.rate, _F.tokens, _F.seed)
    if not len(found.arrivals):
        raise InputError("there is no request; give a higher rate, or a trace with requests.")
    return found


def _settings(first: Setting) -> list[Setting]:
    """Returns the settings to try: with --search, other fewest replicas and other targets (`read`, where it is set)."""
    if first.most < max(1, first.least):
        raise InputError(f"--max_replicas is {first.most} and --min_replicas is {first.least}; give a larger one.")
    if not first.least and _F.autoscaler != "keda":
        raise InputError("--min_replicas is 0, which only --autoscaler=keda can do; use it, or keep one replica.")
    if not _F.search:
        return [first]
    fewest = sorted({first.least, *(2**power for power in range(8) if 2**power <= first.most)})
    if _F.autoscaler == "none":
        tried = [first]
    elif first.read:
        tried = [dataclasses.replace(first, read=round(first.read * factor)) for factor in _READS]
    else:
        tried = [dataclasses.replace(first, target=first.target * factor) for factor in _TARGETS]
    found = [dataclasses.replace(each, least=least) for least in fewest for each in tried]
    return list(dict.fromkeys(found))  # small numbers may be rounded to one


def _capacity() -> Capacity:
    """Returns a replica's capacity as it was measured, or from a plan of `--serve`."""
    limits = {"seconds": _F.seconds, "waiting_tokens": _F.waiting_tokens, "startup": _F.startup_seconds}
    if not _F.plan and _F.tokens_per_second is None:
        raise InputError("give a replica's capacity: --tokens_per_second as measured, or --plan=FILE of --serve.")
    if not _F.plan:
        return Capacity(_F.tokens_per_second, _F.batch_tokens, slots=_F.slots, **limits)
    plan = planned.read(_F.plan)
    if plan.tokens_per_second is None:
        raise InputError(f"--plan is {_F.plan!r}, which does not fit; give one that does.")
    full = plan.batch * plan.length
    if plan.max_length:
        return Capacity(plan.tokens_per_second, full, slots=plan.batch, **limits)
    limits["seconds"] = max(_F.seconds, full / plan.tokens_per_second)  # the program has one size
    return Capacity(plan.tokens_per_second, full, **limits)
