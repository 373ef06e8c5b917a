"""launch/plan.py --serve: its flags, and what they lead to."""

import dataclasses
from collections.abc import Sequence

from absl import flags

from lm import cli
from lm.accelerators import Topology
from lm.config import Config
from lm.plan import fleet_flags

flags.disclaim_key_flags()  # --help of the launcher lists these flags with its own

_F = flags.FLAGS


def define_serving() -> None:
    """Defines the flags of a batch of requests. `run` reads them."""
    flags.DEFINE_bool("serve", False, "Plan serving the model instead of training it.")
    flags.DEFINE_list("batch", "32", "With --serve: sequences in a batch, a server's slots; one size or several.")
    flags.DEFINE_float("load", None, "With --serve: requests a second.", lower_bound=1e-6)
    flags.DEFINE_integer("length", None, "With --serve: tokens read; default: data.seq_length.", lower_bound=1)
    flags.DEFINE_integer("max_length", 128, "With --serve: tokens written.", lower_bound=1)
    flags.DEFINE_integer("num_beams", 1, "With --serve: beams.", lower_bound=1)


def serves() -> bool:
    """Returns whether the plan is one of serving.

    Raises:
        InputError: a flag is given that does nothing then.
    """
    fleet_flags.refuse_without_fleet()
    if _F.serve:
        cli.refuse_given(("search", "layouts", "deadline"), "with --serve")
    else:
        cli.refuse_given(("batch", "load", "length", "max_length", "num_beams"), "without --serve")
    if not _F.search:
        cli.refuse_given(("layouts", "workers"), "without --search")
    return _F.serve


def run(config: Config, topologies: Sequence[Topology]) -> list[dict[str, object]]:
    """Plans each batch on each topology, prints the tables, and returns the plans for JSON.

    Raises:
        InputError: a size is no number, a flag has no effect for this model, a price is missing, or the model cannot be
            planned.
    """
    from lm.inference.options import Decoding
    from lm.plan import cost, load, serving, tables

    if config.model.architecture == "encoder":
        cli.refuse_given(("max_length", "num_beams"), "for an encoder, which writes nothing")
    prices = cost.read_prices(_F.prices, [each.kind for each in topologies])
    decoding = Decoding(max_length=_F.max_length, num_beams=_F.num_beams)
    length = _F.length or config.data.seq_length
    cases = [(topology, size) for topology in topologies for size in load.sizes(_F.batch)]
    plans = [serving.plan(config, *case, length, decoding) for case in cases]
    print(tables.serving_table(plans, prices), *load.tables(plans, _F.load, prices), sep="\n\n")
    return [{**dataclasses.asdict(each), "million_tokens_cost": cost.million_tokens(each, prices)} for each in plans]
