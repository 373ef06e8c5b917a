"""Plans a training step: compiles the exact step of a config for a pod, and predicts its memory and time."""

import dataclasses
import time

import jax

from lm import tasks
from lm.accelerators import Topology
from lm.config import Config
from lm.flops import model_flops, program_flops
from lm.plan import compiled, memory
from lm.plan.mesh import described_mesh
from lm.training import program


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory and time of a training step. Bytes and FLOPs are counted; seconds are estimates.

    Attributes:
        topology, mesh: the name of the topology, and the sizes of the mesh axes.
        rows: of the global batch.
        accumulation, remat, unroll: as in `TrainConfig`.
        fits: whether the program fits in memory.
        message: if it does not fit, by how much, and what to change.
        parameter_bytes, optimizer_bytes, batch_bytes, temporary_bytes: of a device. Temporaries are activations,
            gradients and gathered weights, at their common peak.
        hbm_bytes_per_chip: their sum.
        hbm_peak_fraction: the sum as a share of what a program may use.
        flops_per_step: of the matrix products, over all devices, recomputation included.
        model_flops_per_step: what the model needs for rows that one example fills, with as many predictions as there
            is room for; see `lm.flops.model_flops`.
        collective_bytes_per_step: what a device sends.
        collectives: for each kind its `executions`, `bytes`, and `hidden_bytes`: those of asynchronous collectives.
        estimated_cycles: the compiler's, of all but Pallas kernels and collectives.
        predicted_step_seconds: by `compiled.seconds`. None if it does not fit.
        predicted_mfu: model FLOPs over the peak of the devices in that time.
        compile_seconds: on this machine.
    """

    topology: str
    mesh: dict[str, int]
    rows: int
    accumulation: int
    remat: str
    unroll: int
    fits: bool
    message: str = ""
    parameter_bytes: float = 0
    optimizer_bytes: float = 0
    batch_bytes: float = 0
    temporary_bytes: float = 0
    hbm_bytes_per_chip: float = 0
    hbm_peak_fraction: float = 0
    flops_per_step: float = 0
    model_flops_per_step: float = 0
    collective_bytes_per_step: float = 0
    collectives: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    estimated_cycles: int = 0
    predicted_step_seconds: float | None = None
    predicted_mfu: float | None = None
    compile_seconds: float = 0


def define(config: Config, topology: Topology) -> program.Definition:
    """Returns the training step of a config on a topology.

    Raises:
        InputError: the mesh does not fit the topology or the config.
    """
    mesh = described_mesh(config.mesh, topology)
    objective = tasks.create_objective(config, tasks.UntrainedVocabulary(config.data.vocab_size))
    return program.define(config, objective, mesh)


def plan(config: Config, topology: Topology) -> Plan:
    """Compiles the training step of a config for a topology, and predicts its memory and time.

    Raises:
        InputError: mesh, config and topology do not go together.
    """
    config = config.with_vocabulary(config.data.vocab_size)
    made = define(config, topology)
    planned = Plan(
        topology=topology.name,
        mesh=dict(made.mesh.shape),
        rows=config.data.batch_size,
        accumulation=config.train.accumulation,
        remat=config.train.remat,
        unroll=config.train.unroll,
        fits=False,
        model_flops_per_step=model_flops(config, made.objective.max_positions) * config.data.batch_size,
        parameter_bytes=memory.bytes_per_device(made.state["params"]),
        optimizer_bytes=memory.bytes_per_device(made.state["opt"]),
        batch_bytes=memory.bytes_per_device(made.batch),
    )
    began = time.monotonic()
    traced = made.trace_step()
    try:
        program, text = compiled.build(traced.lower())
    except jax.errors.JaxRuntimeError as error:
        message = memory.shortage(error, _changes(config, planned, topology))
        return dataclasses.replace(planned, message=message, compile_seconds=time.monotonic() - began)
    seconds = time.monotonic() - began
    peak = memory.peak_bytes(program)
    size = made.mesh.size
    found = compiled.read(text, size)
    total, kernels = program_flops(traced.jaxpr)
    chip = topology.chip
    step_seconds = compiled.seconds(found, kernels, size, chip)
    return dataclasses.replace(
        planned,
        fits=True,
        temporary_bytes=memory.temporary_bytes(program),
        hbm_bytes_per_chip=peak,
        hbm_peak_fraction=peak / chip.hbm,
        flops_per_step=total,
        collective_bytes_per_step=sum(each.bytes * each.times for each in found.collectives),
        collectives=_by_kind(found.collectives),
        estimated_cycles=found.cycles,
        predicted_step_seconds=step_seconds,
        predicted_mfu=planned.model_flops_per_step / step_seconds / (size * chip.peak_flops),
        compile_seconds=seconds,
    )


def _by_kind(collectives: list[compiled.Collective]) -> dict[str, dict[str, float]]:
    kinds: dict[str, dict[str, float]] = {}
    for each in collectives:
        kind = kinds.setdefault(each.kind, {"executions": 0, "bytes": 0, "hidden_bytes": 0})
        kind["executions"] += each.times
        kind["bytes"] += each.times * each.bytes
        kind["hidden_bytes"] += each.times * each.bytes * each.asynchronous
    return kinds


def _changes(config: Config, planned: Plan, topology: Topology) -> list[str]:
    """Returns the changes that may make a step fit."""
    changes = []
    if planned.parameter_bytes + planned.optimizer_bytes > topology.chip.hbm / 2 and planned.mesh["data"] > 1:
        changes.append("mesh.fsdp to split the state over more devices")
    if config.train.remat != "full":
        changes.append(f"train.remat={'dots' if config.train.remat == 'none' else 'full'}")
    rows = config.data.batch_size // config.train.accumulation
    if rows > planned.mesh["data"] * planned.mesh["fsdp"]:
        changes.append(f"train.accumulation={2 * config.train.accumulation}")
    return [*changes, "a larger slice"]
