"""Logits processors: what a row may not write, or should rather not, given what it has written.

They follow transformers' classes of these names. Each changes the scores of some tokens of its own row alone.

Array names carry their shape: B rows, N beams of a row, V vocabulary, H tokens so far, W words of L tokens, S tokens.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lm.inference.options import NONE, RowOptions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """The tokens of each beam from the start token on.

    Attributes:
        tokens_BNH: int32. What follows the last token has no meaning.
        length_B: int32, the number of tokens.
    """

    tokens_BNH: jax.Array
    length_B: jax.Array


def history(given_BP: jax.Array, begin_B: jax.Array, tokens_BNT: jax.Array, written_B: jax.Array) -> History:
    """Returns the start token, the prompt and the tokens written.

    Args:
        given_BP: int32, the start token and the prompt. Padding follows.
        begin_B: int32, the length of the prompt.
        tokens_BNT: int32, the tokens written.
        written_B: int32, the number of tokens written.
    """
    columns_H = jnp.arange(given_BP.shape[1] + tokens_BNT.shape[2])
    place_BH = columns_H[None] - 1 - begin_B[:, None]  # among the tokens written
    written_BNH = jnp.take_along_axis(tokens_BNT, jnp.clip(place_BH, 0, tokens_BNT.shape[2] - 1)[:, None], axis=2)
    given_BH = jnp.pad(given_BP, ((0, 0), (0, tokens_BNT.shape[2])))
    tokens_BNH = jnp.where((place_BH < 0)[:, None], given_BH[:, None], written_BNH)
    return History(tokens_BNH, 1 + begin_B + written_B)


def process(
    scores_BNV: jax.Array,
    log_z_BN: jax.Array | None,
    options: RowOptions,
    past: History | None,
    length_B: jax.Array,
    ends: Sequence[int],
    never: float,
) -> jax.Array:
    """Returns the logits of the next token as the options change them.

    Args:
        scores_BNV: float32, the logits.
        log_z_BN: their log-sum-exp, where the log-probability is what a penalty changes; None where it is the logit.
        options: of the rows.
        past: see `history`; None where no option reads it.
        length_B: int32, the number of tokens that a row has written with the next one.
        ends: the ids of the end tokens.
        never: the score of a token that must not be chosen.
    """
    forbidden: list[jax.Array] = []  # int32 [B, N or 1, ...]: tokens that must not come next, NONE for none
    if past is not None:
        if options.repetition_penalty_B is not None:
            scores_BNV = _penalised(scores_BNV, log_z_BN, past, jnp.asarray(options.repetition_penalty_B))
        if options.no_repeat_ngram_size_B is not None:
            forbidden.append(_repeated(past, jnp.asarray(options.no_repeat_ngram_size_B)))
        if options.bad_words_BWL is not None:
            forbidden.append(_bad(past, jnp.asarray(options.bad_words_BWL), ends))
    for tokens_BNX in forbidden:
        scores_BNV = _without(scores_BNV, tokens_BNX, never)
    if options.forced_eos_B is not None:
        forced_B = jnp.asarray(options.forced_eos_B)
        is_forced_B = (forced_B != NONE) & (length_B == options.max_length_B)
        is_it_BV = jnp.arange(scores_BNV.shape[2])[None] == forced_B[:, None]
        certain_BN = jnp.zeros(scores_BNV.shape[:2]) if log_z_BN is None else log_z_BN  # log P is 0
        only_BNV = jnp.where(is_it_BV[:, None], certain_BN[:, :, None], never)
        scores_BNV = jnp.where(is_forced_B[:, None, None], only_BNV, scores_BNV)
    if options.suppressed_BS is not None:
        scores_BNV = _without(scores_BNV, jnp.asarray(options.suppressed_BS)[:, None], never)
    if options.begin_suppressed_BS is not None:
        first_BS = jnp.where(length_B[:, None] == 1, options.begin_suppressed_BS, NONE)
        scores_BNV = _without(scores_BNV, first_BS[:, None], never)
    return scores_BNV


def forced(options: RowOptions, length_B: jax.Array) -> jax.Array | None:
    """Returns whether the next token of each row is forced, bool [B]; None where none ever is."""
    if options.forced_eos_B is None:
        return None
    return (jnp.asarray(options.forced_eos_B) != NONE) & (length_B == options.max_length_B)


def _places(scores_BNV: jax.Array, tokens_BNX: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the indices of tokens in the scores. Those of NONE lie outside."""
    rows, beams, size = scores_BNV.shape
    rows_B11, beams_1N1 = jnp.arange(rows)[:, None, None], jnp.arange(beams)[None, :, None]
    return rows_B11, beams_1N1, jnp.where(tokens_BNX == NONE, size, tokens_BNX)


