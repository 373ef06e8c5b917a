"""Processors equal their definitions, written token by token, on random histories. No model is needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.inference import processors
from lm.inference.options import Decoding, row_options

B, N, P, T, V = 5, 2, 3, 9, 8  # few tokens, so that they repeat
END, NEVER = 3, -1.0e9

OPTIONS = [
    Decoding(),
    Decoding(no_repeat_ngram_size=1, bad_words_ids=[[END], [6]], suppress_tokens=[1]),
    Decoding(no_repeat_ngram_size=2, repetition_penalty=1.5, begin_suppress_tokens=[2, 4]),
    Decoding(no_repeat_ngram_size=3, repetition_penalty=0.5, bad_words_ids=[[1, 2], [4, 0, 5]]),
    Decoding(max_length=6, forced_eos_token_id=END, no_repeat_ngram_size=7, suppress_tokens=[1, 2]),
]


def expected(scores_V: np.ndarray, past: list[int], options: Decoding, written: int, shift: float) -> np.ndarray:
    """The definitions. A penalty changes scores minus `shift`."""
    scores_V, n = scores_V.copy(), options.no_repeat_ngram_size
    for token in set(past):
        score = scores_V[token] - shift
        penalty = options.repetition_penalty
        scores_V[token] = (score * penalty if score < 0 else score / penalty) + shift
    grams = {tuple(past[i : i + n]) for i in range(len(past) - n + 1)} if n else set()
    words = [tuple(word) for word in options.bad_words_ids if tuple(word) != (END,)]
    for token in range(V):
        if (n and (*past[len(past) - n + 1 :], token) in grams and len(past) >= n) or any(
            word == (*past[len(past) - len(word) + 1 :], token) for word in words if len(word) <= len(past) + 1
        ):
            scores_V[token] = NEVER
    if options.forced_eos_token_id >= 0 and written + 1 == options.max_length:
        scores_V[:] = NEVER
        scores_V[options.forced_eos_token_id] = shift
    for token in options.suppress_tokens:
        scores_V[token] = NEVER
    for token in options.begin_suppress_tokens if written == 0 else ():
        scores_V[token] = NEVER
    return scores_V


@pytest.mark.parametrize("is_beam_search", [False, True])
def test_every_option_equals_its_definition(is_beam_search):
    rng = np.random.default_rng(0)
    given_BP, begin_B = rng.integers(0, V, (B, P + 1)), np.array([0, 1, 2, 3, 3])
    tokens_BNT = rng.integers(0, V, (B, N, T))
    options = row_options(OPTIONS, jax.random.split(jax.random.key(0), B))

    @jax.jit
    def process(scores_BNV, log_z_BN, written_B):
        past = processors.history(jnp.asarray(given_BP), jnp.asarray(begin_B), jnp.asarray(tokens_BNT), written_B)
        return processors.process(
            scores_BNV, log_z_BN if is_beam_search else None, options, past, written_B + 1, [END], NEVER
        )

    changed = 0
    for _ in range(40):
        scores_BNV, log_z_BN = rng.normal(size=(B, N, V)).astype(np.float32), rng.normal(size=(B, N)).astype(np.float32)
        written_B = rng.integers(0, T, B)
        found_BNV = np.asarray(process(scores_BNV, log_z_BN, written_B))
        np.testing.assert_array_equal(found_BNV[0], scores_BNV[0])  # a row without options, bit for bit
        for b in range(1, B):
            for n in range(N):
                past = [*given_BP[b, : 1 + begin_B[b]].tolist(), *tokens_BNT[b, n, : written_B[b]].tolist()]
                shift = float(log_z_BN[b, n]) if is_beam_search else 0.0
                wanted_V = expected(scores_BNV[b, n], past, OPTIONS[b], int(written_B[b]), shift)
                np.testing.assert_allclose(found_BNV[b, n], wanted_V, atol=1e-5)
                changed += (wanted_V != scores_BNV[b, n]).sum()
    assert changed > 500
