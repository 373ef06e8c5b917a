"""What growing a slice buys, by plan: python -m tests.benchmarks.scaling --config=configs/bert_large.py

Weak scaling keeps the rows of a chip, strong scaling those of the batch; parameters are split over up to 16 chips and
replicated beyond. Estimates of the compiler, not measurements; see lm/plan/step.py for what they leave out.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import sys
from pathlib import Path

from absl import flags

from lm import cli
from lm.accelerators import Topology
from lm.config import Config

_config = cli.define_config()
_kind = flags.DEFINE_string("kind", "v5e", "Of chips.")
_shapes = flags.DEFINE_list("shapes", "2x2,4x4,8x8,16x16", "Slices.")
_rows = flags.DEFINE_integer("rows", 8, "Rows of a chip at a time; in all, where the batch stays, those of the middle.")
_picture = flags.DEFINE_string("picture", str(Path(__file__).with_name("scaling.png")), "Where to draw.")
_workers = flags.DEFINE_integer("workers", 2, "Compilations at a time.")


def layout(config: Config, chips: int, rows: int, rows_at_a_time: int) -> Config:
    """The config on so many chips, `rows` of them in a global batch."""
    parts = max(1, rows // (chips * rows_at_a_time))
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, data=-1, fsdp=min(chips, 16)),
        data=dataclasses.replace(config.data, batch_size=rows),
        train=dataclasses.replace(config.train, accumulation=parts),
    )


def draw(plans: dict[str, list], path: str) -> None:
    import matplotlib.pyplot as plt

    figure, (time_axis, memory_axis) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, found in plans.items():
        chips = [plan.chips for plan in found]
        time_axis.plot(chips, [plan.seconds for plan in found], marker="o", label=name)
        memory_axis.plot(chips, [plan.bytes / 2**30 for plan in found], marker="o", label=name)
    time_axis.set(xscale="log", yscale="log", xlabel="chips", ylabel="predicted seconds a step")
    memory_axis.set(xscale="log", xlabel="chips", ylabel="GiB of HBM a chip", ylim=(0, None))
    for axis in (time_axis, memory_axis):
        axis.set_xticks(chips, [str(each) for each in chips])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


@dataclasses.dataclass(frozen=True)
class Point:
    """One plan: chips, rows, predicted seconds, MFU and bytes of a device."""

    chips: int
    rows: int
    seconds: float
    mfu: float
    bytes: float


def main() -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    from lm.plan import step

    config, rows = _config(), _rows.value
    topologies = [Topology.parse(f"{_kind.value}:{shape}") for shape in _shapes.value]
    middle = topologies[len(topologies) // 2].chips * rows
    jobs = {
        (name, each.chips): (layout(config, each.chips, count, rows), each)
        for each in topologies
        for name, count in ((f"{rows} rows a chip", each.chips * rows), (f"{middle} rows", middle))
    }
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(_workers.value, mp_context=context) as executor:
        futures = {key: executor.submit(step.plan, *job) for key, job in jobs.items()}
        plans: dict[str, list[Point]] = {}
        print("| | chips | rows | HBM a chip, GiB | step, s | MFU |\n|---|---:|---:|---:|---:|---:|")
        for (name, count), future in futures.items():
            plan = future.result()
            if plan.predicted_step_seconds is None or plan.predicted_mfu is None:
                print(f"{name} on {count} chips: {plan.message}", file=sys.stderr)
                continue
            point = Point(count, plan.rows, plan.predicted_step_seconds, plan.predicted_mfu, plan.hbm_bytes_per_chip)
            plans.setdefault(name, []).append(point)
            print(
                f"| {name} | {count} | {point.rows} | {point.bytes / 2**30:.2f} | {point.seconds:.3f} | "
                f"{point.mfu:.1%} |",
                flush=True,
            )
    draw(plans, _picture.value)
    return cli.EXIT_DONE


if __name__ == "__main__":
    cli.run(main)
