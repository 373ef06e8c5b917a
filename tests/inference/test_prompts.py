"""Requests are worded as in training, and answers are read from results: no model is needed."""

import dataclasses
import subprocess
import sys
import types
from typing import Any, cast

import numpy as np
import pytest

from lm.config import Config, DataConfig, ModelConfig, ObjectiveConfig
from lm.data.sentence_encoder import Normalize, SentenceEncoder
from lm.data.store import Store
from lm.errors import InputError
from lm.inference import prompts
from lm.inference.languages import Translate
from lm.inference.prompts import (
    AnswerQuestion,
    Embed,
    FillMask,
    Generate,
    NextSentence,
    default_length,
    encode_with_sentinels,
)
from lm.inference.requests import RequestError
from lm.tokenizers.frame import Frame
from lm.tokenizers.tokenizer import Tokenizer, load_tokenizer
from tests.huggingface.test_seq2seq import t5_tokenizer
from tests.training.conftest import changed

LONGEST = 32


@pytest.fixture(scope="module")
def tokenizer(tiny_config) -> Tokenizer:
    return Store.open(tiny_config.data.store).tokenizer


@pytest.fixture(scope="module")
def pairs_config(tiny_seq2seq) -> Config:
    return changed(tiny_seq2seq, objective={"name": "pairs"}, data={"source": "gettext", "languages": "de,zh_CN"})


def test_prompts_need_no_jax():
    code = "import sys, lm.inference.prompts, lm.inference.packed; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Encoders


def test_a_text_is_between_cls_and_sep_and_a_pair_has_types(tokenizer):
    special = tokenizer.special
    first, second = tokenizer.encode(["the river.", "old stone."])
    row = Embed(tokenizer, LONGEST).row("the river.")
    assert row.tokens.tolist() == [special.cls, *first, special.sep]
    assert not row.types.any()
    assert row.places.tolist() == [0]
    assert not row.truncated
    row = NextSentence(tokenizer, LONGEST).row({"text": "the river.", "text_pair": "old stone."})
    assert row.tokens.tolist() == [special.cls, *first, special.sep, *second, special.sep]
    assert row.types.tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert row.places.tolist() == [0]
    with pytest.raises(RequestError, match='an object with "text" and "text_pair"'):
        NextSentence(tokenizer, LONGEST).row("the river.")


def test_what_is_too_long_is_cut(tokenizer):
    row = Embed(tokenizer, LONGEST).row({"text": "river " * 100, "text_pair": "house " * 3})
    assert row.truncated
    assert len(row.tokens) == 32
    assert (row.types == 1).sum() > 3  # the shorter text is whole
    with pytest.raises(RequestError, match="beyond the 32 tokens"):
        FillMask(tokenizer, LONGEST).row("the river " * 100 + "[MASK]")


def test_masks_are_asked_for_and_filled_with_the_most_probable(tokenizer):
    prompt = FillMask(tokenizer, LONGEST, top=2)
    row = prompt.row({"text": "the [MASK] walks", "text_pair": "over [MASK]"})
    assert row.tokens[row.places].tolist() == [tokenizer.special.mask] * 2
    logits_MV = np.full((2, tokenizer.vocab_size + 5), -100.0, np.float32)  # the vocabulary is padded
    logits_MV[:, -1] = 100.0
    logits_MV[0, [200, 300]] = np.log([0.75, 0.25])
    logits_MV[1, [300, 200]] = np.log([0.9, 0.1])
    first, second = prompt.answer(row, logits_MV)["masks"]
    names = [tokenizer.id_to_piece(200), tokenizer.id_to_piece(300)]
    assert [each["token"] for each in first] == names
    assert [each["token"] for each in second] == names[::-1]
    assert [each["probability"] for each in first + second] == pytest.approx([0.75, 0.25, 0.9, 0.1])


def test_embeddings_are_normalized(tokenizer):
    pooled = np.array([[3.0, 4.0]], np.float32)
    row = Embed(tokenizer, LONGEST).row("x")
    assert Embed(tokenizer, LONGEST).answer(row, pooled)["embedding"] == [3, 4]
    normal = Embed(tokenizer, LONGEST, SentenceEncoder(steps=(Normalize(),)))
    assert normal.answer(row, pooled)["embedding"] == pytest.approx([0.6, 0.8])
    assert normal.answer(row, 0 * pooled) == {"embedding": [0.0, 0.0]}


