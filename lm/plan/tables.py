"""Prints plans: tables for people, JSON for programs."""

import json
import sys
from collections.abc import Mapping, Sequence

from lm.accelerators import Topology
from lm.plan.compiled import KERNEL_EFFICIENCY, LINK_EFFICIENCY
from lm.plan.cost import Run, million_tokens
from lm.plan.serving import Serving
from lm.plan.step import Plan

_ESTIMATED = (
    f"the compiler's cycles, with kernels at {KERNEL_EFFICIENCY:.0%} of the peak and synchronous collectives at "
    f"{LINK_EFFICIENCY:.0%} of the links"
)
_HEADINGS = ("topology", "mesh", "rows", "remat", "unroll", "HBM", "of it", "step", "MFU", "run", "cost")


def as_json(found: Sequence[Mapping[str, object]], single: bool) -> str:
    """Returns one JSON object, or a list of them, best first."""
    return json.dumps(found[0] if single else list(found), indent=2) + "\n"


def table(runs: Sequence[Run]) -> str:
    """Returns a table with a line for each run, the reasons of those that do not fit, and a note on estimates."""
    reasons = [f"{_mesh(run.plan)} on {run.plan.topology}: {run.plan.message}" for run in runs if not run.plan.fits]
    note = (
        "HBM is that of one device, as the compiler allocates it. Step, MFU, run and cost are estimates from "
        f"{_ESTIMATED}."
    )
    return "\n".join([*aligned([_HEADINGS, *map(_cells, runs)]), *reasons, note])


def details(run: Run) -> str:
    """Returns the memory, FLOPs and collectives of one plan, a line each."""
    plan, chip = run.plan, Topology.parse(run.plan.topology).chip
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
            "asynchronously"
        )
    lines.append(f"compiled in {plan.compile_seconds:.0f} s")
    return "\n".join(lines)


def serving_table(plans: Sequence[Serving], prices: Mapping[str, float]) -> str:
    """Returns a table with a line for each topology, the reasons where nothing fits, and a note on estimates.

    Args:
        plans: to show.
        prices: the price of a chip-hour by the kind of chip; with prices a column says what a million tokens cost.
    """
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
        *(["1M tokens"] if prices else []),
    )
    reasons = [f"{_mesh(plan)} on {plan.topology}: {plan.message}" for plan in plans if not plan.fits]
    note = "HBM is that of one device, as the compiler allocates it. "
    if any(plan.max_length for plan in plans):
        note += (
            "The cache holds the keys and values of the source and of the tokens written. Time and tokens/s are "
            f"estimates for a batch in which at least one row reaches the maximum length, from {_ESTIMATED}."
        )
    else:
        note += f"Time and tokens/s are estimates for a full batch, from {_ESTIMATED}."
    return "\n".join([*aligned([headings, *(_serving_cells(plan, prices) for plan in plans)]), *reasons, note])


def _serving_cells(plan: Serving, prices: Mapping[str, float]) -> tuple[str, ...]:
    written = f"{plan.max_length}" + (f", {plan.num_beams} beams" if plan.num_beams > 1 else "")
    start = (plan.topology, _mesh(plan), str(plan.batch), str(plan.length), written)
    parts = (_size(plan.parameter_bytes), _size(plan.cache_bytes))
    if plan.predicted_seconds is None:
        return (*start, "does not fit", "", *parts, "", "", *([""] if prices else []))
    hbm = (_size(plan.hbm_bytes_per_chip), f"{plan.hbm_peak_fraction:.0%}")
    cost = million_tokens(plan, prices)
    speed = (f"{plan.predicted_seconds:.3g} s", f"{plan.predicted_tokens_per_second:,.0f}")
    return (*start, *hbm, *parts, *speed, *([] if cost is None else [f"{cost:.3g}"]))


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns the lines of a table whose columns are as wide as their widest cell."""
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
        f"{_digits(run.hours)} h" if run.hours is not None else "?",
        _digits(run.cost) if run.cost is not None else "?",
    )


def _digits(value: float) -> str:
    """Returns a number with three digits, or with all of its whole part."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def announce(plan: Plan) -> None:
    """Says on stderr what a search has compiled, in the words of `table`."""
    parts = f"{plan.accumulation} micro-batches, " if plan.accumulation > 1 else ""
    layout = f"{_mesh(plan)}, {parts}remat {plan.remat}, unroll {plan.unroll or 'all'}"
    what = plan.message or f"compiled in {plan.compile_seconds:.0f} s"
    print(f"{plan.topology}, {layout}: {what}", file=sys.stderr, flush=True)


def _mesh(plan: Plan | Serving) -> str:
    return " ".join(f"{axis}={size}" for axis, size in plan.mesh.items() if size > 1) or "one device"


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
