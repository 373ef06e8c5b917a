"""Flash attention on one GPU: the calls of the kernels of `lm.ops.flash.gpu_kernels`, and the gradient.

Blocks on one diagonal have the same distances. So the gradient of the bias's curve is a sum of blocks over rows and
diagonals, in a fixed order; then each summed block is added up along its own diagonals.

Array names carry their shape: B batch, L queries, S keys, H heads, K head dim, N distances, R and C the queries and
keys of a block, G groups of rows, D diagonals of blocks. L and S are whole blocks, K is a power of two.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from lm.ops.flash import gpu_kernels as kernels
from lm.ops.flash.blocks import bounds, padded, seen
from lm.ops.flash.gpu_kernels import Launch, Tiling

# The curve's gradient is computed by about so many programs: a few for each of a GPU's 100 to 150 processors.
_PROGRAMS = 1024


def _attend(
    tiling: Tiling,
    query_BLHK: jax.Array,
    key_BSHK: jax.Array,
    value_BSHK: jax.Array,
    curve_HN: jax.Array,
    segments_BL: jax.Array,
    memory_segments_BS: jax.Array,
    place: jax.Array,
) -> jax.Array:
    """Computes attention on one device, and zeros for a query whose keys are all masked.

    Args:
        query_BLHK: queries, already scaled.
        curve_HN: float32, the bias of each distance from -S on, query column minus key column. It is unused where
            `tiling` is not biased.
        place: int32 [6]: the column of the first query, the window, the numbers of the first row and head over all
            devices, and the two words of the key of dropout.

    Returns:
        [B, L, H, K] in the queries' dtype.
    """
    operands = (query_BLHK, key_BSHK, value_BSHK, curve_HN, segments_BL, memory_segments_BS, place)
    return _forward(tiling, *operands)[0]


def _forward(tiling: Tiling, *operands: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    query_BLHK = operands[0]
    B, L, H, _ = query_BLHK.shape
    launch = tiling.launches.forward
    blocks = _Blocks(operands, launch.queries, launch.keys)
    out_BLHK, log_sum_BHL = _call(
        kernels.flash_forward,
        tiling,
        launch,
        (L // launch.queries, H, B),
        [
            *blocks.constants,
            blocks.queries,
            blocks.all_keys,
            blocks.all_keys,
            blocks.curve,
            blocks.segments,
            blocks.all_memory,
        ],
        [blocks.queries, blocks.statistics],
        [
            jax.ShapeDtypeStruct(query_BLHK.shape, query_BLHK.dtype),
            jax.ShapeDtypeStruct((B, H, L), jnp.float32),
        ],
    )(*_bounded(tiling, launch, operands), *operands[:6])
    return out_BLHK, (*operands, out_BLHK, log_sum_BHL)


def _backward(
    tiling: Tiling, residuals: tuple[jax.Array, ...], gradient_BLHK: jax.Array
) -> tuple[jax.Array | None, ...]:
    *operands, out_BLHK, log_sum_BHL = residuals
    mean_BLH = (out_BLHK.astype(jnp.float32) * gradient_BLHK.astype(jnp.float32)).sum(axis=3)
    of_output = (gradient_BLHK, log_sum_BHL, mean_BLH.swapaxes(1, 2))
    of_query_BLHK = _of_query(tiling, tuple(operands), of_output)
    of_key_BSHK, of_value_BSHK = _of_key(tiling, tuple(operands), of_output)
    of_curve_HN = _of_curve(tiling, tuple(operands), of_output) if tiling.biased else jnp.zeros_like(operands[3])
    return of_query_BLHK, of_key_BSHK, of_value_BSHK, of_curve_HN, None, None, None


attend = jax.custom_vjp(_attend, nondiff_argnums=(0,))
attend.defvjp(_forward, _backward)


def _of_query(tiling: Tiling, operands: tuple[jax.Array, ...], of_output: tuple[jax.Array, ...]) -> jax.Array:
    query_BLHK, launch = operands[0], tiling.launches.of_query
    B, L, H, _ = query_BLHK.shape
    blocks = _Blocks(operands, launch.queries, launch.keys)
    inputs = [blocks.queries, blocks.all_keys, blocks.all_keys, blocks.curve, blocks.segments, blocks.all_memory]
    return _call(
        kernels.flash_of_query,
        tiling,
        launch,
        (L // launch.queries, H, B),
        [*blocks.constants, *inputs, blocks.queries, blocks.statistics, blocks.statistics],
        blocks.queries,
        jax.ShapeDtypeStruct(query_BLHK.shape, query_BLHK.dtype),
    )(*_bounded(tiling, launch, operands), *operands[:6], *of_output)


def _of_key(
    tiling: Tiling, operands: tuple[jax.Array, ...], of_output: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    key_BSHK, launch = operands[1], tiling.launches.of_key
    B, S, H, _ = key_BSHK.shape
    blocks = _Blocks(operands, launch.queries, launch.keys)
    inputs = [blocks.all_queries, blocks.keys, blocks.keys, blocks.curve, blocks.all_segments, blocks.memory]
    return _call(
        kernels.flash_of_key,
        tiling,
        launch,
        (S // launch.keys, H, B),
        [*blocks.constants, *inputs, blocks.all_queries, blocks.all_statistics, blocks.all_statistics],
        [blocks.keys, blocks.keys],
        [jax.ShapeDtypeStruct(key_BSHK.shape, array.dtype) for array in operands[1:3]],
    )(*_bounded(tiling, launch, operands, along=_columns), *operands[:6], *of_output)


def _of_curve(tiling: Tiling, operands: tuple[jax.Array, ...], of_output: tuple[jax.Array, ...]) -> jax.Array:
    """Returns the gradient of the curve, [H, N]."""
    query_BLHK, key_BSHK, _, curve_HN, _, _, place = operands
    B, L, H, _ = query_BLHK.shape
    launch = tiling.launches.of_curve
    block = launch.queries
    diagonals = L // block + key_BSHK.shape[1] // block - 1
    groups = min(B, -(-_PROGRAMS // (diagonals * H)))
    blocks = _Blocks(operands, block, block)
    sums_GHDRC = _call(
        functools.partial(kernels.flash_of_curve, rows=-(-B // groups)),
        tiling,
        launch,
        (diagonals, H, groups),
        [blocks.place, *blocks.whole, *blocks.whole_of_output],
        pl.BlockSpec((None, None, None, block, block), lambda diagonal, h, group: (group, h, diagonal, 0, 0)),
        jax.ShapeDtypeStruct((groups, H, diagonals, block, block), jnp.float32),
    )(*_bounded(tiling, launch, operands, along=_diagonals), *operands[:6], *of_output)
    sums_HN = along_diagonals(sums_GHDRC.sum(axis=0))
    return jax.lax.dynamic_update_slice(jnp.zeros_like(curve_HN), sums_HN, (0, place[0]))


def along_diagonals(blocks_HDRR: jax.Array) -> jax.Array:
    """Returns the sums of square blocks along their diagonals, by distance: [H, (D + 1) * R].

    Entry (r, c) of diagonal d is at distance (d + 1) * R + r - c.
    """
    H, D, R, _ = blocks_HDRR.shape
    # With one more column a row than it has places, the flat array's rows shift by one against each other.
    sheared = jnp.pad(blocks_HDRR[..., ::-1], ((0, 0), (0, 0), (0, 0), (1, R))).reshape(H, D, -1)
    sums_HDN = sheared[:, :, : 2 * R * R].reshape(H, D, R, 2 * R).sum(axis=2)
    near, far = padded(sums_HDN[..., :R], 0, 1, axis=1), padded(sums_HDN[..., R:], 1, 0, axis=1)
    return (near + far).reshape(H, -1)


def _call(kernel: Callable[..., None], tiling: Tiling, launch: Launch, grid: tuple[int, int, int], *specs):
    """Returns the call of a kernel. `specs` are those of the inputs, those of the outputs, and the outputs' shapes."""
    in_specs, out_specs, out_shape = specs
    return pl.pallas_call(
        functools.partial(kernel, tiling),
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        compiler_params=triton.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
        interpret=tiling.interpret,
        name=getattr(kernel, "func", kernel).__name__,
    )


