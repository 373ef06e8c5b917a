"""Compiles and runs the programs of one model: arrays in, arrays out.

Array names carry their shape: B rows, L length, S source, T target, D model, H heads, N layers, V vocabulary, P places
of a row; see `packed`.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lm import lora, models, sharding
from lm.inference import decode, pooling
from lm.inference.decode_state import Decoded, Shape, TokenIds
from lm.inference.load import Loaded
from lm.inference.options import Decoding, row_options
from lm.inference.packed import Packed, power
from lm.models import Prompts, Sources
from lm.models.adapters import choose

# Tokens in a full batch of packed rows on one device. XLA allocates its temporary arrays anew for every call, and glibc
# gets blocks above 32 MB from the system each time. On CPUs we keep the attention scores below that size. On two cores,
# MiniLM reads 8,400 tokens a second in batches of 16 x 256 and 9,900 in batches of 8 x 256. Batches of 4 x 256 take as
# long as those of 8 x 256 for a file, and the last one has less padding.
_BUDGETS = {"cpu": 1024}
_BUDGET_OF_ACCELERATORS = 16384
_SHORTEST_WRITTEN = 16  # tokens; decoding is compiled for this length and its doubles

Output = TypeVar("Output")


class Runner:
    """Runs the programs of one model. A program is compiled at the first call with a new shape.

    Attributes:
        budget: tokens of a full batch of packed rows, on one device.
        multiple: the number of rows of a batch is a multiple of this.
    """

    def __init__(self, loaded: Loaded):
        config, self._mesh = loaded.config, loaded.mesh
        self._loaded = loaded
        self._model = models.build(config.model, models.Execution(dtype=config.train.activations))
        self._has_adapters, self._adapter = lora.has_several(loaded.params), 0
        self._decoders: dict[Shape, Callable[..., Decoded]] = {}
        self._mask_logits = self._packed(_mask_logits_BPV)
        self._next_probability = self._packed(_next_probability_BP)
        self._pooled = functools.cache(lambda poolings: self._packed(functools.partial(pooling.pool, poolings)))
        self._vectors = self._packed(_vectors_BPD)
        self._encoder_attention = self._jit(_encoder_attention_NBHLL)
        self._writer_attention = self._jit(_writer_attention)
        self.multiple = sharding.batch_shards(self._mesh) if self._mesh else 1
        with sharding.on(self._mesh):
            self.budget = _BUDGETS.get(sharding.platform(), _BUDGET_OF_ACCELERATORS)

    def with_params(self, params: models.Params) -> "Runner":
        """Returns a runner with other weights of the same shapes. The two share their compiled programs."""
        other = copy.copy(self)
        other._loaded = dataclasses.replace(self._loaded, params=params)
        return other

    def of_adapter(self, number: int) -> "Runner":
        """Returns a runner whose texts are written, and whose attention is computed, by an adapter of the model."""
        other = copy.copy(self)
        other._adapter = number
        return other

    def mask_logits(self, batch: Packed) -> jax.Array:
        """Returns float32 logits [B, P, V] of the tokens at the places of a batch."""
        return self._read(self._mask_logits, batch)

    def next_probability(self, batch: Packed) -> jax.Array:
        """Returns the probability [B, P] that the second text follows the first, given the [CLS] at each place."""
        return self._read(self._next_probability, batch)

    def pooled(self, batch: Packed, poolings: tuple[str, ...] = ("mean",)) -> jax.Array:
        """Returns float32 [B, P, D]: the pooled vector of each row's segment p + 1; see `pooling.pool`."""
        return self._read(self._pooled(poolings), batch)

    def vectors(self, batch: Packed) -> jax.Array:
        """Returns float32 [B, P, D]: the vectors of the tokens at the places of a batch."""
        return self._read(self._vectors, batch)

    def generate(
        self, sources: Sources | None, prompts: Prompts, rows: Sequence[Decoding], keys_B: jax.Array
    ) -> Decoded:
        """Returns what an encoder-decoder or a decoder writes; see `decode.generate`.

        Args:
            sources: the encoder's inputs for B rows; None for a decoder alone.
            prompts: the decoder's inputs for B rows.
            rows: the options of each row, which have one `num_beams`. Only this, the largest `max_length` rounded up,
                and which options are used (`Extras`) compile a new program.
            keys_B: a random key for each row.
        """
        shape = Shape(
            num_beams=rows[0].num_beams,
            written=power(max(row.max_length for row in rows), 2, least=_SHORTEST_WRITTEN),
            prompt=prompts.tokens_BP.shape[1],
            source=0 if sources is None else sources.tokens_BS.shape[1],
        )
        if shape not in self._decoders:
            config, tokenizer = self._loaded.config, self._loaded.tokenizer
            ids = TokenIds.of(config, tokenizer.special, tokenizer.vocab_size)
            self._decoders[shape] = jax.jit(functools.partial(decode.generate, self._model, ids, shape))
        options = row_options(rows, keys_B)
        if self._has_adapters:
            options = options._replace(adapter_B=np.full(len(rows), self._adapter, np.int32))
        return self._run(self._decoders[shape], sources, prompts, options)

    def encoder_attention(self, *arrays: np.ndarray) -> jax.Array:
        """Returns float32 [N, B, H, L, L], given tokens, segments, positions and token types [B, L]."""
        return self._run(self._encoder_attention, self._adapters(arrays[0]), *arrays)

    def writer_attention(
        self, source: Sequence[np.ndarray], target: Sequence[np.ndarray]
    ) -> tuple[jax.Array | None, jax.Array, jax.Array | None]:
        """Returns the weights of the encoder, of the decoder, and of the decoder over the encoder.

        They are float32 [N, B, H, S, S], [N, B, H, T, T] and [N, B, H, T, S]. A decoder alone has only the second.

        Args:
            source, target: tokens, segments and positions [B, S] and [B, T].
        """
        return self._run(self._writer_attention, self._adapters(target[0]), tuple(source), tuple(target))

    def _jit(self, compute: Callable[..., Output]) -> Callable[..., Output]:
        """Compiles a function of the module and arrays. It is called with the adapter of each row, or None."""
        merge = self._model.merge

        def run(params: models.Params, adapters_B1: jax.Array | None, *arrays: jax.Array) -> Output:
            module = merge(params)
            return compute(module if adapters_B1 is None else choose(module, adapters_B1), *arrays)

        return jax.jit(run, compiler_options=sharding.compiler_options())

    def _packed(self, compute: Callable[..., Output]) -> Callable[..., Output]:
        """Compiles a function of the module and a batch. It is called with the adapter of each token, or None."""
        merge = self._model.merge

        def run(params: models.Params, adapters_BL: jax.Array | None, *arrays: jax.Array) -> Output:
            module = merge(params)
            if adapters_BL is not None:
                adapters_BP = jnp.take_along_axis(adapters_BL, arrays[-1], axis=1)
                module = choose(module, adapters_BL, adapters_BP)
            return compute(module, *arrays)

        return jax.jit(run, compiler_options=sharding.compiler_options())

    def _adapters(self, tokens_BL: np.ndarray) -> np.ndarray | None:
        return np.full((len(tokens_BL), 1), self._adapter, np.int32) if self._has_adapters else None

    def _read(self, compiled: Callable[..., Output], batch: Packed) -> Output:
        return self._run(compiled, batch.adapters_BL if self._has_adapters else None, *batch.arrays)

    def _run(self, compiled: Callable[..., Output], *arrays: object) -> Output:
        if self._mesh is not None:
            arrays = jax.device_put(arrays, sharding.batch_sharding(self._mesh))
        with sharding.on(self._mesh):
            return compiled(self._loaded.params, *arrays)


