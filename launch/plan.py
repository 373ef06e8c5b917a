"""Predicts memory, time and cost of a run on a pod: python launch/plan.py --config=FILE --topology=v5e:16x16.

It compiles the exact training step for the topology on this machine, with the TPU compiler and no TPU: install it with
pip install -e '.[plan]'. --search varies mesh, rematerialisation, unroll and micro-batches, and ranks the plans.

    python launch/plan.py --config=configs/t5_large.py --topology=v5e:8x8,v6e:4x4 --search --prices=prices.json

--serve plans one batch of requests instead: decoding with its KV cache, or the forward pass of an encoder. --load says
what so many requests a second take. --fleet simulates a day's requests and its replicas. --prices adds what it costs:

    python launch/plan.py --config=configs/t5_large.py --topology=v5e:1x1 --serve --batch=32,128 --load=50
    python launch/plan.py --fleet --rate=2:40 --tokens_per_second=900 --startup_seconds=90 --picture=day.png
"""

import startup  # noqa: F401

import os
import sys

from absl import flags

from lm import cli
from lm.accelerators import Topology
from lm.config import Config, mesh_sizes
from lm.data import workers
from lm.plan import fleet_flags, serving_flags

_config = cli.define_config(required=False)
_topology = flags.DEFINE_list("topology", "", "KIND:SHAPE of TPUs, such as v5e:16x16 or 2*v5e:16x16.")
_output = cli.define_path("output", "", "File for the plan as JSON; with --search a list, best first.", written=True)
_search = flags.DEFINE_bool("search", False, "Vary mesh, remat, unroll and micro-batches.")
_LAYOUTS = "Layouts that --search compiles for each topology with a scan over layers; the best one also without a scan."
_layouts = flags.DEFINE_integer("layouts", 3, _LAYOUTS, lower_bound=1)
_compilations = flags.DEFINE_integer("workers", 2, "Compilations at a time.", lower_bound=1)
_prices = cli.define_path("prices", None, 'JSON file with the price of a chip-hour of each kind: {"v5e": 1.2}.')
_deadline = flags.DEFINE_float("deadline", None, "Hours that the run may take; longer plans rank last.", 0)
serving_flags.define_serving()
fleet_flags.define_fleet()


def main() -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the planned devices need not be here
    if flags.FLAGS.fleet:
        fleet_flags.run(_output)
        return
    serves = serving_flags.serves()
    config, topologies = _config(), [Topology.parse(name) for name in _topology.value or [""]]
    if not (_search.value or serves):  # these choose the mesh
        for each in topologies:
            mesh_sizes(config.mesh, each.devices, each.slices)
    what = f"compiling for {', '.join(_topology.value)} on this machine; a large model takes minutes"
    with workers.announced(what, at_once=True):
        found = (serving_flags.run if serves else _plan_training)(config, topologies)
    if _output.value:
        from lm.plan import tables

        with cli.opened(_output, "w", sys.stdout) as file:
            file.write(tables.as_json(found, single=len(found) == 1 and not _search.value))


def _plan_training(config: Config, topologies: list[Topology]) -> list[dict[str, object]]:
    from lm.plan import cost, search, step, tables

    prices = cost.read_prices(_prices.value, [each.kind for each in topologies])
    if _search.value:
        plans = search.search(config, topologies, _layouts.value, _compilations.value, tables.announce)
    else:
        plans = [step.plan(config, topology) for topology in topologies]
    runs = cost.ranked([cost.whole_run(plan, config.train.steps, prices) for plan in plans], _deadline.value)
    print(tables.table(runs), tables.details(runs[0]), sep="\n\n")
    return [run.to_dict() for run in runs]


if __name__ == "__main__":
    cli.run(main, interrupted="no plan is written")
