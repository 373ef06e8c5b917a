"""Decoding: greedy, sampling and beam search, each one loop on the device with a cache of keys and values.

Rows of different lengths decode together and do not change one another; the loop ends when all have ended.

Array names carry their shape: B sequences, N hypotheses of each (beams), P prompt length, T decoded length,
V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import InputError
from lm.models import Cache, Memory, Model, Params, Seq2Seq
from lm.sharding import constrain

_NEVER = -1.0e9  # the score of what must not be chosen; finite, so that sums of it stay ordered
_BLOCK = 128  # of the vocabulary, when the largest are looked for


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How to decode.

    Attributes:
        max_length, min_length: generated tokens, the end of the sequence included.
        num_beams: hypotheses that beam search carries along; 1 decodes greedily, or samples.
        length_penalty: a hypothesis scores its log-probability over its length to this power.
        temperature: 0 takes the most probable token; otherwise tokens are sampled from softmax(logits / temperature)
            restricted to the `top_k` most probable (0: all) and to the fewest that have probability `top_p` together.
    """

    max_length: int = 128
    min_length: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("max_length", 1), ("min_length", 0), ("num_beams", 1), ("temperature", 0), ("top_k", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.min_length > self.max_length:
            raise InputError(f"min_length is {self.min_length}, but max_length {self.max_length}; raise max_length.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.num_beams > 1 and self.temperature:
            raise InputError("temperature is for sampling, num_beams for beam search; give one of them.")
        if (self.top_k or self.top_p < 1) and not self.temperature:
            raise InputError("top_k and top_p restrict sampling; give a temperature above 0, such as 1, as well.")


class Sources(NamedTuple):
    """What an encoder reads: int32 [B, S]; segment 1 is text, 0 padding."""

    tokens_BS: jax.Array | np.ndarray
    segments_BS: jax.Array | np.ndarray


class Prompts(NamedTuple):
    """What a decoder has to begin with: int32 tokens [B, P] and how many of them count [B], perhaps none."""

    tokens_BP: jax.Array | np.ndarray
    lengths_B: jax.Array | np.ndarray


class Decoded(NamedTuple):
    """The N best sequences of each row, best first.

    Attributes:
        tokens_BNT: int32, without the prompt; padding follows the end of the sequence.
        scores_BN: float32, log-probability over length to the power of `length_penalty`.
    """

    tokens_BNT: jax.Array
    scores_BN: jax.Array


Generate = Callable[[Params, Sources | None, Prompts, jax.Array], Decoded]


def make_generate(
    model: Model, options: Decoding, *, start_id: int, end_id: int, pad_id: int, vocab_size: int
) -> Generate:
    """The function that decodes a batch, for `jax.jit`.

    Args:
        model: an encoder-decoder or a decoder.
        options: how.
        start_id, end_id, pad_id: the token that the decoder is given first, the one that ends a sequence, and what
            fills the rows after it.
        vocab_size: ids from here on only pad the vocabulary and are never chosen.

    Returns:
        A function of parameters, sources (None for a decoder alone), prompts and a random key for each row [B].
    """
    search = _beam_search if options.num_beams > 1 else _one_by_one

    def generate(params: Params, sources: Sources | None, prompts: Prompts, keys_B: jax.Array) -> Decoded:
        module: Seq2Seq = model.merge(params)
        prompts = Prompts(*map(jnp.asarray, prompts))
        total = prompts.tokens_BP.shape[1] + options.max_length
        shape_BN = (len(prompts.tokens_BP), options.num_beams)
        steps = module.steps(_read(module, sources), (*shape_BN, total))

        def predict(tokens_BN: jax.Array, step: jax.Array, cache: Cache) -> tuple[jax.Array, jax.Array, Cache]:
            """Logits of the next token [B, N, V], and log Z [B, N]: log P is their difference.

            The difference is taken of the few that are chosen: the vocabulary is too large to be written once more.
            """
            logits_BNV, cache = steps(tokens_BN, step, cache)
            tokens_11V = jnp.arange(module.vocab_size)[None, None]
            too_early_B11 = (step - prompts.lengths_B + 1 < options.min_length)[:, None, None]
            end_BN = logits_BNV[:, :, end_id]
            allowed_B1V = (tokens_11V < vocab_size) & ~(too_early_B11 & (tokens_11V == end_id))
            logits_BNV = jnp.where(allowed_B1V, logits_BNV, _NEVER)
            log_z_BN = _log_sum_exp(logits_BNV)
            # Z counts an end that comes too early: added here, because writing all logits twice would take longer.
            log_z_BN = jnp.where(too_early_B11[:, 0], jnp.logaddexp(log_z_BN, end_BN), log_z_BN)
            return constrain(logits_BNV, "BNV"), log_z_BN, cache

        first_BN = jnp.full(shape_BN, start_id, jnp.int32)
        tokens_BNT, scores_BN = search(options, predict, steps.empty(), first_BN, prompts, keys_B, end_id, pad_id)
        # Column t holds the token after t others, prompt included: move each row's own part to the front.
        at_BT = prompts.lengths_B[:, None] + jnp.arange(options.max_length)[None]
        return Decoded(jnp.take_along_axis(tokens_BNT, at_BT[:, None], axis=2), scores_BN)

    return generate


def _read(module: Seq2Seq, sources: Sources | None) -> Memory | None:
    if sources is None:
        return None
    tokens_BS, segments_BS = map(jnp.asarray, sources)
    positions_BS = jnp.broadcast_to(jnp.arange(tokens_BS.shape[1])[None], tokens_BS.shape)
    return module.encode(tokens_BS, segments_BS, positions_BS)


def _forced(prompts: Prompts, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each row still reads its prompt, and the prompt's token there."""
    token_B = jax.lax.dynamic_index_in_dim(
        jnp.pad(prompts.tokens_BP, ((0, 0), (0, 1))), jnp.minimum(step, prompts.tokens_BP.shape[1]), 1, keepdims=False
    )
    return step < prompts.lengths_B, token_B


def _write(tokens_BNT: jax.Array, column: jax.Array, new_BN: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(tokens_BNT, new_BN[:, :, None], column, axis=2)


def _one_by_one(
    options: Decoding,
    predict: Callable[..., tuple[jax.Array, jax.Array, Cache]],
    cache: Cache,
    first_BN: jax.Array,
    prompts: Prompts,
    keys_B: jax.Array,
    end_id: int,
    pad_id: int,
) -> tuple[jax.Array, jax.Array]:
    """Greedy decoding or sampling: tokens [B, 1, P + T] and scores [B, 1]."""
    rows = len(first_BN)
    total = prompts.tokens_BP.shape[1] + options.max_length

    def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
        step, last_B1, tokens_B1T, score_B, done_B, cache = state
        logits_B1V, log_z_B1, cache = predict(last_B1, step, cache)
        logits_BV = logits_B1V[:, 0]
        if options.temperature:
            step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
            chosen_B = jax.vmap(jax.random.categorical)(step_keys_B, _restricted(logits_BV, options))
        else:
            chosen_B = _largest(logits_B1V, 1)[1][:, 0, 0]
        forced_B, prompt_B = _forced(prompts, step)
        next_B = jnp.where(forced_B, prompt_B, jnp.where(done_B, pad_id, chosen_B)).astype(jnp.int32)
        gained_B = (jnp.take_along_axis(logits_BV, next_B[:, None], axis=1) - log_z_B1)[:, 0]
        score_B = score_B + jnp.where(forced_B | done_B, 0.0, gained_B)
        length_B = step + 1 - prompts.lengths_B
        done_B |= ~forced_B & ((next_B == end_id) | (length_B >= options.max_length))
        return step + 1, next_B[:, None], _write(tokens_B1T, step, next_B[:, None]), score_B, done_B, cache

    tokens_B1T = jnp.full((rows, 1, total), pad_id, jnp.int32)
    state = (jnp.int32(0), first_BN, tokens_B1T, jnp.zeros(rows), jnp.zeros(rows, bool), cache)
    _, _, tokens_B1T, score_B, _, _ = jax.lax.while_loop(
        lambda state: (state[0] < total) & ~state[4].all(), body, state
    )
    generated_B = jnp.arange(total)[None] >= prompts.lengths_B[:, None]
    ended_B = (tokens_B1T[:, 0] == end_id) & generated_B
    length_B = jnp.where(
        ended_B.any(axis=1), ended_B.argmax(axis=1) + 1 - prompts.lengths_B, options.max_length
    ).astype(jnp.float32)
    return tokens_B1T, (score_B / length_B**options.length_penalty)[:, None]


def _restricted(logits_BV: jax.Array, options: Decoding) -> jax.Array:
    """Logits to sample from: with temperature, and -inf outside of top-k and top-p (Holtzman et al., 2020)."""
    logits_BV = logits_BV / options.temperature
    if options.top_k:
        kept = min(options.top_k, logits_BV.shape[1])
        least_B1 = jax.lax.top_k(logits_BV, kept)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if options.top_p < 1:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        before_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1) - jax.nn.softmax(sorted_BV, axis=-1)
        least_B1 = jnp.where(before_BV < options.top_p, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    return logits_BV


class _Beams(NamedTuple):
    """The state of beam search before step `step`.

    Attributes:
        alive_tokens, finished_tokens: [B, N, T]; alive_scores: log-probabilities [B, N], descending.
        finished_scores: [B, N], divided by the length's power, descending; _NEVER for none yet.
        open_B: whether an alive hypothesis may still beat a finished one.
    """

    step: jax.Array
    last_BN: jax.Array
    alive_tokens: jax.Array
    alive_scores: jax.Array
    finished_tokens: jax.Array
    finished_scores: jax.Array
    open_B: jax.Array
    cache: Cache


def _beam_search(
    options: Decoding,
    predict: Callable[..., tuple[jax.Array, jax.Array, Cache]],
    cache: Cache,
    first_BN: jax.Array,
    prompts: Prompts,
    keys_B: jax.Array,
    end_id: int,
    pad_id: int,
) -> tuple[jax.Array, jax.Array]:
    """The N best finished hypotheses: tokens [B, N, P + T] and scores [B, N].

    Of the 2 N best continuations of all hypotheses, those among the first N that end are finished; the N best of
    the others go on. A sequence is closed when its best alive hypothesis, at its present length, scores no better
    than the worst of N finished ones.
    """
    del keys_B
    beams = options.num_beams
    rows = len(first_BN)
    total = prompts.tokens_BP.shape[1] + options.max_length

    def body(state: _Beams) -> _Beams:
        logits_BNV, log_z_BN, cache = predict(state.last_BN, state.step, state.cache)
        # 2 N candidates: if N of them end, N are left to go on.
        logits_BNC, tokens_BNC = _largest(logits_BNV, 2 * beams)
        scores_BNC = logits_BNC - log_z_BN[:, :, None] + state.alive_scores[:, :, None]
        best_BC, index_BC = jax.lax.top_k(scores_BNC.reshape(rows, -1), 2 * beams)
        parent_BC = index_BC // scores_BNC.shape[-1]
        token_BC = jnp.take_along_axis(tokens_BNC.reshape(rows, -1), index_BC, axis=1)
        length_B = state.step + 1 - prompts.lengths_B
        ends_BC = (token_BC == end_id) | (length_B >= options.max_length)[:, None]
        forced_B, prompt_B = _forced(prompts, state.step)

        # ---- Those that end --------------------------------------------------------------
        tokens_BCT = jnp.take_along_axis(state.alive_tokens, parent_BC[:, :, None], axis=1)
        tokens_BCT = _write(tokens_BCT, state.step, token_BC)
        may_finish_BC = ends_BC & (jnp.arange(2 * beams) < beams)[None] & (state.open_B & ~forced_B)[:, None]
        power_B1 = jnp.maximum(length_B, 1).astype(jnp.float32)[:, None] ** options.length_penalty
        scores_BF = jnp.concatenate(
            [state.finished_scores, jnp.where(may_finish_BC, best_BC / power_B1, _NEVER)], axis=1
        )
        finished_scores, kept_BN = jax.lax.top_k(scores_BF, beams)
        finished_tokens = jnp.concatenate([state.finished_tokens, tokens_BCT], axis=1)
        finished_tokens = jnp.take_along_axis(finished_tokens, kept_BN[:, :, None], axis=1)

        # ---- Those that go on ------------------------------------------------------------
        alive_scores, kept_BN = jax.lax.top_k(jnp.where(ends_BC, best_BC + _NEVER, best_BC), beams)
        same_BN = jnp.broadcast_to(jnp.arange(beams)[None], (rows, beams))
        parent_BN = jnp.where(forced_B[:, None], same_BN, jnp.take_along_axis(parent_BC, kept_BN, axis=1))
        last_BN = jnp.where(forced_B[:, None], prompt_B[:, None], jnp.take_along_axis(token_BC, kept_BN, axis=1))
        alive_tokens = jnp.take_along_axis(state.alive_tokens, parent_BN[:, :, None], axis=1)
        alive_scores = jnp.where(forced_B[:, None], state.alive_scores, alive_scores)
        better_B = alive_scores[:, 0] / power_B1[:, 0] > finished_scores.min(axis=1)
        return _Beams(
            step=state.step + 1,
            last_BN=last_BN,
            alive_tokens=_write(alive_tokens, state.step, last_BN),
            alive_scores=alive_scores,
            finished_tokens=finished_tokens,
            finished_scores=finished_scores,
            open_B=state.open_B & (forced_B | better_B) & (length_B < options.max_length),
            cache=cache.branch(parent_BN),
        )

    empty = jnp.full((rows, beams, total), pad_id, jnp.int32)
    state = _Beams(
        step=jnp.int32(0),
        last_BN=first_BN,
        alive_tokens=empty,
        # One hypothesis to begin with: equal ones would all take the same continuations.
        alive_scores=jnp.broadcast_to(jnp.where(jnp.arange(beams) == 0, 0.0, _NEVER)[None], (rows, beams)),
        finished_tokens=empty,
        finished_scores=jnp.full((rows, beams), _NEVER),
        open_B=jnp.ones(rows, bool),
        cache=cache,
    )
    state = jax.lax.while_loop(lambda state: (state.step < total) & state.open_B.any(), body, state)
    return state.finished_tokens, state.finished_scores


def _largest(scores_BNV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest scores of each hypothesis, descending, and their tokens: [B, N, C].

    The largest are in those blocks whose own largest are the largest, so that all but `count` blocks of the
    vocabulary are read once and not sorted.
    """
    size = scores_BNV.shape[-1]
    count = min(count, size)
    if size < 2 * _BLOCK * count:
        return jax.lax.top_k(scores_BNV, count)
    rows = scores_BNV.shape[:2]
    blocks_BNYK = _blocks(scores_BNV)
    block_BNC = jnp.sort(jax.lax.top_k(blocks_BNYK.max(axis=-1), count)[1], axis=-1)
    candidates_BNCK = jnp.take_along_axis(blocks_BNYK, block_BNC[..., None], axis=2)
    best_BNC, place_BNC = jax.lax.top_k(candidates_BNCK.reshape(*rows, -1), count)
    chosen_BNC = jnp.take_along_axis(block_BNC, place_BNC // _BLOCK, axis=2)
    return best_BNC, (chosen_BNC * _BLOCK + place_BNC % _BLOCK).astype(jnp.int32)


def _log_sum_exp(scores_BNV: jax.Array) -> jax.Array:
    """Of each hypothesis [B, N]; block by block, as `_largest` reads them, so that they are written once for both."""
    blocks_BNYK = _blocks(scores_BNV)
    largest_BN = jax.lax.optimization_barrier(blocks_BNYK.max(axis=-1)).max(axis=-1)
    return largest_BN + jnp.log(jnp.exp(blocks_BNYK - largest_BN[:, :, None, None]).sum(axis=(-2, -1)))


def _blocks(scores_BNV: jax.Array) -> jax.Array:
    """The scores in blocks of the vocabulary, [B, N, Y, K], -inf where the last one is not full."""
    padding = ((0, 0), (0, 0), (0, -scores_BNV.shape[2] % _BLOCK))
    return jnp.pad(scores_BNV, padding, constant_values=-jnp.inf).reshape(*scores_BNV.shape[:2], -1, _BLOCK)