def test_a_prompt_is_put_before_the_text_and_may_be_left_out_of_the_mean(tokenizer):
    encoder = SentenceEncoder(prompts={"query": "the river "}, lower_case=True)
    row = Embed(tokenizer, LONGEST, encoder, encoder.prompt(None, "query")).row({"text": "OLD tree", "text_pair": "X"})
    expected = Embed(tokenizer, LONGEST).row({"text": "the river old tree", "text_pair": "x"})
    np.testing.assert_array_equal(row.tokens, expected.tokens)
    assert row.places.tolist() == [0]
    without = dataclasses.replace(encoder, include_prompt=False)
    (place,) = Embed(tokenizer, LONGEST, without, "the river ").row("old").places
    assert place == 1 + len(tokenizer.encode(["the river "])[0])
    no_cls = Frame(((), (1,)), ((), (0,)), (0,))  # T5's
    of_t5 = types.SimpleNamespace(encode=tokenizer.encode, frame=lambda texts: no_cls, special_ids=[], cuts_left=False)
    (place,) = Embed(cast(Tokenizer, of_t5), LONGEST, without, "the river ").row("old").places
    assert place == len(tokenizer.encode(["the river "])[0])
    assert encoder.prompt("own ", "query") == "own "
    assert encoder.prompt(None, None) == ""
    assert dataclasses.replace(encoder, default_prompt_name="query").prompt(None, None) == "the river "
    with pytest.raises(InputError, match="prompt_name is 'document'; this model has: query"):
        encoder.prompt(None, "document")


# ---- Wording


def test_every_task_words_its_source_as_in_training(pairs_config, tokenizer):
    """White space is one space, whatever the request has."""
    special = tokenizer.special
    long = {"question": "what\n is  it?", "context": "\ta tree\u3000of stone"}
    rows = {
        "translate to zh_CN: the old tree": Translate(pairs_config, tokenizer, 4, "zh_CN").row("the\told\n\ntree"),
        "translate to de: the tree": Translate(pairs_config, tokenizer, 4).row("the tree"),
        "translate to zh_CN: tree": Translate(pairs_config, tokenizer, 4).row({"text": "tree", "language": "zh_CN"}),
        "question: what is it? context: a tree of stone": AnswerQuestion(pairs_config, tokenizer, 4).row(long),
        "the old tree": Generate(pairs_config, tokenizer, 4).row("the\r\n old tree "),
    }
    for text, row in rows.items():
        expected = [*tokenizer.encode([text])[0], special.sep]
        assert row.tokens.tolist() == [*expected[:-1][:31], special.sep]
        assert row.truncated == (len(expected) > 32)
        assert not len(row.places)
    for request, field in [("no question", "question"), ({"question": "what?"}, "context")]:
        with pytest.raises(RequestError, match=f'the request needs the string "{field}"'):
            AnswerQuestion(pairs_config, tokenizer, 4).row(request)


def test_a_language_of_the_request_goes_before_that_of_the_call(pairs_config, tokenizer):
    source = Translate(pairs_config, tokenizer, 4, "de").source
    assert source({"text": "tree", "language": "zh_CN"}) == "translate to zh_CN: tree"
    assert source({"text": "tree"}) == "translate to de: tree"
    with pytest.raises(RequestError, match=r"language is 'fr'; give one of de, zh_CN\."):
        source({"text": "tree", "language": "fr"})
    with pytest.raises(InputError, match=r"language is 'fr'; give one of de, zh_CN\."):
        Translate(pairs_config, tokenizer, 4, "fr")


def test_a_model_of_no_language_takes_none(pairs_config, tokenizer):
    config = changed(pairs_config, data={"source": "tsv", "path": "pairs.tsv", "languages": ""})
    with pytest.raises(InputError, match="language is 'de'; this model has none, leave it out"):
        Translate(config, tokenizer, 4, "de")
    with pytest.raises(RequestError, match="language is 'de'"):
        Translate(config, tokenizer, 4).row({"text": "tree", "language": "de"})
    assert Translate(config, tokenizer, 4).source("tree") == "tree"


