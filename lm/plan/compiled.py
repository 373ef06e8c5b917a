"""Compiles programs for TPUs, and reads estimated cycles and collectives from the text of a compiled program."""

import collections
import dataclasses
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from lm.accelerators import Tpu

# Shares of the peak, for what the compiler estimates no cycles of. Assumptions, not measurements.
KERNEL_EFFICIENCY = 0.4
LINK_EFFICIENCY = 0.8
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[suf]\d+|bf16|f8\w+)\[([\d,]*)\]")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
        kind: `all-gather` and so on.
        bytes: what a device sends in one execution by the best algorithm. An all-gather over n devices sends
            (n - 1) / n of its result.
        group: the number of devices n.
        times: executions in a step.
        asynchronous: whether other work overlaps it.
    """

    kind: str
    bytes: float
    group: int
    times: int
    asynchronous: bool


@dataclasses.dataclass(frozen=True)
class Summary:
    """The compiler's estimated cycles and the collectives of one execution on one device."""

    cycles: int
    collectives: list[Collective]


def build(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
    """Compiles a program for a TPU; returns it and its text.

    JAX's compilation cache is off meanwhile: it cannot read back programs for devices that are not here. The text is
    the compiler's dump, because JAX cannot print programs that use the sparse cores of a v5p.

    Raises:
        JaxRuntimeError: the program does not fit, or cannot be compiled.
    """
    cached: bool = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009 - jax's types do not declare it
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        with tempfile.TemporaryDirectory() as folder:
            program = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
            (text,) = Path(folder).glob("*.after_codegen.txt")
            return program, text.read_text()
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()


def read(text: str, devices: int) -> Summary:
    """Reads the text of a program. What runs in a loop counts as often as the loop iterates.

    The TPU compiler annotates most operations with estimated cycles, but not Pallas kernels and collectives.

    Args:
        text: from `build`.
        devices: of the program; the group of a collective that names no group.
    """
    entry, computations = _computations(text)
    times = collections.Counter({entry: 1})
    pending = [entry]
    while pending:  # loops may be nested
        name = pending.pop()
        for line in computations[name]:
            if loop := _LOOP.search(line):
                times[loop[2]] += times[name] * _trip_count(computations[loop[1]])
                pending.append(loop[2])
    cycles = sum(
        count * int(match[1])
        for name, count in times.items()
        for line in computations[name]
        if (match := re.search(r'"estimated_cycles":"(\d+)"', line))
    )
    return Summary(cycles, list(_collectives(computations, times, devices)))


def seconds(found: Summary, kernels: float, devices: int, chip: Tpu) -> float:
    """Returns an estimate of the time of one execution.

    Cycles are divided by the clock. Kernels run at KERNEL_EFFICIENCY of the peak, and synchronous collectives at
    LINK_EFFICIENCY of the links.

    Args:
        found: from `read`.
        kernels: the FLOPs of Pallas kernels over all devices, from `lm.flops.program_flops`.
        devices: of the program.
        chip: each of them.
    """
    synchronous = sum(each.bytes * each.times for each in found.collectives if not each.asynchronous)
    computing = found.cycles / chip.clock + kernels / devices / (KERNEL_EFFICIENCY * chip.peak_flops)
    return computing + synchronous / (LINK_EFFICIENCY * chip.link)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    entry, name, found = "", "", {}
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            found[name] = []
            entry = name if match[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name:
            found[name].append(line)
    return entry, found


def _trip_count(condition: list[str]) -> int:
    """Returns the trip count of a loop that counts from 0 to a constant; 1 for any other condition."""
    bounds = [int(match[1]) for line in condition if (match := re.search(r"[su]32\[\]\S* constant\((\d+)\)", line))]
    return max(bounds, default=1)


def _collectives(computations: dict[str, list[str]], times: collections.Counter, devices: int) -> Iterator[Collective]:
    """Yields every collective once. One that is fused with overlapping work appears in several fusions."""
    callers = _callers(computations)
    seen: set[tuple[str, str]] = set()
    for name, lines in computations.items():
        for line in lines:
            match = _OPERATION.match(line)
            kind = match and match[2].removesuffix("-start")
            if not match or kind not in _COLLECTIVES:
                continue
            executed = _executed(name, callers, times)
            chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', line)
            key = (executed, f"{chain[1]} {chain[2]}" if chain else f"{name} {line}")
            if not executed or key in seen:
                continue
            seen.add(key)
            arrays = [_bytes(*array) for array in _ARRAY.findall(match[1])]
            started = match[2].endswith("-start")
            size = max(arrays) if started else sum(arrays)
            group = _group(line, devices)
            overlapped = started or "chain_id" in line
            if name.startswith(
                "all-reduce-scatter"
            ):  # on TPUs a reduce-scatter is an all-reduce of which each device keeps a part
                kind, size = "reduce-scatter", size / group
            yield Collective(kind, _sent(kind, size, group), group, times[executed], overlapped)


def _callers(computations: dict[str, list[str]]) -> dict[str, str]:
    callers = {}
    for name, lines in computations.items():
        for line in lines:
            for called in re.findall(r"calls=%?([\w.\-]+)", line):
                callers.setdefault(called, name)
    return callers


def _executed(name: str, callers: dict[str, str], times: collections.Counter) -> str:
    """Returns the computation that calls a fused one, directly or through others; empty if none is executed."""
    while name and not times[name]:
        name = callers.get(name, "")
    return name


def _bytes(kind: str, dims: str) -> float:
    bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind.split("e")[0].replace("bf", "f")))
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits / 8


def _group(line: str, devices: int) -> int:
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return devices


def _sent(kind: str, size: float, group: int) -> float:
    share = (group - 1) / group
    match kind:
        case "all-reduce":
            return 2 * share * size
        case "reduce-scatter":
            return share * size * group  # `size` is that of the result
        case "collective-permute":
            return size
        case _:
            return share * size