def _without(scores_BNV: jax.Array, tokens_BNX: jax.Array, never: float) -> jax.Array:
    return scores_BNV.at[_places(scores_BNV, tokens_BNX)].set(never, mode="drop")


def _penalised(scores_BNV: jax.Array, log_z_BN: jax.Array | None, past: History, penalty_B: jax.Array) -> jax.Array:
    """Returns the scores with those of the tokens so far penalised."""
    is_past_BH = jnp.arange(past.tokens_BNH.shape[2])[None] < past.length_B[:, None]
    places = _places(scores_BNV, jnp.where(is_past_BH[:, None], past.tokens_BNH, NONE))
    found_BNH = scores_BNV.at[places].get(mode="fill", fill_value=0)
    penalty_B11 = penalty_B[:, None, None]
    offset_BN1 = 0.0 if log_z_BN is None else log_z_BN[:, :, None]
    shifted_BNH = found_BNH - offset_BN1
    changed_BNH = jnp.where(shifted_BNH < 0, shifted_BNH * penalty_B11, shifted_BNH / penalty_B11) + offset_BN1
    return scores_BNV.at[places].set(jnp.where(penalty_B11 == 1, found_BNH, changed_BNH), mode="drop")


def _repeated(past: History, size_B: jax.Array) -> jax.Array:
    """Returns the tokens that would complete an n-gram a second time, [B, N, H].

    A token at position p is one if the n - 1 tokens before it are the last n - 1 tokens.
    """
    tokens_BNH, last_B = past.tokens_BNH, past.length_B - 1
    place_BH = jnp.broadcast_to(jnp.arange(tokens_BNH.shape[2])[None], (len(size_B), tokens_BNH.shape[2]))
    is_possible_BH = (size_B > 0)[:, None] & (place_BH >= size_B[:, None] - 1) & (place_BH <= last_B[:, None])

    def compare(back: jax.Array, matches_BNH: jax.Array) -> jax.Array:
        recent_B11 = jnp.maximum(last_B - back, 0)[:, None, None]
        is_equal_BNH = jnp.roll(tokens_BNH, back + 1, axis=2) == jnp.take_along_axis(tokens_BNH, recent_B11, axis=2)
        return matches_BNH & (is_equal_BNH | (back >= size_B - 1)[:, None, None])

    matches_BNH = jnp.broadcast_to(is_possible_BH[:, None], tokens_BNH.shape)
    matches_BNH = jax.lax.fori_loop(0, size_B.max() - 1, compare, matches_BNH)
    return jnp.where(matches_BNH, tokens_BNH, NONE)


def _bad(past: History, words_BWL: jax.Array, ends: Sequence[int]) -> jax.Array:
    """Returns the last tokens of the bad words whose other tokens are the last tokens, [B, N, W]."""
    before = words_BWL.shape[2] - 1
    final_BW, prefix_BWL = words_BWL[:, :, -1], words_BWL[:, :, :-1]
    place_BL = past.length_B[:, None] - before + jnp.arange(before)[None]
    recent_BNL = jnp.take_along_axis(past.tokens_BNH, jnp.maximum(place_BL, 0)[:, None], axis=2)
    recent_BNL = jnp.where((place_BL >= 0)[:, None], recent_BNL, NONE - 1)  # nothing is there
    is_equal_BNWL = recent_BNL[:, :, None] == prefix_BWL[:, None]
    matches_BNW = (is_equal_BNWL | (prefix_BWL == NONE)[:, None]).all(axis=3)
    is_lone_end_BW = jnp.isin(final_BW, jnp.array(ends)) & (prefix_BWL == NONE).all(axis=2)
    return jnp.where(matches_BNW & ~is_lone_end_BW[:, None], final_BW[:, None], NONE)
