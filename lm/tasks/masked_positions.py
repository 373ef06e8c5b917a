"""Which tokens a masked language model predicts.

Array names carry their shape: B batch, L length, P segments of a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax


def max_masked(seq_length: int, max_segments: int, mask_rate: float) -> int:
    """Returns M, an upper bound of the tokens masked in a row of up to `max_segments` segments.

    A segment of n >= 3 tokens masks max(1, round(rate n)) of them, which is at most max(1, rate n + 1/2).
    """
    rounding = max_segments * max(0.5, 1 - 3 * mask_rate)
    return min(seq_length, int(mask_rate * seq_length + rounding))


def choose(
    key: jax.Array,
    segments_BL: jax.Array,
    positions_BL: jax.Array,
    special_BL: jax.Array,
    starts_BL: jax.Array | None,
    mask_rate: float,
    max_segments: int,
) -> jax.Array:
    """Chooses max(1, round(rate n)) of each segment's n tokens.

    Whole words come in random order. A word that no longer fits into that number is skipped, and the next ones are
    tried (`create_masked_lm_predictions` in create_pretraining_data.py of google-research/bert).

    Args:
        key: a random key.
        segments_BL: 1 to P; 0 is padding. Segments are contiguous and ascend in a row.
        positions_BL: 0 where a segment begins.
        special_BL: tokens that are never chosen.
        starts_BL: pieces that begin a word, where words are chosen whole; None chooses single tokens.
        mask_rate: the share of a segment's tokens to choose.
        max_segments: P.

    Returns:
        int32 [B, L], the positions in ascending order. The rest of a row is L.
    """
    import jax
    import jax.numpy as jnp

    B, L = segments_BL.shape
    index_BL = jnp.broadcast_to(jnp.arange(L)[None], (B, L))
    number_BLP = segments_BL[:, :, None] == jnp.arange(max_segments + 1)[None, None]
    size_BL = jnp.take_along_axis(number_BLP.sum(axis=1), segments_BL, axis=1)
    quota_BL = jnp.maximum(1, jnp.round(mask_rate * size_BL).astype(jnp.int32))

    score_BL = jax.random.uniform(key, (B, L))
    word_size_BL = jnp.ones((B, L), jnp.int32)
    word_start_BL = index_BL
    if starts_BL is not None:
        starts_BL = starts_BL | special_BL | (positions_BL == 0)
        # A token after a special one begins a word even when its piece does not say so.
        starts_BL = starts_BL | jnp.pad(special_BL[:, :-1], ((0, 0), (1, 0)), constant_values=True)
        word_start_BL = jax.lax.cummax(jnp.where(starts_BL, index_BL, 0), axis=1)
        next_start_BL = jnp.where(starts_BL, index_BL, L)
        next_start_BL = jnp.pad(next_start_BL[:, 1:], ((0, 0), (0, 1)), constant_values=L)
        word_end_BL = jax.lax.cummin(next_start_BL, axis=1, reverse=True)
        word_size_BL = word_end_BL - word_start_BL
        score_BL = jnp.take_along_axis(score_BL, word_start_BL, axis=1)
    score_BL = jnp.where(special_BL, 2.0, score_BL)

    # Sorting by (segment, score) permutes tokens only within their segment. So the token at column j of the sorted row
    # has rank positions[j] in the random order of its segment.
    segment_key_BL = jnp.where(segments_BL == 0, max_segments + 1, segments_BL)
    operands = (segment_key_BL, score_BL, index_BL, word_size_BL, index_BL - word_start_BL, special_BL)
    _, _, index_BL, word_size_BL, offset_BL, special_BL = jax.lax.sort(operands, dimension=1, num_keys=3)
    if starts_BL is None:
        chosen_BL = (positions_BL < quota_BL) & ~special_BL
    else:
        chosen_BL = words_that_fit(offset_BL, word_size_BL, positions_BL, quota_BL, special_BL)
    return jnp.sort(jnp.where(chosen_BL, index_BL, L), axis=1)


def words_that_fit(
    offset_BL: jax.Array, word_size_BL: jax.Array, positions_BL: jax.Array, quota_BL: jax.Array, special_BL: jax.Array
) -> jax.Array:
    """Returns which tokens belong to a chosen word, bool [B, L], where each word is chosen that still fits.

    Args:
        offset_BL, word_size_BL: the place of a token in its word, and the number of tokens of the word.
        positions_BL: 0 where a segment begins.
        quota_BL: how many tokens the words of a segment may have together.
        special_BL: tokens that are never chosen.
    """
    import jax
    import jax.numpy as jnp

    def add(carry: tuple[jax.Array, jax.Array], column: tuple[jax.Array, ...]):
        room_B, takes_B = carry
        offset_B, size_B, position_B, quota_B, special_B = column
        room_B = jnp.where(position_B == 0, quota_B, room_B)
        begins_B = offset_B == 0
        takes_B = jnp.where(begins_B, (size_B <= room_B) & ~special_B, takes_B)
        return (jnp.where(begins_B & takes_B, room_B - size_B, room_B), takes_B), takes_B

    columns = jax.tree.map(jnp.transpose, (offset_BL, word_size_BL, positions_BL, quota_BL, special_BL))
    _, chosen_LB = jax.lax.scan(add, (jnp.zeros_like(quota_BL[:, 0]), jnp.zeros_like(special_BL[:, 0])), columns)
    return chosen_LB.T
