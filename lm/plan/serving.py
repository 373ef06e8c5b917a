"""The plan of serving a model: its decoding, or an encoder's pass, compiled for a pod, and what that says.

Array names carry their shape: B sequences, S source or prompt length.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lm import checkpoint, models, sharding
from lm.config import Config
from lm.data.tokenizer import SpecialIds
from lm.inference import decode
from lm.inference.decode import Decoding, Shape, TokenIds
from lm.models import Prompts, Sources
from lm.plan import compiled, memory
from lm.plan.chips import Topology
from lm.plan.step import LINK_EFFICIENCY


@dataclasses.dataclass(frozen=True)
class Serving:
    """What answering one batch takes. Bytes are counted, of a device; seconds are estimates.

    Attributes:
        topology, mesh: the pod, and the sizes of the mesh axes.
        batch, length: sequences, and the tokens of each that are read.
        max_length, num_beams: tokens that are written, and hypotheses of each; 0 where nothing is.
        fits: whether the compiler found room for everything; message: what it said if not.
        parameter_bytes: float32, as a checkpoint holds them.
        cache_bytes: keys and values of the tokens written and of the source.
        temporary_bytes: all that is not an argument, the cache among it.
        hbm_bytes_per_chip, hbm_peak_fraction: all of it, and its share of what a program may use.
        predicted_seconds: for a batch in which some row writes `max_length` tokens. None where it does not fit.
        predicted_tokens_per_second: written, or where nothing is, read; over all devices.
        compile_seconds: on this machine.
    """

    topology: str
    mesh: dict[str, int]
    batch: int
    length: int
    max_length: int
    num_beams: int
    fits: bool
    message: str = ""
    parameter_bytes: float = 0
    cache_bytes: float = 0
    temporary_bytes: float = 0
    hbm_bytes_per_chip: float = 0
    hbm_peak_fraction: float = 0
    predicted_seconds: float | None = None
    predicted_tokens_per_second: float | None = None
    compile_seconds: float = 0


def plan(config: Config, topology: Topology, batch: int, length: int, decoding: Decoding) -> Serving:
    """Compiles what serves one batch.

    Args:
        config: of the run that trains the model; its mesh is the one it is served on.
        batch: sequences at a time, in whole rows for each device along `data` and `fsdp`.
        length: tokens of a source, of a decoder its prompt, of an encoder its text.
        decoding: how an encoder-decoder or a decoder writes; an encoder does not.

    Raises:
        InputError: when mesh, config and topology do not go together.
    """
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=batch, seq_length=length),
        train=dataclasses.replace(config.train, accumulation=1),
    )
    mesh = sharding.make_mesh(config.mesh, topology.devices())
    sharding.check_divisible(mesh, config)
    writes = config.model.architecture != "encoder"
    model = models.build(config.model, models.Execution(config.train.dtype, attention=config.train.attention))
    with jax.set_mesh(mesh):
        shapes = {"params": jax.eval_shape(lambda: model.init(jax.random.key(0)))}
    params = checkpoint.abstract_like(shapes, sharding.state_shardings(mesh, shapes))["params"]
    function, inputs = (_writing if writes else _reading)(config, model, mesh, batch, length, decoding)
    layout: dict[str, Any] = {
        "topology": topology.name,
        "mesh": dict(mesh.shape),
        "batch": batch,
        "length": length,
        "max_length": decoding.max_length if writes else 0,
        "num_beams": decoding.num_beams if writes else 0,
        "parameter_bytes": memory.bytes_per_device(params),
        "cache_bytes": _cache_bytes(config, mesh, batch, length, decoding) if writes else 0,
    }
    began = time.monotonic()
    try:
        with jax.set_mesh(mesh):
            program, text = compiled.build(jax.jit(function).lower(params, *inputs))
    except jax.errors.JaxRuntimeError as error:
        changes = ["fewer sequences at a time", "mesh.tensor to split parameters and cache", "a larger slice"]
        message = memory.shortage(error, changes)
        return Serving(**layout, fits=False, message=message, compile_seconds=time.monotonic() - began)
    peak = memory.peak_bytes(program)
    found = compiled.read(text, mesh.size)
    waiting = sum(each.bytes * each.times for each in found.collectives if not each.asynchronous)
    seconds = found.cycles / topology.chip.clock + waiting / (LINK_EFFICIENCY * topology.chip.link)
    return Serving(
        **layout,
        fits=True,
        temporary_bytes=program.memory_analysis().temp_size_in_bytes,
        hbm_bytes_per_chip=peak,
        hbm_peak_fraction=peak / topology.chip.hbm,
        predicted_seconds=seconds,
        predicted_tokens_per_second=batch * (decoding.max_length if writes else length) / seconds,
        compile_seconds=time.monotonic() - began,
    )


def _writing(
    config: Config, model: models.Model, mesh: jax.sharding.Mesh, batch: int, length: int, decoding: Decoding
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """The program that decodes, and its inputs besides the parameters."""
    special, rows = SpecialIds(), sharding.batch_sharding(mesh)
    ids = TokenIds(special.start(config.model.decoder_start), special.sep, special.pad, config.model.vocab_size)
    has_source = config.model.architecture == "encoder-decoder"
    prompt = int(config.data.begin_with_cls) if has_source else length
    shape = Shape(decoding.num_beams, decoding.max_length, prompt, length if has_source else 0)

    def ints(*dims: int) -> Any:
        return jax.ShapeDtypeStruct(dims, jnp.int32, sharding=rows)

    sources = Sources(ints(batch, length), ints(batch, length)) if has_source else None
    prompts = Prompts(ints(batch, prompt), ints(batch))
    options = decode.options([decoding] * batch, jax.random.split(jax.random.key(0), batch))
    options = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows), options)
    return functools.partial(decode.generate, model, ids, shape), (sources, prompts, options)


def _reading(
    config: Config, model: models.Model, mesh: jax.sharding.Mesh, batch: int, length: int, decoding: Decoding
) -> tuple[Callable[..., Any], Sequence[Any]]:
    """An encoder's pass, and its inputs besides the parameters."""
    del config, decoding
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=sharding.batch_sharding(mesh))
    return lambda params, *arrays_BS: model.merge(params)(*arrays_BS), (tokens,) * 4


def _cache_bytes(config: Config, mesh: jax.sharding.Mesh, batch: int, length: int, decoding: Decoding) -> float:
    model = config.model
    has_source = model.architecture == "encoder-decoder"
    written = decoding.max_length + (int(config.data.begin_with_cls) if has_source else length)
    columns = batch * (decoding.num_beams * written + (length if has_source else 0))
    size = (
        2
        * model.decoder_depth
        * columns
        * model.num_heads
        * model.width_per_head
        * jnp.dtype(config.train.dtype).itemsize
    )
    return size / (mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["tensor"])