def _bounded(
    tiling: Tiling,
    launch: Launch,
    operands: tuple[jax.Array, ...],
    *,
    along: Callable[[jax.Array], jax.Array] = lambda seen_BRC: seen_BRC,
):
    """Returns the place, and the bounds of the unmasked blocks: int32 [B, lines, 2].

    Args:
        along: returns the lines of blocks, [B, lines, blocks], of those [B, R, C]: rows, or columns, or diagonals.
    """
    *_, segments_BL, memory_segments_BS, place = operands
    shape, window = (launch.queries, launch.keys), place[1] if tiling.windowed else None
    seen_BRC = seen(segments_BL, memory_segments_BS, shape, start=place[0], causal=tiling.causal, window=window)
    lines = along(seen_BRC)
    return place, bounds(lines).reshape(*lines.shape[:2], 2)


def _columns(seen_BRC: jax.Array) -> jax.Array:
    return seen_BRC.swapaxes(1, 2)


def _diagonals(seen_BRC: jax.Array) -> jax.Array:
    """Returns the diagonals, the one of the last column first, by row of blocks: [B, R + C - 1, R]."""
    R, C = seen_BRC.shape[1:]
    row_R = jnp.arange(R)
    column_DR = row_R[None, :] - (jnp.arange(R + C - 1) - (C - 1))[:, None]
    is_block = (column_DR >= 0) & (column_DR < C)
    return seen_BRC[:, row_R[None, :], jnp.clip(column_DR, 0, C - 1)] & is_block[None]


