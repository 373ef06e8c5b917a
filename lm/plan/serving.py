"""Plans the serving of a model: compiles its decoding, or an encoder's pass, for a pod.

Array names carry their shape: B sequences, S source or prompt length.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from lm import checkpoint, models, sharding
from lm.accelerators import Topology
from lm.config import Config, check_divisible
from lm.flops import program_flops
from lm.inference import decode
from lm.inference.decode_state import Shape, TokenIds
from lm.inference.options import Decoding, row_options
from lm.models import Prompts, Sources
from lm.plan import compiled, memory
from lm.plan.mesh import described_mesh
from lm.tokenizers.special_ids import SpecialIds

_Program = tuple[Callable[..., object], tuple[object, ...]]  # and its abstract arguments after the parameters


@dataclasses.dataclass(frozen=True)
class Serving:
    """Memory and time of answering one batch. Bytes are counted and are those of one device; seconds are estimates.

    Attributes:
        topology, mesh: the name of the topology, and the sizes of the mesh axes.
        batch, length: sequences, and the tokens read of each.
        max_length, num_beams: tokens written for each sequence, and beams; 0 for an encoder.
        fits: whether the program fits in memory.
        message: if it does not fit, by how much, and what to change.
        parameter_bytes: of the parameters in float32, as a checkpoint holds them.
        cache_bytes: of the keys and values of the source and of the tokens written.
        temporary_bytes: of everything but the arguments; includes the cache.
        hbm_bytes_per_chip: of the whole program, on a device.
        hbm_peak_fraction: the same as a share of what a program may use.
        predicted_seconds: for a batch in which at least one row writes `max_length` tokens; None if it does not fit.
        predicted_tokens_per_second: tokens written, or for an encoder read, over all devices; None if it does not fit.
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
        config: of the run that trained the model. Its mesh is used for serving.
        topology: to compile for.
        batch: sequences at a time; a multiple of the mesh's `data` times `fsdp`.
        length: tokens of a source, of a decoder's prompt, or of an encoder's text.
        decoding: how an encoder-decoder or a decoder writes; unused for an encoder.

    Raises:
        InputError: mesh, config and topology do not go together.
    """
    config = dataclasses.replace(
        config.with_vocabulary(config.data.vocab_size),
        data=dataclasses.replace(config.data, batch_size=batch, seq_length=length),
        train=dataclasses.replace(config.train, accumulation=1),
    )
    mesh = described_mesh(config.mesh, topology)
    check_divisible(mesh.shape, config)
    writes = config.model.architecture != "encoder"
    model = models.build(config.model, models.Execution(config.train.activations, attention=config.train.attention))
    with jax.set_mesh(mesh):
        shapes = {"params": jax.eval_shape(lambda: model.init(jax.random.key(0)))}
    params = checkpoint.abstract_like(shapes, sharding.state_shardings(mesh, shapes))["params"]
    function, inputs = (_writing if writes else _reading)(config, model, mesh, batch, length, decoding)
    planned = Serving(
        topology=topology.name,
        mesh=dict(mesh.shape),
        batch=batch,
        length=length,
        max_length=decoding.max_length if writes else 0,
        num_beams=decoding.num_beams if writes else 0,
        fits=False,
        parameter_bytes=memory.bytes_per_device(params),
        cache_bytes=_cache_bytes(config, mesh, batch, length, decoding) if writes else 0,
    )
    began = time.monotonic()
    try:
        with jax.set_mesh(mesh):
            traced = jax.jit(function).trace(params, *inputs)
            program, text = compiled.build(traced.lower())
    except jax.errors.JaxRuntimeError as error:
        changes = ["fewer sequences at a time", "mesh.tensor to split parameters and cache", "a larger slice"]
        message = memory.shortage(error, changes)
        return dataclasses.replace(planned, message=message, compile_seconds=time.monotonic() - began)
    peak = memory.peak_bytes(program)
    found = compiled.read(text, mesh.size)
    _, kernels = program_flops(traced.jaxpr)
    seconds = compiled.seconds(found, kernels, mesh.size, topology.chip)
    return dataclasses.replace(
        planned,
        fits=True,
        temporary_bytes=memory.temporary_bytes(program),
        hbm_bytes_per_chip=peak,
        hbm_peak_fraction=peak / topology.chip.hbm,
        predicted_seconds=seconds,
        predicted_tokens_per_second=batch * (decoding.max_length if writes else length) / seconds,
        compile_seconds=time.monotonic() - began,
    )


def _writing(
    config: Config, model: models.Model, mesh: jax.sharding.Mesh, batch: int, length: int, decoding: Decoding
) -> _Program:
    """Returns the program that decodes."""
    ids, rows = TokenIds.of(config, SpecialIds(), config.model.vocab_size), sharding.batch_sharding(mesh)
    has_source = config.model.architecture == "encoder-decoder"
    prompt = int(config.data.begin_with_cls) if has_source else length
    shape = Shape(decoding.num_beams, decoding.max_length, prompt, length if has_source else 0)

    def ints(*dims: int) -> jax.Array:
        return cast(jax.Array, jax.ShapeDtypeStruct(dims, jnp.int32, sharding=rows))

    sources = Sources(ints(batch, length), ints(batch, length)) if has_source else None
    prompts = Prompts(ints(batch, prompt), ints(batch))
    options = row_options([decoding] * batch, jax.random.split(jax.random.key(0), batch))
    options = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=rows), options)
    return functools.partial(decode.generate, model, ids, shape), (sources, prompts, options)


def _reading(
    config: Config, model: models.Model, mesh: jax.sharding.Mesh, batch: int, length: int, decoding: Decoding
) -> _Program:
    """Returns an encoder's pass."""
    del config, decoding
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=sharding.batch_sharding(mesh))
    return lambda params, *arrays_BS: model.merge(params)(*arrays_BS), (tokens,) * 4


def _cache_bytes(config: Config, mesh: jax.sharding.Mesh, batch: int, length: int, decoding: Decoding) -> float:
    model = config.model
    has_source = model.architecture == "encoder-decoder"
    written = decoding.max_length + (int(config.data.begin_with_cls) if has_source else length)
    columns = batch * (decoding.num_beams * written + (length if has_source else 0))
    width = model.num_heads * model.width_per_head
    size = 2 * model.decoder_depth * columns * width * jnp.dtype(config.train.activations).itemsize
    return size / (mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["tensor"])
