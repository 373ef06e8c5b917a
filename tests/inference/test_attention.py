"""The attention weights that are returned are the ones that the model uses."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models
from lm.config import Config, DataConfig, ModelConfig, ObjectiveConfig
from lm.inference import attention
from lm.inference.load import Loaded
from lm.inference.predict import Options, Predictor
from lm.models.attention import Attention
from lm.models.positions import relative_buckets
from lm.models.transformer import unstack
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece

SENTENCE = "我爱编程，编程很棒"
BASE = ModelConfig(
    vocab_size=448,
    d_model=32,
    num_layers=2,
    num_heads=4,
    d_ff=48,
    max_length=32,
    token_types=0,
    pooler=False,
    init_std=0.3,
)
ROTARY = dataclasses.replace(BASE, position="rotary", norm_position="pre", final_norm=True, global_every=2, window=2)
RELATIVE = dataclasses.replace(
    BASE,
    architecture="encoder-decoder",
    position="relative",
    norm="rmsnorm",
    norm_position="pre",
    embedding_norm=False,
    final_norm=True,
    attention_bias=False,
    attention_scale=False,
    init="fan_in",
)
ALONE = dataclasses.replace(ROTARY, architecture="decoder")
KINDS = {"learned": BASE, "rotary": ROTARY, "cross": RELATIVE, "causal": ALONE}

# Two texts and padding in one row, as training packs them.
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3], np.int32)
POSITIONS = np.array([[*range(5), *range(4), *range(3)]], np.int32)
TOKENS = np.random.default_rng(0).integers(105, 448, SEGMENTS.shape).astype(np.int32)
ROW = (TOKENS, SEGMENTS, POSITIONS)


def heads(dense, array_BLD) -> np.ndarray:
    kernel, bias = np.asarray(dense.kernel[...]), 0 if dense.bias is None else np.asarray(dense.bias[...])
    return np.einsum("BLD,DHK->BLHK", np.asarray(array_BLD), kernel) + bias


def rotated(heads_BLHK: np.ndarray, theta: float) -> np.ndarray:
    depth = heads_BLHK.shape[-1]
    frequencies = theta ** (-np.arange(0, depth, 2) / depth)
    turn_BL1k = np.exp(1j * POSITIONS[:, :, None] * frequencies)[:, :, None]
    first, second = np.split(heads_BLHK, 2, axis=-1)
    turned = (first + 1j * second) * turn_BL1k
    return np.concatenate([turned.real, turned.imag], axis=-1)


def plain_weights(stack, index, module, inputs_BLD, memory_BSD, own: bool) -> np.ndarray:
    """softmax(Q K^T), written out in numpy from the module's projections."""
    config = stack.config
    query, key = heads(module.query, inputs_BLD), heads(module.key, memory_BSD)
    is_global = index % config.global_every == 0
    if own and config.position == "rotary":
        theta = config.rope_theta if is_global else config.rope_theta_local
        query, key = rotated(query, theta), rotated(key, theta)
    scores = np.einsum("BLHK,BSHK->BHLS", query, key) * (query.shape[-1] ** -0.5 if config.attention_scale else 1.0)
    place = np.arange(SEGMENTS.shape[1])
    visible = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
    if own:
        if stack.relative_bias is not None:
            buckets = relative_buckets(
                jnp.asarray(place[None, :] - place[:, None]),
                causal=stack.causal,
                num_buckets=config.relative_buckets,
                max_distance=config.relative_max_distance,
            )
            scores = scores + np.asarray(stack.relative_bias[...])[buckets].transpose(2, 0, 1)[None]
        if stack.causal:
            visible = visible & (place[:, None] >= place[None, :])[None]
        if not is_global:
            visible = visible & (np.abs(place[:, None] - place[None, :]) <= config.window)[None]
    scores = np.where(visible[:, None], scores, -np.inf)
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def random_params(model: models.Model) -> models.Params:
    """Of no particular distribution, made without compiling anything."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)


@functools.cache
def computed(kind: str) -> tuple[Any, Any, list[tuple], Any, Any]:
    """A stack of a kind, its weights (own, of the memory), and a replay of its layers with the weights given.

    The replay uses no query and no key. It gives the hidden states it ends in, with the model's own, and what every
    attention saw.
    """
    config = KINDS[kind]
    model = models.build(config)
    module = model.merge(random_params(model))

    @jax.jit
    def compute():
        if config.architecture == "encoder":
            stack, memory, shared = module.encoder, None, None
            weights, expected = stack.attention_weights(*ROW), module.encoder(*ROW)
        else:
            stack, shared = module.decoder, (module.encoder or module.decoder).embedding.token[...]
            memory = module.encode(*ROW) if module.encoder else None
            weights, expected = module.attention_weights(memory, *ROW), module(memory, *ROW)
        seen = []
        attend = Attention.__call__

        def watch(attention, inputs_BLD, view, *args):
            seen.append((inputs_BLD, inputs_BLD if view.memory_BSD is None else view.memory_BSD))
            return attend(attention, inputs_BLD, view, *args)

        def replaying(view, weights, index):
            mix = lambda query, key, value, *_: jnp.einsum("BHLS,BSHK->BLHK", weights[index], value)  # noqa: E731
            return view and dataclasses.replace(view, kernel=mix)

        view, memory_view = stack.views(*ROW[1:], memory, "plain")
        hidden = stack.embedding(ROW[0], POSITIONS, shared_VD=shared)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Attention, "__call__", watch)
            for index, layer in enumerate(unstack(stack.layers)):
                views = replaying(view, weights[0], index), replaying(memory_view, weights[1], index)
                hidden, _ = layer(hidden, index, *views)
        hidden = hidden if stack.final_norm is None else stack.final_norm(hidden)
        return weights, seen, hidden, expected

    stack = module.encoder if config.architecture == "encoder" else module.decoder
    return stack, *compute()


of_every_kind = pytest.mark.parametrize("kind", KINDS)


@of_every_kind
def test_weights_are_what_the_model_multiplies_the_values_by(kind):
    _, _, _, replayed, expected = computed(kind)
    np.testing.assert_allclose(replayed, expected, atol=1e-4)


@of_every_kind
def test_weights_are_the_softmax_of_queries_and_keys(kind):
    stack, (own, of_memory), seen, _, _ = computed(kind)
    seen = iter(seen)
    for index, layer in enumerate(unstack(stack.layers)):
        expected = plain_weights(stack, index, layer.attention, *next(seen), own=True)
        np.testing.assert_allclose(own[index], expected, atol=2e-5)
        if of_memory is not None:
            expected = plain_weights(stack, index, layer.memory_attention, *next(seen), own=False)
            np.testing.assert_allclose(of_memory[index], expected, atol=2e-5)
    assert next(seen, None) is None


@of_every_kind
def test_rows_sum_to_one_within_the_segment_and_causal_ones_see_no_future(kind):
    stack, (own, of_memory), *_ = computed(kind)
    outside = SEGMENTS[0][:, None] != SEGMENTS[0][None, :]
    for weights in filter(lambda found: found is not None, (own, of_memory)):
        assert weights.shape == (stack.num_layers, 1, 4, 12, 12)
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-5)
        assert not np.asarray(weights)[..., outside].any()
    assert (of_memory is not None) == (kind == "cross")
    assert np.triu(own, 1).any() != stack.causal


# ---- Requests -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> SentencePiece:
    # Punctuation and 喜 occur too seldom to be pieces: they are spelt in bytes.
    words = ["我", "爱", "编程", "很棒", "你好", "世界", "river", "house", "tree"]
    return SentencePiece.train(map(" ".join, itertools.permutations(words, 3)), vocab_size=448)


def run_config(model: ModelConfig) -> Config:
    data = DataConfig(source="text", path="-", vocab_size=448, seq_length=32, target_length=16)
    name = {"encoder": "mlm", "encoder-decoder": "span_corruption", "decoder": "causal_lm"}[model.architecture]
    return Config(data=data, model=model, objective=ObjectiveConfig(name=name, nsp=False))


def make_predictor(model: ModelConfig, tokenizer) -> Predictor:
    return Predictor(Loaded(run_config(model), random_params(models.build(model)), tokenizer))


@pytest.fixture(scope="module")
def predictor(tokenizer) -> Predictor:
    return make_predictor(dataclasses.replace(BASE, num_layers=1), tokenizer)


def test_a_request_is_told_with_its_special_tokens(predictor):
    found = attention.of_request(predictor, predictor.pipeline("embed"), SENTENCE)
    assert list(found) == ["encoder"]
    weights = found["encoder"]
    assert weights.queries == weights.keys
    assert (weights.keys[0], weights.keys[-1]) == ("[CLS]", "[SEP]")
    assert weights.weights_NHLS.shape == (1, 4, len(weights.keys), len(weights.keys))
    np.testing.assert_allclose(weights.weights_NHLS.sum(axis=-1), 1.0, atol=1e-5)


@pytest.mark.parametrize(("model", "kinds"), [(RELATIVE, ["cross", "encoder", "decoder"]), (ALONE, ["decoder"])])
def test_a_writer_is_told_over_what_it_wrote(tokenizer, model, kinds, monkeypatch):
    """Of the best hypothesis, up to its end."""
    special, plain = tokenizer.special, tokenizer.encode(["house 世界"])[0]
    tokens_NT = np.array([[*plain, special.sep, special.pad], [special.sep, *[special.pad] * (len(plain) + 1)]])
    decoded = lambda self, rows, numbers, **_: [(tokens_NT, np.array([0.0, -1.0])) for _ in rows]  # noqa: E731
    monkeypatch.setattr(Predictor, "_write", decoded)
    writer = make_predictor(dataclasses.replace(model, num_layers=1), tokenizer)
    pipeline = writer.pipeline("generate", Options(decoding={"num_beams": 2, "max_length": 8}))
    assert pipeline([SENTENCE])[0]["text"] == "house 世界"
    row, written = pipeline.prompt.row(SENTENCE), [*plain, special.sep]
    found = attention.of_request(writer, pipeline, SENTENCE)
    assert list(found) == kinds
    own, prompt = found["decoder"], [] if "cross" in found else row.tokens
    tokens = np.array([tokenizer.special.pad, *prompt, *written])
    assert [own.keys[0], *own.queries] == [*own.keys, own.queries[-1]] == attention.labels(tokenizer, tokens)

    @jax.jit
    def expected():
        module = models.build(writer.loaded.config.model).merge(writer.loaded.params)
        memory = module.encode(*attention._alone(row.tokens, 0, 1)) if "cross" in found else None
        return module.attention_weights(memory, *attention._alone(tokens[:-1], 0, 1))

    own_NBHTT, cross_NBHTS = expected()
    np.testing.assert_allclose(own.weights_NHLS, own_NBHTT[:, 0], atol=1e-6)
    if "cross" in found:
        np.testing.assert_allclose(found["cross"].weights_NHLS, cross_NBHTS[:, 0], atol=1e-6)
        assert found["cross"].queries == own.queries
        assert found["cross"].keys == found["encoder"].keys == attention.labels(tokenizer, row.tokens)
        assert found["encoder"].weights_NHLS.shape == (1, 4, len(row.tokens), len(row.tokens))


@pytest.mark.parametrize("ended", [True, False])
def test_padding_after_what_was_written_is_left_out(tokenizer, ended):
    """A text that is cut at its greatest length has no end token."""
    writer = make_predictor(dataclasses.replace(RELATIVE, num_layers=1), tokenizer)
    special, plain = tokenizer.special, tokenizer.encode(["house"])[0]
    written = [*plain, *([special.sep] if ended else [])]
    row = writer.pipeline("generate").prompt.row(SENTENCE)
    found = attention.decoded(writer, row, np.array([*written, special.pad, special.pad]))
    assert found.tolist() == [special.start(RELATIVE.decoder_start), *written]


def test_labels_are_text_without_word_marks(tokenizer):
    ids = [tokenizer.special.cls, *tokenizer.encode(["我 编程，river\n"])[0], tokenizer.special.first_sentinel]
    found = attention.labels(tokenizer, np.array(ids))
    assert len(found) == len(ids)
    assert (found[0], found[-1]) == ("[CLS]", "<extra_id_0>")
    assert {"，1/3", "，2/3", "，3/3"} <= {label.replace(" ", "") for label in found}
    assert "river" in "".join(found)
    assert "\\n" in found
    assert not any("▁" in label or not label.isprintable() or not label for label in found)
