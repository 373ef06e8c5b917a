"""Greedy decoding, sampling and beam search over a batch whose rows start and end at different times.

`insert` puts new sources and prompts into rows of a running state. `advance` takes steps for all rows. `read` returns
what the rows have written. `generate` does all three in one program. A row's tokens do not depend on the other rows.

Array names carry their shape: B rows, R inserted rows, N beams of a row, P prompt length, T written tokens,
V vocabulary, C candidates.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.inference import processors, sampling
from lm.inference.decode_state import NEVER, Beams, Decoded, DecodeState, Shape, TokenIds, Tops
from lm.inference.options import NEVER_STOPS_EARLY, STOPS_WHEN_FULL, Decoding, Extras, RowOptions, row_options
from lm.models import Cache, Decoder, Model, Params, Prompts, Sources, make_decoder
from lm.ops.vocabulary import largest, log_sum_exp
from lm.sharding import constrain


def begin(
    decoder: Decoder, ids: TokenIds, shape: Shape, sources: Sources | None, prompts: Prompts, options: RowOptions
) -> DecodeState:
    """Returns a state whose cache holds the sources and prompts, and whose rows have written nothing."""
    rows, beams = len(prompts.tokens_BP), shape.num_beams
    begin_B = jnp.asarray(prompts.lengths_B, jnp.int32)
    # The decoder's first inputs are the start token and the prompt. All but the last go into the cache here.
    given_BP = jnp.pad(jnp.asarray(prompts.tokens_BP, jnp.int32), ((0, 0), (1, 0)), constant_values=ids.start)
    last_B1 = jnp.take_along_axis(given_BP, begin_B[:, None], axis=1)
    cache = decoder.for_rows(options.adapter_B).begin(
        sources,
        Prompts(given_BP[:, :-1], begin_B),
        positions=shape.prompt + shape.written,
        num_beams=beams,
        source_length=shape.source,
    )
    tokens_BNT = jnp.full((rows, beams, shape.written), ids.pad, jnp.int32)
    # Only beam 0 is alive at the beginning. Equal beams would all choose the same continuations.
    scores_BN = jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, NEVER)[None], (rows, beams))
    return DecodeState(
        cache=cache,
        options=jax.tree.map(jnp.asarray, options),
        begin_B=begin_B,
        given_BP=given_BP if options.reads_history else None,
        last_BN=jnp.broadcast_to(last_B1, (rows, beams)),
        tokens_BNT=tokens_BNT,
        scores_BN=scores_BN,
        beams=Beams(tokens_BNT, jnp.full((rows, beams), NEVER)) if beams > 1 else None,
        tops=Tops(jnp.zeros((rows, shape.tops), jnp.int32), jnp.zeros((rows, shape.tops))) if shape.tops else None,
        done_B=jnp.zeros(rows, bool),
        shape=shape,
        ids=ids,
    )


def empty(decoder: Decoder, ids: TokenIds, shape: Shape, rows: int, extras: Extras | None = None) -> DecodeState:
    """Returns a state whose rows are all empty.

    Args:
        decoder, ids, shape: see `begin`.
        rows: B.
        extras: the optional arrays of the options of all rows that will be inserted; None is none.
    """
    zeros = functools.partial(jnp.zeros, dtype=jnp.int32)
    sources = Sources(zeros((rows, shape.source)), zeros((rows, shape.source))) if shape.source else None
    prompts = Prompts(zeros((rows, shape.prompt)), zeros(rows))
    keys_B = jnp.broadcast_to(jax.random.key(0), (rows,))
    unused = row_options([Decoding(max_length=1)] * rows, keys_B, extras or Extras())
    shapes = jax.eval_shape(lambda: begin(decoder, ids, shape, sources, prompts, unused))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return dataclasses.replace(state, done_B=jnp.ones(rows, bool))


def insert(
    decoder: Decoder,
    state: DecodeState,
    rows_R: jax.Array | np.ndarray,
    sources: Sources | None,
    prompts: Prompts,
    options: RowOptions,
) -> DecodeState:
    """Returns a running state with new sources and prompts in some of its rows.

    Args:
        decoder: the decoder that made the state.
        state: a state of B rows.
        rows_R: int32, the rows to replace. A number of B or more is ignored.
        sources, prompts, options: those of R rows, no longer than `state.shape` allows. The options have the optional
            arrays of the state's.
    """
    new = begin(decoder, state.ids, state.shape, sources, prompts, options)
    return jax.tree.map(lambda old, new: old.at[jnp.asarray(rows_R)].set(new, mode="drop"), state, new)


def advance(decoder: Decoder, state: DecodeState, steps: jax.Array | int) -> DecodeState:
    """Returns the state after `steps` steps, or fewer if all rows are done. A step writes a token for every beam."""
    step = _search_beams if state.beams is not None else _take_one

    def body(count_and_state: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
        count, state = count_and_state
        return count + 1, step(decoder, state)

    def goes_on(count_and_state: tuple[jax.Array, DecodeState]) -> jax.Array:
        count, state = count_and_state
        return (count < steps) & ~state.done_B.all()

    return jax.lax.while_loop(goes_on, body, (jnp.int32(0), state))[1]


def read(state: DecodeState) -> Decoded:
    """Returns what the rows have written; with beam search, the finished beams."""
    if state.beams is not None:
        return Decoded(*state.beams)
    power_B1 = _length(state).astype(jnp.float32)[:, None] ** state.options.length_penalty_B[:, None]
    return Decoded(state.tokens_BNT, state.scores_BN / power_B1)


def generate(
    model: Model,
    ids: TokenIds,
    shape: Shape,
    params: Params,
    sources: Sources | None,
    prompts: Prompts,
    options: RowOptions,
) -> Decoded:
    """Decodes a batch until all rows are done. For jit, bind the first three arguments by `functools.partial`."""
    decoder = make_decoder(model.merge(params), len(prompts.tokens_BP) * shape.num_beams)
    return read(advance(decoder, begin(decoder, ids, shape, sources, prompts, options), shape.written))


def _length(state: DecodeState) -> jax.Array:
    """Returns how many tokens each row has written, but at least 1, int32 [B]."""
    return jnp.maximum(state.cache.position_B - state.begin_B, 1)


def _predict(decoder: Decoder, state: DecodeState) -> tuple[jax.Array, jax.Array, Cache]:
    """Returns the logits of the next token [B, N, V], log Z [B, N], and the cache with the last token.

    log P is logits minus log Z. The caller subtracts for the few tokens that it chooses; for the whole vocabulary this
    would write all logits once more.
    """
    ids = state.ids
    logits_BNV, cache = decoder.for_rows(state.options.adapter_B)(state.last_BN, state.cache)
    tokens_11V = jnp.arange(logits_BNV.shape[2])[None, None]
    too_early_B11 = (_count(cache, state) < state.options.min_length_B)[:, None, None]
    ends_BN = [logits_BNV[:, :, end] for end in ids.ends]
    allowed_B1V = (tokens_11V < ids.vocab_size) & ~(too_early_B11 & ids.is_end(tokens_11V))
    logits_BNV = jnp.where(allowed_B1V, logits_BNV, NEVER)
    log_z_BN = log_sum_exp(logits_BNV)
    # Z includes the end tokens even where they are masked because they come too early. Adding them here is faster than
    # writing both the masked and the unmasked logits.
    for end_BN in ends_BN:
        log_z_BN = jnp.where(too_early_B11[:, 0], jnp.logaddexp(log_z_BN, end_BN), log_z_BN)
    cache = dataclasses.replace(cache, position_B=jnp.where(state.done_B, state.cache.position_B, cache.position_B))
    return constrain(logits_BNV, "BNV"), log_z_BN, cache


def _count(cache: Cache, state: DecodeState) -> jax.Array:
    """Returns how many tokens each row has written once the next one is chosen, int32 [B].

    Args:
        cache: after the decoder's call that gave the logits of the next token.
        state: before that call.
    """
    return cache.position_B - state.begin_B


def _process(logits_BNV: jax.Array, log_z_BN: jax.Array | None, state: DecodeState, length_B: jax.Array) -> jax.Array:
    """Returns the logits as the options change them; see `processors.process`."""
    past = None
    if state.given_BP is not None:
        past = processors.history(state.given_BP, state.begin_B, state.tokens_BNT, length_B - 1)
    return processors.process(logits_BNV, log_z_BN, state.options, past, length_B, state.ids.ends, NEVER)


def _write(tokens_BXT: jax.Array, column_B: jax.Array, new_BX: jax.Array) -> jax.Array:
    """Returns the tokens with a new token of each beam at the column of its row."""
    is_here_B1T = (jnp.arange(tokens_BXT.shape[2])[None] == column_B[:, None])[:, None]
    return jnp.where(is_here_B1T, new_BX[:, :, None], tokens_BXT)


# ---- Greedy decoding and sampling -----------------------------------------------------------


def _take_one(decoder: Decoder, state: DecodeState) -> DecodeState:
    """Returns the state after one more token of each row, the most probable one or a sample."""
    ids, options = state.ids, state.options
    logits_B1V, log_z_B1, cache = _predict(decoder, state)
    length_B = _count(cache, state)
    scores_B1V = _process(logits_B1V, None, state, length_B)
    chosen_B1 = largest(scores_B1V, 1)[1][:, :, 0]
    samples_B = (options.temperature_B > 0) & ~state.done_B
    position_B = state.cache.position_B
    drawn_B1 = jax.lax.cond(samples_B.any(), sampling.draw, lambda *_: chosen_B1, scores_B1V, options, position_B)
    next_B1 = jnp.where(samples_B[:, None], drawn_B1, chosen_B1)
    next_B1 = jnp.where(state.done_B[:, None], ids.pad, next_B1).astype(jnp.int32)
    gained_B1 = jnp.take_along_axis(logits_B1V[:, 0], next_B1, axis=1) - log_z_B1
    is_forced_B = processors.forced(options, length_B)
    if is_forced_B is not None:
        gained_B1 = jnp.where(is_forced_B[:, None], 0.0, gained_B1)
    column_B = jnp.where(state.done_B, -1, length_B - 1)
    return dataclasses.replace(
        state,
        cache=cache,
        tops=_find_tops(logits_B1V, log_z_B1, state.shape.tops),
        last_BN=next_B1,
        tokens_BNT=_write(state.tokens_BNT, column_B, next_B1),
        scores_BN=state.scores_BN + jnp.where(state.done_B[:, None], 0.0, gained_B1),
        done_B=state.done_B | ids.is_end(next_B1[:, 0]) | (length_B >= options.max_length_B),
    )


def _find_tops(logits_B1V: jax.Array, log_z_B1: jax.Array, count: int) -> Tops | None:
    if not count:
        return None
    best_B1C, tokens_B1C = largest(logits_B1V, count)
    return Tops(tokens_B1C[:, 0], best_B1C[:, 0] - log_z_B1)


# ---- Beam search ----------------------------------------------------------------------------


def _search_beams(decoder: Decoder, state: DecodeState) -> DecodeState:
    """Returns the state after one more token of each beam.

    Of the C best continuations, those that end and are among the best N become finished beams. The N best of those
    that do not end stay alive. A row is done when `early_stopping` says so: by default when its best alive beam, scored
    at its present length, is no better than the worst of its N finished beams.
    """
    logits_BNV, log_z_BN, cache = _predict(decoder, state)
    rows, beams = log_z_BN.shape
    options, length_B = state.options, _count(cache, state)
    logits_BNV = _process(logits_BNV, log_z_BN, state, length_B)
    # Of C candidates at most one for each beam and end token is an end. So at least N others remain.
    candidates = (1 + len(state.ids.ends)) * beams
    logits_BNC, tokens_BNC = largest(logits_BNV, candidates)
    scores_BNC = logits_BNC - log_z_BN[:, :, None] + state.scores_BN[:, :, None]
    best_BC, index_BC = jax.lax.top_k(scores_BNC.reshape(rows, -1), candidates)
    parent_BC = index_BC // scores_BNC.shape[-1]
    token_BC = jnp.take_along_axis(tokens_BNC.reshape(rows, -1), index_BC, axis=1)
    is_last_B = length_B >= options.max_length_B
    ends_BC = state.ids.is_end(token_BC) | is_last_B[:, None]
    power_B1 = _power(length_B, options)

    may_finish_BC = ends_BC & (jnp.arange(candidates) < beams)[None] & ~state.done_B[:, None]
    if options.early_stopping_B is not None:  # then the finished beams are counted
        may_finish_BC &= best_BC > NEVER / 2
    tokens_BCT = jnp.take_along_axis(state.tokens_BNT, parent_BC[:, :, None], axis=1)
    tokens_BCT = _write(tokens_BCT, length_B - 1, token_BC)
    finished = _finish(state, tokens_BCT, jnp.where(may_finish_BC, best_BC / power_B1, NEVER))

    alive_BN, kept_BN = jax.lax.top_k(jnp.where(ends_BC, best_BC + NEVER, best_BC), beams)
    parent_BN = jnp.take_along_axis(parent_BC, kept_BN, axis=1)
    last_BN = jnp.take_along_axis(token_BC, kept_BN, axis=1)
    tokens_BNT = jnp.take_along_axis(state.tokens_BNT, parent_BN[:, :, None], axis=1)
    may_improve_B = _may_improve(state, alive_BN[:, 0], power_B1[:, 0], finished.scores_BN.min(axis=1))
    return dataclasses.replace(
        state,
        cache=cache.branch(parent_BN),
        last_BN=last_BN,
        tokens_BNT=_write(tokens_BNT, length_B - 1, last_BN),
        scores_BN=alive_BN,
        beams=finished,
        done_B=state.done_B | ~may_improve_B | is_last_B,
    )


def _power(length_B: jax.Array, options: RowOptions) -> jax.Array:
    """Returns what the log-probability of a sequence is divided by, float32 [B, 1]."""
    length_B = jnp.maximum(length_B, 1)
    if options.forced_B is not None:
        length_B += options.forced_B
    return length_B.astype(jnp.float32)[:, None] ** options.length_penalty_B[:, None]


def _may_improve(state: DecodeState, best_B: jax.Array, power_B: jax.Array, worst_B: jax.Array) -> jax.Array:
    """Returns whether beams that are alive may still replace finished ones, bool [B], by `early_stopping`.

    Args:
        state: its options.
        best_B: the log-probability of the best beam that is alive.
        power_B: what it is divided by at its present length.
        worst_B: the score of the worst finished beam; NEVER where fewer than N are finished.
    """
    options = state.options
    if options.early_stopping_B is None:
        return best_B / power_B > worst_B
    waits_B = (options.early_stopping_B == NEVER_STOPS_EARLY) & (options.length_penalty_B > 0)
    longest_B = _power(jnp.asarray(options.max_length_B), options)[:, 0]
    is_full_B = (options.early_stopping_B == STOPS_WHEN_FULL) & (worst_B > NEVER)
    return (best_B / jnp.where(waits_B, longest_B, power_B) > worst_B) & ~is_full_B


def _finish(state: DecodeState, tokens_BCT: jax.Array, scores_BC: jax.Array) -> Beams:
    """Returns the N best of the finished beams and of the candidates that have just ended."""
    assert state.beams is not None
    scores_BF = jnp.concatenate([state.beams.scores_BN, scores_BC], axis=1)
    scores_BN, kept_BN = jax.lax.top_k(scores_BF, state.scores_BN.shape[1])
    tokens_BFT = jnp.concatenate([state.beams.tokens_BNT, tokens_BCT], axis=1)
    return Beams(jnp.take_along_axis(tokens_BFT, kept_BN[:, :, None], axis=1), scores_BN)
