"""The plan of one layout: its exact training step, compiled for a pod, and what that says."""

import dataclasses
import time
from typing import Any

import jax

from lm import sharding, tasks
from lm.config import Config
from lm.plan import compiled, flops, memory
from lm.plan.chips import Topology
from lm.training import metrics
from lm.training import step as step_lib

# Of the peak, for what the compiler gives no cycles for. Assumptions, not measurements.
KERNEL_EFFICIENCY = 0.4
LINK_EFFICIENCY = 0.8


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training step takes. Bytes and FLOPs are counted; seconds are estimates.

    Attributes:
        topology, mesh: the pod, and the sizes of the mesh axes.
        rows, accumulation, remat, unroll: what varies between layouts; rows are those of the global batch.
        fits: whether the compiler found room for everything.
        message: what it said if not.
        parameter_bytes, optimizer_bytes, batch_bytes, temporary_bytes: of a device. Temporaries are activations,
            gradients and gathered weights, at their common peak.
        hbm_bytes_per_chip, hbm_peak_fraction: their sum, and its share of what a program may use.
        flops_per_step: of the matrix products, over all devices, recomputation included.
        model_flops_per_step: what the model needs; see `metrics.model_flops`.
        collective_bytes_per_step: that a device sends; collectives: of each kind, its executions, bytes, and the
            bytes of those that wait for nothing.
        estimated_cycles: the compiler's, of all but Pallas kernels and collectives.
        predicted_step_seconds: cycles over the clock, kernels at KERNEL_EFFICIENCY of the peak, and collectives that
            nothing hides at LINK_EFFICIENCY of the links. None where it does not fit.
        predicted_mfu: model FLOPs over what the devices could do in that time.
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


def define(config: Config, topology: Topology) -> step_lib.Definition:
    """The training step of a config on a topology.

    Raises:
        InputError: when the mesh does not fit the topology or the config.
    """
    mesh = sharding.make_mesh(config.mesh, topology.devices())
    objective = tasks.create_objective(config, tasks.UntrainedVocabulary(config.data.vocab_size))
    return step_lib.define(config, objective, mesh)


def plan(config: Config, topology: Topology) -> Plan:
    """Compiles the training step of a config for a topology, and reads what came out.

    Raises:
        InputError: when mesh, config and topology do not go together.
    """
    made = define(config, topology)
    needed = metrics.model_flops(config, made.objective.max_positions) * config.data.batch_size
    layout: dict[str, Any] = {
        "topology": topology.name,
        "mesh": dict(made.mesh.shape),
        "rows": config.data.batch_size,
        "accumulation": config.train.accumulation,
        "remat": config.train.remat,
        "unroll": config.train.unroll,
        "model_flops_per_step": needed,
        "parameter_bytes": memory.bytes_per_device(made.state["params"]),
        "optimizer_bytes": memory.bytes_per_device(made.state["opt"]),
        "batch_bytes": memory.bytes_per_device(made.batch),
    }
    began = time.monotonic()
    traced = made.trace_step()
    try:
        program, text = compiled.build(traced.lower())
    except jax.errors.JaxRuntimeError as error:
        message = memory.shortage(error, _changes(config, layout, topology))
        return Plan(**layout, fits=False, message=message, compile_seconds=time.monotonic() - began)
    return _read(program, text, traced, made.mesh.size, layout, topology, time.monotonic() - began)


def _read(
    program: Any,
    text: str,
    traced: jax.stages.Traced,
    devices: int,
    layout: dict[str, Any],
    topology: Topology,
    seconds: float,
) -> Plan:
    peak = memory.peak_bytes(program)
    found = compiled.read(text, devices)
    total, kernels = flops.count(traced.jaxpr)
    chip, needed = topology.chip, layout["model_flops_per_step"]
    exposed = sum(each.bytes * each.times for each in found.collectives if not each.asynchronous)
    step_seconds = found.cycles / chip.clock + exposed / (LINK_EFFICIENCY * chip.link)
    step_seconds += kernels / devices / (KERNEL_EFFICIENCY * chip.peak_flops)
    return Plan(
        **layout,
        fits=True,
        temporary_bytes=program.memory_analysis().temp_size_in_bytes,
        hbm_bytes_per_chip=peak,
        hbm_peak_fraction=peak / chip.hbm,
        flops_per_step=total,
        collective_bytes_per_step=sum(each.bytes * each.times for each in found.collectives),
        collectives=_by_kind(found.collectives),
        estimated_cycles=found.cycles,
        predicted_step_seconds=step_seconds,
        predicted_mfu=needed / step_seconds / (devices * chip.peak_flops),
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


def _changes(config: Config, layout: dict[str, Any], topology: Topology) -> list[str]:
    """What may make it fit."""
    changes = []
    if layout["parameter_bytes"] + layout["optimizer_bytes"] > topology.chip.hbm / 2 and layout["mesh"]["data"] > 1:
        changes.append("mesh.fsdp to split the state over more devices")
    if config.train.remat != "full":
        changes.append(f"train.remat={'dots' if config.train.remat == 'none' else 'full'}")
    rows = config.data.batch_size // config.train.accumulation
    if rows > layout["mesh"]["data"] * layout["mesh"]["fsdp"]:
        changes.append(f"train.accumulation={2 * config.train.accumulation}")
    return [*changes, "a larger slice"]