class _Blocks:
    """The blocks that a program (block, head, row) reads or writes. `all_` names whole rows of the batch."""

    def __init__(self, operands: tuple[jax.Array, ...], queries: int, keys: int):
        (B, L, _, K), S, N = operands[0].shape, operands[1].shape[1], operands[3].shape[1]
        heads = lambda size: pl.BlockSpec((None, size, None, K), lambda i, h, b: (b, i, h, 0))  # noqa: E731
        all_heads = lambda size: pl.BlockSpec((None, size, None, K), lambda i, h, b: (b, 0, h, 0))  # noqa: E731
        self.queries, self.all_queries = heads(queries), all_heads(L)
        self.keys, self.all_keys = heads(keys), all_heads(S)
        self.statistics = pl.BlockSpec((None, None, queries), lambda i, h, b: (b, h, i))
        self.all_statistics = pl.BlockSpec((None, None, L), lambda i, h, b: (b, h, 0))
        self.segments, self.all_segments = _row_spec(queries), _row_spec(L, whole=True)
        self.memory, self.all_memory = _row_spec(keys), _row_spec(S, whole=True)
        self.curve = pl.BlockSpec((None, N), lambda i, h, b: (h, 0))
        self.place = pl.BlockSpec((6,), lambda i, h, b: (0,))
        self.constants = [self.place, pl.BlockSpec((None, None, 2), lambda i, h, b: (b, i, 0))]
        # All rows of the batch, for one head.
        whole_heads = lambda size: pl.BlockSpec((B, size, None, K), lambda i, h, g: (0, 0, h, 0))  # noqa: E731
        whole_rows = lambda *shape: pl.BlockSpec((B, *shape), lambda i, h, g: (0,) * (1 + len(shape)))  # noqa: E731
        statistics = pl.BlockSpec((B, None, L), lambda i, h, g: (0, h, 0))
        of_diagonal = pl.BlockSpec((B, None, 2), lambda diagonal, h, g: (0, diagonal, 0))
        self.whole = [of_diagonal, whole_heads(L), whole_heads(S), whole_heads(S), self.curve]
        self.whole += [whole_rows(L), whole_rows(S)]
        self.whole_of_output = [whole_heads(L), statistics, statistics]


def _row_spec(size: int, *, whole: bool = False) -> pl.BlockSpec:
    return pl.BlockSpec((None, size), (lambda i, h, b: (b, 0)) if whole else (lambda i, h, b: (b, i)))