def test_a_tokenizer_without_a_mask_puts_sentinels_between_the_parts(tmp_path):
    t5_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    ids = encode_with_sentinels(tokenizer, "[MASK] old [MASK] sings under [MASK]")
    old, sings = tokenizer.encode(["old", "sings under"])
    first = tokenizer.special.first_sentinel
    assert ids.dtype == np.int32
    assert ids.tolist() == [first, *old, first - 1, *sings, first - 2]
    assert encode_with_sentinels(tokenizer, "old <extra_id_0>").min() < first - 100  # a sentinel's name is text
    assert len(encode_with_sentinels(tokenizer, "[MASK]" * 100)) == 100
    with pytest.raises(RequestError, match=r"101 \[MASK\]; the model fills in at most 100"):
        encode_with_sentinels(tokenizer, "[MASK]" * 101)


def test_a_mask_is_what_the_objective_hides_text_behind(pairs_config, tiny_seq2seq, tokenizer):
    special = tokenizer.special

    def read(text: str, config: Config) -> list[int]:
        return Generate(config, tokenizer, 4).row(text).tokens.tolist()

    the, river = (ids.tolist() for ids in tokenizer.encode(["the", "river"]))
    text = "the [MASK] river [MASK]"
    sentinel = special.first_sentinel
    assert read(text, tiny_seq2seq) == [*the, sentinel, *river, sentinel - 1, special.sep]
    infilling = changed(tiny_seq2seq, objective={"name": "infilling"})
    assert read(text, infilling) == [*the, special.mask, *river, special.mask, special.sep]
    assert read(text, pairs_config) == [*tokenizer.encode([text])[0], special.sep]
    with pytest.raises(RequestError, match="fills in at most 100"):
        read("[MASK]" * 101, tiny_seq2seq)


# ---- Written texts


def test_a_written_text_ends_at_its_end_and_names_its_sentinels(pairs_config, tokenizer):
    special = tokenizer.special
    tree, river = (ids.tolist() for ids in tokenizer.encode(["tree", "river"]))
    hypotheses = [[special.first_sentinel, *tree, special.first_sentinel - 1, *river], tree]
    tokens_NT = np.full((2, 20), special.pad)
    for n, ids in enumerate(hypotheses):
        tokens_NT[n, : len(ids) + 2] = [*ids, special.sep, tree[0]]
    prompt = Generate(pairs_config, tokenizer, 20)
    row = prompt.row("x")
    best = {"text": "<extra_id_0> tree <extra_id_1> river", "score": -0.5}
    answer = prompt.answer(row, (tokens_NT, np.array([-0.5, -1.0])))
    assert answer == best | {"candidates": [best, {"text": "tree", "score": -1.0}]}
    assert prompt.answer(row, (tokens_NT[:1], np.array([-0.5]))) == best
    cut = prompt.answer(row, (np.full((1, 20), tree[0]), np.array([-2.0])))  # max_length came before its end
    assert cut["cut"] is True


def test_the_default_length_is_one_that_the_model_can_write(tiny_seq2seq, tokenizer):
    """A target of BART's begins with [CLS], which takes a position and is not written."""
    data = {"begin_with_cls": True, "seq_length": 16, "target_length": 16}
    config = changed(tiny_seq2seq, data=data, model={"position": "learned", "max_length": 16})
    assert default_length(config) == 15
    Generate(config, tokenizer, 15)
    with pytest.raises(InputError, match="max_length is 16; this model writes at most 15"):
        Generate(config, tokenizer, 16)


def test_a_decoder_reads_the_end_of_its_prompt_and_leaves_positions_for_what_it_writes(tokenizer):
    shape: dict[str, Any] = {"vocab_size": 448, "d_model": 32, "num_layers": 1, "num_heads": 4, "d_ff": 64}
    model = ModelConfig(architecture="decoder", max_length=32, token_types=0, pooler=False, **shape)
    objective = ObjectiveConfig(name="causal_lm")
    config = Config(data=DataConfig(vocab_size=448, seq_length=32), model=model, objective=objective)
    text = "the river " * 30 + "walks over the green stone"
    row = Generate(config, tokenizer, 5).row(text)
    assert row.truncated
    assert row.tokens.tolist() == tokenizer.encode([text])[0][-27:].tolist()
    for task, make in [("translate", Translate), ("answer", AnswerQuestion)]:
        with pytest.raises(InputError, match=f"{task} needs an encoder-decoder"):
            make(config, tokenizer, 5)


def test_an_encoder_cannot_write(tiny_config, tokenizer):
    for make in (prompts.Generate, Translate, prompts.AnswerQuestion):
        with pytest.raises(InputError, match="encoder, which cannot write; use fill-mask"):
            make(tiny_config, tokenizer, 4)
