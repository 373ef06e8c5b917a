"""Plans the most promising layouts of each topology. A layout is a mesh, with remat, accumulation and unroll.

A compilation takes a minute, and there are hundreds of layouts. A rough model of time and memory chooses the few of
each topology that are compiled; nothing else depends on it. They are compiled with a scan over layers. The fastest of
each topology is also compiled with its layers written out, which takes the compiler two or three times as long.
"""

import concurrent.futures
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import jax

from lm import models, tasks
from lm.accelerators import Topology
from lm.config import Config
from lm.data.workers import executor
from lm.errors import InputError
from lm.flops import model_flops
from lm.plan.step import Plan, plan

_REMATS = {"none": 0.0, "dots": 0.05, "full": 1 / 3}  # remat -> share of the model's FLOPs that it recomputes
_USABLE = 0.9  # share of HBM; the rough model does not count everything
_EFFICIENCY = 0.6  # of the peak
_OVERLAP = 0.7  # share of the compute time that can hide communication


@dataclasses.dataclass(frozen=True)
class _Guess:
    seconds: float
    bytes: float


def search(
    config: Config,
    topologies: Sequence[Topology],
    compiled: int,
    workers: int,
    announce: Callable[[Plan], None] = lambda _: None,
) -> list[Plan]:
    """Plans the most promising layouts of each topology.

    Args:
        config: of the run. Mesh, remat, unroll and accumulation are varied; the global batch stays.
        topologies: to plan for.
        compiled: layouts to compile for each topology.
        workers: compilations at a time.
        announce: called with each plan when it is ready.

    Raises:
        InputError: no layout of any topology divides the config.
    """
    config = config.with_vocabulary(config.data.vocab_size)
    scanned = dataclasses.replace(config, train=dataclasses.replace(config.train, unroll=1))
    jobs = [(layout, each) for each in topologies for layout in promising(scanned, each, compiled)]
    if not jobs:
        raise InputError(
            f"no mesh of {', '.join(each.name for each in topologies)} divides data.batch_size="
            f"{config.data.batch_size} and the model's dimensions; change the batch, or take another topology."
        )
    # Processes, not threads: the compiler holds the interpreter lock.
    with executor(workers, thread=False) as processes:

        def compile_all(jobs: list[tuple[Config, Topology]]) -> list[Plan]:
            futures = [processes.submit(plan, *job) for job in jobs]
            for future in concurrent.futures.as_completed(futures):
                announce(future.result())
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
    """Returns the `count` fastest of the layouts that fit by the rough model; if none fits, the smallest."""
    parameters = _parameters(config)
    found = [(_guess(each, topology, parameters), each) for each in _layouts(config, topology)]
    fitting = [pair for pair in found if pair[0].bytes < _USABLE * topology.chip.hbm]
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
    """Returns rough estimates of the seconds of a step and the bytes of a device."""
    mesh, model, chip = config.mesh, config.model, topology.chip
    devices = mesh.data * mesh.fsdp * mesh.tensor
    rows, parts = config.data.batch_size, config.train.accumulation
    shapes = {name: spec.shape for name, spec in tasks.shapes(config).items()}
    tokens = sum(shape[0] for name, shape in shapes.items() if name in ("tokens", "targets")) * rows
    predicted = shapes["targets"][0] if "targets" in shapes else config.objective.mask_rate * shapes["tokens"][0]

    # ---- Time -------------------------------------------------------------------------------
    needed = model_flops(config, int(predicted)) * rows
    compute = needed * (1 + _REMATS[config.train.remat]) / (devices * chip.peak_flops * _EFFICIENCY)
    weights = 2.0 * parameters / mesh.tensor
    passes = 3 if config.train.remat != "full" else 4  # weights twice, gradients; remat=full gathers the weights again
    hidden = passes * parts * weights * (mesh.fsdp - 1) / mesh.fsdp / chip.link
    across = topology.slices > 1
    hidden += 2 * weights / mesh.fsdp * (mesh.data - 1) / mesh.data / (chip.network if across else chip.link)
    layers = model.decoder_depth + (model.num_layers if model.architecture != "decoder" else 0)
    activations = 2.0 * tokens / (mesh.data * mesh.fsdp) * model.d_model
    exposed = 8 * layers * activations * (mesh.tensor - 1) / mesh.tensor / chip.link
    seconds = compute + exposed + max(0.1 * hidden, hidden - _OVERLAP * compute)

    # ---- Memory -----------------------------------------------------------------------------
    here = tokens / (mesh.data * mesh.fsdp * parts)
    wide = (3 if model.gated else 2) * model.d_ff / mesh.tensor
    kept = {"none": 12 * model.d_model + 1.5 * wide, "dots": 6 * model.d_model + wide, "full": model.d_model}
    state = 16.0 * parameters / (mesh.fsdp * mesh.tensor)
    logits = 8.0 * rows * predicted / (mesh.data * mesh.fsdp * parts) * model.vocab_size / mesh.tensor
    return _Guess(seconds, state + 2.0 * here * layers * kept[config.train.remat] + logits + 2 * weights / layers)
