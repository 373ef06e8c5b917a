"""Cached decoding equals the full forward pass, rows are independent, and beam search finds the best beams."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models, sharding
from lm.config import MeshConfig, ModelConfig
from lm.errors import InputError
from lm.inference import decode as decode_lib
from lm.inference.decode_state import Shape, TokenIds
from lm.inference.options import Decoding, row_options
from lm.models import Decoder, Prompts, Sources, make_decoder
from tests.weights import random_params

VOCABULARY = 64
START, END, PAD = 0, 3, 0

RELATIVE = ModelConfig(
    architecture="encoder-decoder",
    vocab_size=VOCABULARY,
    d_model=32,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=8,
    d_ff=64,
    norm="rmsnorm",
    norm_position="pre",
    embedding_norm=False,
    final_norm=True,
    gated=True,
    attention_bias=False,
    mlp_bias=False,
    logits_bias=False,
    tie_embeddings=False,
    attention_scale=False,
    position="relative",
    init="fan_in",
    token_types=0,
    dropout=0.0,
    attention_dropout=0.0,
)
LEARNED = dataclasses.replace(
    RELATIVE,
    norm="layernorm",
    norm_position="post",
    embedding_norm=True,
    final_norm=False,
    gated=False,
    attention_bias=True,
    mlp_bias=True,
    logits_bias=True,
    tie_embeddings=True,
    attention_scale=True,
    position="learned",
    max_length=64,
    init="normal",
    init_std=0.1,
)
ALONE = dataclasses.replace(LEARNED, architecture="decoder", position="rotary", global_every=2, window=3)
OWN_BIAS = dataclasses.replace(RELATIVE, relative_shared=False)
SINUSOIDAL = dataclasses.replace(
    LEARNED, position="sinusoidal-t2t", first_position=2, scale_embedding=True, share_layers=True
)
MODELS = {
    "relative": RELATIVE,
    "learned": LEARNED,
    "alone": ALONE,
    "own bias": OWN_BIAS,
    "sinusoidal": SINUSOIDAL,
}


@functools.cache
def build(name: str):
    model = models.build(MODELS[name])
    return model, random_params(model)


def sources(lengths, seed=0) -> Sources:
    rng = np.random.default_rng(seed)
    tokens = np.zeros((len(lengths), max(lengths)), np.int32)
    segments = np.zeros_like(tokens)
    for row, length in enumerate(lengths):
        tokens[row, :length] = rng.integers(4, VOCABULARY, length)
        segments[row, :length] = 1
    return Sources(tokens, segments)


def no_prompts(rows: int) -> Prompts:
    return Prompts(np.zeros((rows, 0), np.int32), np.zeros(rows, np.int32))


def keys(rows: int) -> jax.Array:
    return jax.random.split(jax.random.key(5), rows)


def shape_of(decoding: Decoding, inputs, prompts) -> Shape:
    source = inputs.tokens_BS.shape[1] if inputs else 0
    return Shape(decoding.num_beams, decoding.max_length, prompts.tokens_BP.shape[1], source)


def generate(model, params, decoding, inputs, prompts, row_keys, vocab_size=VOCABULARY):
    """All rows with the same options, in one program."""
    ids, shape = TokenIds(START, END, PAD, vocab_size), shape_of(decoding, inputs, prompts)
    function = jax.jit(functools.partial(decode_lib.generate, model, ids, shape))
    options = row_options([decoding] * len(prompts.tokens_BP), row_keys)
    return jax.tree.map(np.asarray, function(params, inputs, prompts, options))


def decode(name, inputs, prompts=None, row_keys=None, **options):
    model, params = build(name)
    if prompts is None:
        prompts = no_prompts(len(inputs.tokens_BS))
    row_keys = keys(len(prompts.tokens_BP)) if row_keys is None else row_keys
    return generate(model, params, Decoding(**options), inputs, prompts, row_keys)


def full_log_p(name, inputs: Sources | None, row: int, tokens: np.ndarray) -> np.ndarray:
    """log P of each of `tokens`, computed with the whole sequence at once: [T, V]."""
    source = None
    if inputs is not None:
        source = inputs.tokens_BS[row : row + 1, : int(inputs.segments_BS[row].sum())]
    given = np.concatenate([[START], tokens[:-1]])[None].astype(np.int32)
    return np.asarray(_full_log_p(build(name)[0], build(name)[1], source, given))


@functools.partial(jax.jit, static_argnums=0)
def _full_log_p(model, params, source_1S, given_1T):
    module = model.merge(params)
    places = lambda row: (jnp.ones(row.shape, jnp.int32), jnp.arange(row.shape[1])[None])  # noqa: E731
    memory = None if source_1S is None else module.encode(source_1S, *places(source_1S))
    return jax.nn.log_softmax(module.predict(module(memory, given_1T, *places(given_1T)))[0], axis=-1)


# Hypotheses beside one another are kept in blocks: here of 21 positions, of which the last block has one too many.
@pytest.mark.parametrize(
    ("name", "num_beams", "length", "longest"),
    [
        *((name, *shape) for name in ("relative", "learned", "alone") for shape in ((1, 12, 11), (3, 41, 64))),
        ("own bias", 3, 12, 11),
        ("sinusoidal", 1, 12, 11),
    ],
)
def test_cached_decoding_equals_the_full_forward_pass_at_every_step(name, num_beams, length, longest):
    model, params = build(name)
    inputs = None if name == "alone" else sources([5, longest, 8])
    shape = (3, num_beams, length)
    tokens_BNT = np.random.default_rng(1).integers(4, VOCABULARY, shape).astype(np.int32)

    @jax.jit
    def stepwise(params, tokens_BNT):
        module = model.merge(params)
        decoder = make_decoder(module, 3 * num_beams)
        cache = decoder.begin(inputs, no_prompts(3), positions=length, num_beams=num_beams)
        given_TBN = jnp.pad(tokens_BNT[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=START).transpose(2, 0, 1)

        def body(cache, tokens_BN):
            logits_BNV, cache = decoder(tokens_BN, cache)
            return cache, jax.nn.log_softmax(logits_BNV, axis=-1)

        return jax.lax.scan(body, cache, given_TBN)[1]

    found_TBNV = stepwise(params, tokens_BNT)
    for row, beam in itertools.product(range(3), range(num_beams)):
        expected = full_log_p(name, inputs, row, tokens_BNT[row, beam])
        np.testing.assert_allclose(found_TBNV[:, row, beam], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["relative", "learned"])
def test_greedy_takes_the_most_probable_token_every_time(name):
    inputs = sources([4, 9, 6, 12])
    found = decode(name, inputs, max_length=10)
    for row in range(4):
        tokens = found.tokens_BNT[row, 0]
        ends = np.flatnonzero(tokens == END)
        length = ends[0] + 1 if len(ends) else 10
        log_p = full_log_p(name, inputs, row, tokens[:length])
        np.testing.assert_array_equal(log_p.argmax(axis=-1), tokens[:length])
        np.testing.assert_allclose(found.scores_BN[row, 0], log_p.max(axis=-1).mean(), atol=1e-5)
        assert (tokens[length:] == PAD).all()


OPTIONS = [{}, {"num_beams": 4}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}]


@pytest.mark.parametrize(
    ("name", "options"), [("relative", OPTIONS[0]), ("learned", OPTIONS[1]), ("relative", OPTIONS[2])], ids=str
)
def test_a_sequence_decodes_alike_alone_and_in_a_mixed_batch_of_16(name, options):
    lengths = np.random.default_rng(2).integers(2, 20, 16)
    inputs = sources(lengths)
    together = decode(name, inputs, max_length=12, **options)
    for row in (0, 7, 15):
        alone = Sources(*(array[row : row + 1, : lengths[row]] for array in inputs))
        found = decode(name, alone, row_keys=keys(16)[row : row + 1], max_length=12, **options)
        np.testing.assert_array_equal(found.tokens_BNT[0], together.tokens_BNT[row])
        np.testing.assert_allclose(found.scores_BN[0], together.scores_BN[row], atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [((8, 1, 1), OPTIONS[1]), ((2, 2, 2), OPTIONS[0]), ((2, 2, 2), OPTIONS[1]), ((1, 1, 8), OPTIONS[2])],
    ids=str,
)
def test_decoding_is_the_same_sharded_over_eight_devices(sizes, options):
    model, params = build("relative")
    inputs = sources(np.random.default_rng(3).integers(2, 20, 16))
    expected = decode("relative", inputs, max_length=8, **options)
    mesh = sharding.make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))))
    rows = sharding.batch_sharding(mesh)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.state_shardings(mesh, {"params": params})["params"])
        found = generate(
            model,
            placed,
            Decoding(max_length=8, **options),
            jax.device_put(inputs, rows),
            jax.device_put(no_prompts(16), rows),
            keys(16),
        )
    np.testing.assert_array_equal(found.tokens_BNT, expected.tokens_BNT)
    np.testing.assert_allclose(found.scores_BN, expected.scores_BN, atol=1e-5)


def test_beams_wide_enough_find_the_best_of_all_sequences():
    """With three tokens and as many beams as sequences, beam search is exhaustive."""
    model, params = build("relative")
    inputs = sources([5])
    decoding = Decoding(max_length=4, num_beams=81, length_penalty=0.7)
    # four tokens: three to choose from, and the end
    found = generate(model, params, decoding, inputs, no_prompts(1), keys(1), vocab_size=4)
    best = {}
    for length in range(1, 5):
        for tokens in itertools.product(range(4), repeat=length):
            if END in tokens[:-1] or (length < 4 and tokens[-1] != END):
                continue
            log_p = full_log_p("relative", inputs, 0, np.array(tokens))
            log_p = log_p - jax.nn.logsumexp(log_p[:, :4], axis=-1)[:, None]
            best[tokens] = float(sum(log_p[i, token] for i, token in enumerate(tokens))) / length**0.7
    ranked = sorted(best, key=best.__getitem__, reverse=True)
    for rank in range(5):
        tokens = ranked[rank] + (PAD,) * (4 - len(ranked[rank]))
        assert tuple(np.asarray(found.tokens_BNT[0, rank])) == tokens
        np.testing.assert_allclose(found.scores_BN[0, rank], best[ranked[rank]], atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_a_prompt_is_continued_whatever_its_length(options):
    tokens = np.random.default_rng(4).integers(4, VOCABULARY, (3, 7)).astype(np.int32)
    prompts = Prompts(tokens, np.array([7, 0, 3], np.int32))
    together = decode("alone", None, prompts, max_length=6, **options)
    for row, length in enumerate([7, 0, 3]):
        alone = Prompts(tokens[row : row + 1, :length], np.array([length], np.int32))
        found = decode("alone", None, alone, max_length=6, **options)
        np.testing.assert_array_equal(found.tokens_BNT[0], together.tokens_BNT[row])
        np.testing.assert_allclose(found.scores_BN[0], together.scores_BN[row], atol=1e-5)
        best = found.tokens_BNT[0, 0]
        real = best[: np.flatnonzero(best == END)[0] + 1] if (best == END).any() else best
        log_p = full_log_p("alone", None, 0, np.concatenate([tokens[row, :length], real]))[length:]
        score = log_p[np.arange(len(real)), real].mean()
        np.testing.assert_allclose(found.scores_BN[0, 0], score, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=["greedy", "beam", "sampled"])
def test_the_least_and_the_greatest_length_are_kept(options):
    inputs = sources([6] * 8)
    found = decode("relative", inputs, min_length=5, max_length=7, **options)
    lengths = [(row == END).argmax() + 1 if (row == END).any() else 7 for row in found.tokens_BNT[:, 0]]
    assert min(lengths) >= 5
    assert not (found.tokens_BNT[:, 0, :4] == END).any()
    for row, length in enumerate(lengths):  # an end that was forbidden keeps its share of the probability
        tokens = found.tokens_BNT[row, 0, :length]
        log_p = full_log_p("relative", inputs, row, tokens)[np.arange(length), tokens].mean()
        np.testing.assert_allclose(found.scores_BN[row, 0], log_p, atol=1e-5)


def test_sampling_follows_the_restricted_distribution():
    inputs = Sources(*(np.repeat(array, 4000, axis=0) for array in sources([6])))
    first = decode("relative", inputs, max_length=1, temperature=0.7, top_k=12, top_p=0.8).tokens_BNT[:, 0, 0]
    p = np.exp(full_log_p("relative", inputs, 0, np.array([0]))[0] / 0.7)
    order = np.argsort(-p)[:12]
    kept = p[order] / p[order].sum()
    size = int((np.cumsum(kept) - kept < 0.8).sum())
    expected = np.zeros(VOCABULARY)
    expected[order[:size]] = kept[:size] / kept[:size].sum()
    found = np.bincount(first, minlength=VOCABULARY) / len(first)
    assert set(np.flatnonzero(found)) <= set(order[:size])
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / 4000))


def test_the_loop_ends_when_all_have_ended(monkeypatch):
    """A model that can only say END takes one step, whatever the greatest length."""
    model, params = build("learned")
    bias = jnp.full(VOCABULARY, -100.0).at[END].set(100.0)
    params = {**params, "logits": {**params["logits"], "bias": bias}}
    counted = []
    original = Decoder.__call__

    def counting(*args):
        jax.debug.callback(lambda: counted.append(1))
        return original(*args)

    monkeypatch.setattr(Decoder, "__call__", counting)
    found = generate(model, params, Decoding(max_length=50), sources([5, 3]), no_prompts(2), keys(2))
    jax.effects_barrier()
    assert (np.asarray(found.tokens_BNT)[:, 0, 0] == END).all()
    assert len(counted) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"max_length": 0},
        {"num_beams": 0},
        {"top_p": 0.0},
        {"num_beams": 2, "temperature": 1.0},
        {"temperature": float("nan")},
        {"max_length": 8, "min_length": 9},
        {"top_k": 5},
        {"top_p": 0.9},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError):
        Decoding(**options)
