"""Plans as a table for people and as JSON for programs."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from lm.errors import InputError
from lm.plan.chips import parse
from lm.plan.serving import Serving
from lm.plan.step import KERNEL_EFFICIENCY, LINK_EFFICIENCY, Plan

_HEADINGS = ("topology", "mesh", "rows", "remat", "unroll", "HBM", "of it", "step", "MFU", "run", "cost")


@dataclasses.dataclass(frozen=True)
class Run:
    """A whole run by one plan.

    Attributes:
        plan: of its step.
        hours: all steps at the predicted speed; cost: at the price of a chip-hour. None where unknown.
    """

    plan: Plan
    hours: float | None
    cost: float | None

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.plan), "run_hours": self.hours, "run_cost": self.cost}


def whole_run(plan: Plan, steps: int, prices: dict[str, float]) -> Run:
    """What `steps` of a plan take.

    Args:
        prices: of a chip-hour, by the kind of chip.
    """
    topology = parse(plan.topology)
    if not plan.predicted_step_seconds:
        return Run(plan, None, None)
    hours = plan.predicted_step_seconds * steps / 3600
    price = prices.get(topology.kind)
    return Run(plan, hours, None if price is None else hours * price * topology.chips)


def ranked(runs: Sequence[Run], deadline: float | None = None) -> list[Run]:
    """The best first: what fits and meets the deadline (hours), by cost, without prices by chip-hours.

    A deadline that nothing meets ranks by time instead.
    """

    def chip_hours(run: Run) -> float:
        return float("inf") if run.hours is None else run.hours * parse(run.plan.topology).chips

    def key(run: Run) -> tuple[Any, ...]:
        late = deadline is not None and (run.hours is None or run.hours > deadline)
        spent = chip_hours(run) if run.cost is None else run.cost
        hours = float("inf") if run.hours is None else run.hours
        return not run.plan.fits, late, (hours if late else spent), hours, run.plan.estimated_cycles

    return sorted(runs, key=key)


def read_prices(path: str | None) -> dict[str, float]:
    """The price of a chip-hour of each kind, from a JSON file such as `{"v5e": 1.2}`.

    Raises:
        InputError: there is no such file, or something else is in it.
    """
    if not path:
        return {}
    try:
        with open(path) as file:
            return {kind: float(price) for kind, price in json.load(file).items()}
    except OSError as error:
        raise InputError(f"--prices is {path!r}: {error.strerror}; give a JSON file.") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f'--prices is {path!r}, which is no JSON object of prices; give one such as {{"v5e": 1.2}}.'
        ) from error


def as_json(found: Sequence[dict[str, Any]], single: bool) -> str:
    """One object, or a list of them, best first."""
    return json.dumps(found[0] if single else list(found), indent=2) + "\n"


def table(runs: Sequence[Run]) -> str:
    """A line a run, aligned; then what of it is an estimate."""
    reasons = [f"{_mesh(run.plan)} on {run.plan.topology}: {run.plan.message}" for run in runs if not run.plan.fits]
    note = (
        "HBM of a chip's device, as the compiler laid it out. Step, MFU, run and cost are estimates: the compiler's "
        f"cycles, kernels at {KERNEL_EFFICIENCY:.0%} of the peak, and collectives that nothing hides at "
        f"{LINK_EFFICIENCY:.0%} of the links."
    )
    return "\n".join([*_aligned([_HEADINGS, *map(_cells, runs)]), *reasons, note])


def details(run: Run) -> str:
    """What one plan is made of."""
    plan, chip = run.plan, parse(run.plan.topology).chip
    parts = {
        "parameters": plan.parameter_bytes,
        "optimizer": plan.optimizer_bytes,
        "batch": plan.batch_bytes,
        "activations, gradients, gathered weights": plan.temporary_bytes,
    }
    lines = [f"{name}: {_size(size)} a device ({size / chip.hbm:.1%} of HBM)" for name, size in parts.items()]
    if not plan.fits:
        return "\n".join(lines[:3])
    lines.append(
        f"FLOPs: {plan.flops_per_step:.3g} a step, {plan.flops_per_step / plan.model_flops_per_step:.3f} of what the "
        f"model needs ({plan.model_flops_per_step:.3g})"
    )
    for kind, found in plan.collectives.items():
        hidden = found["hidden_bytes"] / found["bytes"] if found["bytes"] else 0.0
        lines.append(
            f"{kind}: {found['executions']:.0f} a step, {_size(found['bytes'])} sent by a device, {hidden:.0%} of it "
            "while something else computes"
        )
    lines.append(f"compiled in {plan.compile_seconds:.0f} s")
    return "\n".join(lines)


def serving_table(plans: Sequence[Serving]) -> str:
    """A line a topology, aligned; then what of it is an estimate."""
    headings = (
        "topology",
        "mesh",
        "batch",
        "read",
        "written",
        "HBM",
        "of it",
        "parameters",
        "cache",
        "time",
        "tokens/s",
    )
    reasons = [f"{_mesh(plan)} on {plan.topology}: {plan.message}" for plan in plans if not plan.fits]
    note = (
        "HBM of a chip's device, as the compiler laid it out; of the cache, what is written to and the source's. Time "
        "and tokens/s are estimates by the compiler's cycles, for a batch in which some row is written to its end."
    )
    return "\n".join([*_aligned([headings, *map(_serving_cells, plans)]), *reasons, note])


def _serving_cells(plan: Serving) -> tuple[str, ...]:
    written = f"{plan.max_length}" + (f", {plan.num_beams} beams" if plan.num_beams > 1 else "")
    start = (plan.topology, _mesh(plan), str(plan.batch), str(plan.length), written)
    parts = (_size(plan.parameter_bytes), _size(plan.cache_bytes))
    if plan.predicted_seconds is None:
        return (*start, "does not fit", "", *parts, "", "")
    hbm = (_size(plan.hbm_bytes_per_chip), f"{plan.hbm_peak_fraction:.0%}")
    return (*start, *hbm, *parts, f"{plan.predicted_seconds:.3g} s", f"{plan.predicted_tokens_per_second:,.0f}")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cells(run: Run) -> tuple[str, ...]:
    plan = run.plan
    rows = f"{plan.rows}" + (f" / {plan.accumulation}" if plan.accumulation > 1 else "")
    start = (plan.topology, _mesh(plan), rows, plan.remat, str(plan.unroll) if plan.unroll else "all")
    if not plan.fits:
        return (*start, "does not fit", "", "", "", "", "")
    step = plan.predicted_step_seconds
    return (
        *start,
        _size(plan.hbm_bytes_per_chip),
        f"{plan.hbm_peak_fraction:.0%}",
        f"{step:.3g} s" if step else f"{plan.estimated_cycles / 1e6:.1f} Mcycles",
        f"{plan.predicted_mfu:.1%}" if plan.predicted_mfu else "?",
        f"{run.hours:.1f} h" if run.hours is not None else "?",
        f"{run.cost:,.0f}" if run.cost is not None else "?",
    )


def _mesh(plan: Plan | Serving) -> str:
    return " ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one device"


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
