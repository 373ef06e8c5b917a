"""Looks for the layouts worth compiling, compiles them, and ranks what came out.

A compilation takes a minute, and there are hundreds of layouts: a rough model of time and memory picks the few of each
topology that the compiler then judges. The rough model decides nothing but that. They are compiled as a scan over
layers, and the fastest of each topology without one as well, which takes the compiler two or three times as long.
"""

import concurrent.futures
import dataclasses
import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence

import jax

from lm import models, tasks
from lm.config import Config
from lm.errors import InputError
from lm.plan.chips import Topology
from lm.plan.step import Plan, plan
from lm.training import metrics

_REMATS = {"none": 0.0, "dots": 0.05, "full": 1 / 3}  # and what of the model's FLOPs each computes once more
_ROOM = 0.9  # of HBM, for what the rough model does not see
_COMPUTE = 0.6  # of the peak, and of it the share that can hide communication
_HIDING = 0.7


@dataclasses.dataclass(frozen=True)
class _Guess:
    seconds: float
    bytes: float


def search(
    config: Config,
    topologies: Sequence[Topology],
    compiled: int,
    workers: int,
    report: Callable[[Plan], None] = lambda _: None,
) -> list[Plan]:
    """Plans the most promising layouts of each topology.

    Args:
        config: its mesh, remat, unroll and accumulation are what is varied; the global batch stays.
        compiled: layouts to compile for each topology.
        workers: compilations at a time.
        report: called with each plan as it is made.

    Raises:
        InputError: no layout of any topology divides the config.
    """
    scanned = dataclasses.replace(config, train=dataclasses.replace(config.train, unroll=1))
    jobs = [(layout, each) for each in topologies for layout in promising(scanned, each, compiled)]
    if not jobs:
        raise InputError(
            f"no mesh of {', '.join(each.name for each in topologies)} divides data.batch_size="
            f"{config.data.batch_size} and the model's dimensions; change the batch, or take another topology."
        )
    # A process each: the compiler holds the interpreter, and a crash of it is one layout's.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as executor:

        def compile_all(jobs: list[tuple[Config, Topology]]) -> list[Plan]:
            futures = [executor.submit(plan, *job) for job in jobs]
            for future in concurrent.futures.as_completed(futures):
                report(future.result())
            return [future.result() for future in futures]

        plans = compile_all(jobs)
        unscanned = []
        for topology in topologies:
            seconds = {
                made.predicted_step_seconds: layout
                for made, (layout, each) in zip(plans, jobs, strict=True)
                if each == topology and made.predicted_step_seconds is not None
            }
            if seconds:
                layout = seconds[min(seconds)]
                train = dataclasses.replace(layout.train, unroll=0)
                unscanned.append((dataclasses.replace(layout, train=train), topology))
        return plans + compile_all(unscanned)


def promising(config: Config, topology: Topology, count: int) -> list[Config]:
    """The `count` layouts that the rough model thinks fastest among those that it thinks fit.

    Where it thinks that none fits, the smallest.
    """
    parameters = _parameters(config)
    found = [(_guess(each, topology, parameters), each) for each in _layouts(config, topology)]
    fitting = [pair for pair in found if pair[0].bytes < _ROOM * topology.chip.hbm]
    found = sorted(fitting, key=lambda pair: pair[0].seconds) or sorted(found, key=lambda pair: pair[0].bytes)
    return [each for _, each in found[:count]]


def _layouts(config: Config, topology: Topology) -> Iterator[Config]:
    devices = topology.chips * topology.chip.devices
    for tensor, replicas, remat, parts in itertools.product(
        (1, 2, 4, 8), _divisors(devices), _REMATS, (config.train.accumulation * factor for factor in (1, 2, 4, 8))
    ):
        model, rows = config.model, config.data.batch_size
        if devices % (tensor * replicas) or replicas % topology.slices or rows % parts:
            continue
        fsdp = devices // (tensor * replicas)
        if rows // parts % (replicas * fsdp) or model.d_model % fsdp or model.d_ff % (tensor * fsdp):
            continue
        if model.num_heads % tensor or model.vocab_size % tensor:
            continue
        yield dataclasses.replace(
            config,
            mesh=dataclasses.replace(config.mesh, data=replicas, fsdp=fsdp, context=1, tensor=tensor),
            train=dataclasses.replace(config.train, remat=remat, accumulation=parts),
        )


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _parameters(config: Config) -> int:
    model = models.build(config.model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _guess(config: Config, topology: Topology, parameters: int) -> _Guess:
    """Seconds of a step and bytes of a device, by counting on the fingers."""
    mesh, model, chip = config.mesh, config.model, topology.chip
    devices = mesh.data * mesh.fsdp * mesh.tensor
    rows, parts = config.data.batch_size, config.train.accumulation
    shapes = {name: spec.shape for name, spec in tasks.shapes(config).items()}
    tokens = sum(shape[0] for name, shape in shapes.items() if name in ("tokens", "targets")) * rows
    predicted = shapes["targets"][0] if "targets" in shapes else config.objective.mask_rate * shapes["tokens"][0]

    # ---- Time -------------------------------------------------------------------------------
    needed = metrics.model_flops(config, int(predicted)) * rows
    compute = needed * (1 + _REMATS[config.train.remat]) / (devices * chip.peak_flops * _COMPUTE)
    weights = 2.0 * parameters / mesh.tensor
    passes = 3 if config.train.remat != "full" else 4  # weights forward and backward, gradients; forward once more
    hidden = passes * parts * weights * (mesh.fsdp - 1) / mesh.fsdp / chip.link
    across = topology.slices > 1
    hidden += 2 * weights / mesh.fsdp * (mesh.data - 1) / mesh.data / (chip.network if across else chip.link)
    layers = model.decoder_depth + (model.num_layers if model.architecture != "decoder" else 0)
    activations = 2.0 * tokens / (mesh.data * mesh.fsdp) * model.d_model
    exposed = 8 * layers * activations * (mesh.tensor - 1) / mesh.tensor / chip.link
    seconds = compute + exposed + max(0.1 * hidden, hidden - _HIDING * compute)

    # ---- Memory -----------------------------------------------------------------------------
    here = tokens / (mesh.data * mesh.fsdp * parts)
    wide = (3 if model.gated else 2) * model.d_ff / mesh.tensor
    kept = {"none": 12 * model.d_model + 1.5 * wide, "dots": 6 * model.d_model + wide, "full": model.d_model}
    state = 16.0 * parameters / (mesh.fsdp * mesh.tensor)
    logits = 8.0 * rows * predicted / (mesh.data * mesh.fsdp * parts) * model.vocab_size / mesh.tensor
    return _Guess(seconds, state + 2.0 * here * layers * kept[config.train.remat] + logits + 2 * weights / layers)
