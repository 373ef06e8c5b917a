"""Flash attention (Dao et al., 2022) as Triton kernels for GPUs: what one program computes.

These kernels do what those of `lm.ops.flash.tpu_kernels` do, and drop out attention weights. Blocks that segments,
window or causality mask completely are neither loaded nor computed. cuDNN's kernel computes them, so packed rows take
it twice as long (tests/benchmarks/RESULTS.md). It has no gradient for a relative bias, and its dropout has another
hash.

The relative bias is given as a curve over distances, a few kilobytes a head, from which each block gathers.

Array names carry their shape: K head dim, R and C the queries and keys of a block.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from lm.ops.dropout import keep_places
from lm.ops.flash.blocks import HIDDEN, LEAST, NN, NT, product

Index = jax.Array | int


@dataclasses.dataclass(frozen=True)
class Launch:
    """How one kernel is launched: queries and keys of a block, warps of a program, stages of its pipeline."""

    queries: int
    keys: int
    warps: int = 4
    stages: int = 2


@dataclasses.dataclass(frozen=True)
class Launches:
    """The launches of the forward pass and of three gradients. The curve's has square blocks."""

    forward: Launch
    of_query: Launch
    of_key: Launch
    of_curve: Launch


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static arguments of the kernels.

    Attributes:
        keys: S.
        causal, windowed, biased: whether causality, a window and a relative bias apply, besides segments.
        rate: the rate of dropout of the attention weights.
        whole: H, L and S of the arrays over all devices, before padding. The hash of dropout counts by them.
        interpret: whether the kernels are interpreted, on any platform.
    """

    launches: Launches
    keys: int
    causal: bool = False
    windowed: bool = False
    biased: bool = False
    rate: float = 0.0
    whole: tuple[int, int, int] = (0, 0, 0)
    interpret: bool = False


def flash_forward(tiling: Tiling, place, bounds, query, key, value, curve, segments, memory_segments, out, log_sum):
    queries, keys = tiling.launches.forward.queries, tiling.launches.forward.keys
    query_RK, segments_R = query[...], segments[...]
    i, scores = pl.program_id(0), _Scores(tiling, place, curve, pl.program_id(1), pl.program_id(2))

    def step(j, carry):
        top_R, total_R, mixed_RK = carry
        at = pl.ds(j * keys, keys)
        pairs = scores.pairs(i * queries, queries, j * keys, keys)
        same = segments_R[:, None], memory_segments[at][None, :]
        scores_RC = scores(product(query_RK, key[at, :], NT), pairs, same)
        before_R, top_R = top_R, jnp.maximum(top_R, scores_RC.max(axis=1))
        weights_RC = _exp(scores_RC, top_R[:, None])
        fading_R = jnp.exp(before_R - top_R)
        total_R = total_R * fading_R + weights_RC.sum(axis=1)
        kept_RC = scores.dropped(weights_RC, pairs).astype(value.dtype)
        return top_R, total_R, mixed_RK * fading_R[:, None] + product(kept_RC, value[at, :], NN)

    start = jnp.full((queries,), LEAST, jnp.float32), jnp.zeros((queries,), jnp.float32)
    top_R, total_R, mixed_RK = _unmasked(bounds, step, (*start, jnp.zeros(query_RK.shape, jnp.float32)))
    sum_R = jnp.where(total_R == 0, 1.0, total_R)
    out[...] = (mixed_RK / sum_R[:, None]).astype(out.dtype)
    log_sum[...] = top_R + jnp.log(sum_R)


def flash_of_query(
    tiling: Tiling,
    place,
    bounds,
    query,
    key,
    value,
    curve,
    segments,
    memory_segments,
    gradient,
    log_sum,
    mean,
    of_query,
):
    queries, keys = tiling.launches.of_query.queries, tiling.launches.of_query.keys
    query_RK, gradient_RK, segments_R = query[...], gradient[...], segments[...]
    log_sum_R, mean_R = log_sum[...], mean[...]
    i, scores = pl.program_id(0), _Scores(tiling, place, curve, pl.program_id(1), pl.program_id(2))

    def step(j, of_query_RK):
        at = pl.ds(j * keys, keys)
        key_CK = key[at, :]
        pairs = scores.pairs(i * queries, queries, j * keys, keys)
        same = segments_R[:, None], memory_segments[at][None, :]
        weights_RC = scores.weights(product(query_RK, key_CK, NT), pairs, same, log_sum_R[:, None])
        of_scores_RC = scores.backward(weights_RC, product(gradient_RK, value[at, :], NT), pairs, mean_R[:, None])
        return of_query_RK + product(of_scores_RC.astype(key.dtype), key_CK, NN)

    of_query[...] = _unmasked(bounds, step, jnp.zeros(query_RK.shape, jnp.float32)).astype(of_query.dtype)


def flash_of_key(
    tiling: Tiling, place, bounds, query, key, value, curve, segments, memory_segments, gradient, log_sum, mean, *out
):
    """Computes the gradients of keys and values. Its blocks are transposed, [C, R], as both products take them."""
    queries, keys = tiling.launches.of_key.queries, tiling.launches.of_key.keys
    key_CK, value_CK, memory_segments_C = key[...], value[...], memory_segments[...]
    j, scores = pl.program_id(0), _Scores(tiling, place, curve, pl.program_id(1), pl.program_id(2))

    def step(i, carry):
        of_key_CK, of_value_CK = carry
        at = pl.ds(i * queries, queries)
        query_RK, gradient_RK = query[at, :], gradient[at, :]
        pairs = scores.pairs(i * queries, queries, j * keys, keys, transposed=True)
        same = memory_segments_C[:, None], segments[at][None, :]
        weights_CR = scores.weights(product(key_CK, query_RK, NT), pairs, same, log_sum[at][None, :])
        of_value_CK += product(scores.dropped(weights_CR, pairs).astype(gradient.dtype), gradient_RK, NN)
        of_scores_CR = scores.backward(weights_CR, product(value_CK, gradient_RK, NT), pairs, mean[at][None, :])
        return of_key_CK + product(of_scores_CR.astype(query.dtype), query_RK, NN), of_value_CK

    zeros = jnp.zeros(key_CK.shape, jnp.float32)
    for ref, sums in zip(out, _unmasked(bounds, step, (zeros, zeros)), strict=True):
        ref[...] = sums.astype(ref.dtype)


def flash_of_curve(
    tiling: Tiling,
    place,
    bounds,
    query,
    key,
    value,
    curve,
    segments,
    memory_segments,
    gradient,
    log_sum,
    mean,
    out,
    *,
    rows,
):
    """Computes the sum of the scores' gradients over a group of rows and over one diagonal of blocks.

    A masked block between unmasked ones is computed: without a condition in the loop Triton loads ahead.
    """
    block, num_rows, num_keys = tiling.launches.of_curve.queries, bounds.shape[0], key.shape[1]
    diagonal, head = pl.program_id(0) - (num_keys // block - 1), pl.program_id(1)
    first = pl.program_id(2) * rows

    def row_step(b, sums_RC):
        scores = _Scores(tiling, place, curve, head, b)

        def step(i, sums_RC):
            j = i - diagonal
            at, at_keys = pl.ds(i * block, block), pl.ds(j * block, block)
            pairs = scores.pairs(i * block, block, j * block, block)
            same = segments[b, at][:, None], memory_segments[b, at_keys][None, :]
            products_RC = product(query[b, at, :], key[b, at_keys, :], NT)
            weights_RC = scores.weights(products_RC, pairs, same, log_sum[b, at][:, None])
            of_kept_RC = product(gradient[b, at, :], value[b, at_keys, :], NT)
            return sums_RC + scores.backward(weights_RC, of_kept_RC, pairs, mean[b, at][:, None])

        return jax.lax.fori_loop(bounds[b, 0], bounds[b, 1] + 1, step, sums_RC)

    zeros = jnp.zeros((block, block), jnp.float32)
    out[...] = jax.lax.fori_loop(first, jnp.minimum(first + rows, num_rows), row_step, zeros)


def _unmasked(bounds, step, carry):
    """Returns the carry after a loop over the blocks that are not masked completely.

    A loop of their own for blocks without any mask, which spares them comparing segments, was no faster: it takes
    registers.
    """
    return jax.lax.fori_loop(bounds[0], bounds[1] + 1, step, carry)


def _exp(scores: jax.Array, less: jax.Array) -> jax.Array:
    """Returns exp(scores - less), as a power of two: a GPU has an instruction for it.

    The difference of the products may be rounded once, so neither operand may be as large as LEAST where the other is.
    """
    return jnp.exp2(scores * math.log2(math.e) - less * math.log2(math.e))


class _Scores:
    """Bias, mask and dropout of the blocks of one head and row."""

    def __init__(self, tiling: Tiling, place, curve, head: Index, row: Index):
        self._tiling, self._place, self._curve = tiling, place, curve
        self._head, self._row = head, row

    def pairs(self, query: Index, queries: int, key: Index, keys: int, *, transposed: bool = False):
        """Returns the columns of a block's queries, [R, 1], and of its keys, [1, C]; transposed [1, R] and [C, 1]."""
        query_R, key_C = query + jnp.arange(queries, dtype=jnp.int32), key + jnp.arange(keys, dtype=jnp.int32)
        query_R = self._place[0] + query_R
        return (query_R[None, :], key_C[:, None]) if transposed else (query_R[:, None], key_C[None, :])

    def __call__(self, scores: jax.Array, pairs, segments: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Returns the scores plus the bias, HIDDEN where they are masked."""
        tiling = self._tiling
        distance = pairs[0] - pairs[1]
        if tiling.biased:
            scores += self._curve[distance + tiling.keys]
        visible = segments[0] == segments[1]
        if tiling.causal:
            visible &= distance >= 0
        if tiling.windowed:
            visible &= jnp.abs(distance) <= self._place[1]
        return jnp.where(visible, scores, HIDDEN)

    def weights(self, scores: jax.Array, pairs, segments, log_sum: jax.Array) -> jax.Array:
        """Returns the attention weights before dropout, given the logarithms of the sums of the forward pass."""
        return _exp(self(scores, pairs, segments), log_sum)

    def backward(self, weights: jax.Array, of_kept: jax.Array, pairs, mean: jax.Array) -> jax.Array:
        """Returns the gradient of the scores, given that of the weights after dropout."""
        return weights * (self.dropped(of_kept, pairs) - mean)

    def dropped(self, weights: jax.Array, pairs) -> jax.Array:
        """Returns weights, or their gradient, after dropout: `lm.ops.dropout.keep_mask` of the whole [B, H, L, S]."""
        rate, (heads, length, keys) = self._tiling.rate, self._tiling.whole
        if rate == 0:
            return weights
        word = lambda value: jnp.asarray(value).astype(jnp.uint32)  # noqa: E731
        row, head = word(self._place[2] + self._row), word(self._place[3] + self._head)
        start = (row * jnp.uint32(heads) + head) * jnp.uint32(length)
        places = (start + word(pairs[0])) * jnp.uint32(keys) + word(pairs[1])
        keep = keep_places(rate, places, word(self._place[4]), word(self._place[5]))
        return jnp.where(keep, weights / (1 - rate), 0.0)