def _mask_logits_BPV(
    module: models.Encoder,
    tokens_BL: jax.Array,
    types_BL: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
    places_BP: jax.Array,
) -> jax.Array:
    return module.mlm_logits(module(tokens_BL, segments_BL, positions_BL, types_BL), places_BP)


def _next_probability_BP(
    module: models.Encoder,
    tokens_BL: jax.Array,
    types_BL: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
    places_BP: jax.Array,
) -> jax.Array:
    logits_BP2 = module.nsp_logits(module(tokens_BL, segments_BL, positions_BL, types_BL), places_BP)
    return jax.nn.softmax(logits_BP2, axis=-1)[:, :, 0]


def _vectors_BPD(
    module: models.Encoder,
    tokens_BL: jax.Array,
    types_BL: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
    places_BP: jax.Array,
) -> jax.Array:
    hidden_BLD = module(tokens_BL, segments_BL, positions_BL, types_BL).astype(jnp.float32)
    return jnp.take_along_axis(hidden_BLD, places_BP[:, :, None], axis=1)


def _encoder_attention_NBHLL(
    module: models.Encoder,
    tokens_BL: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
    types_BL: jax.Array,
) -> jax.Array:
    return module.encoder.attention_weights(tokens_BL, segments_BL, positions_BL, types_BL)[0]


def _writer_attention(
    module: models.Seq2Seq, source: tuple[jax.Array, ...], target: tuple[jax.Array, ...]
) -> tuple[jax.Array | None, jax.Array, jax.Array | None]:
    if module.encoder is None:
        return None, *module.attention_weights(None, *target)
    encoder_NBHSS = module.encoder.attention_weights(*source)[0]
    return encoder_NBHSS, *module.attention_weights(module.encode(*source), *target)
