"""A tokenizer trained here gives the same ids when the `tokenizers` library reads what we export."""

import json

import pytest
import tokenizers

from lm.data.tokenizer import HuggingFace, SentencePiece
from lm.huggingface.tokenizer import tokenizer_files

SENTENCES = [
    "A masked language model predicts the tokens that it does not see.",
    "中国的首都是北京。深度学习需要大量的数据和算力。",
    "def add(a, b): return a + b  # two  spaces",
    "Ça coûte 3,50 € à Zürich; Straße, naïve, Übungen.",
    "The quick brown fox jumps over the lazy dog, again and again and again.",
]
UNSEEN = ["🙂 emoji", "a\tb\nc", "ends with a space ", "数据 and ﬁ", "x", "κόσμε ~ Привет", "<0x41> is text"]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def pair(request) -> tuple[SentencePiece, tokenizers.Tokenizer]:
    ours = SentencePiece.train(SENTENCES * 20, vocab_size=600, kind=request.param)
    return ours, tokenizers.Tokenizer.from_str(tokenizer_files(ours, 64)["tokenizer.json"])


def test_every_text_has_the_same_ids_and_decodes_to_itself(pair):
    ours, theirs = pair
    assert theirs.get_vocab_size() == ours.vocab_size
    for text in SENTENCES + UNSEEN:
        ids = ours.encode([text])[0].tolist()
        assert theirs.encode(text, add_special_tokens=False).ids == ids
        assert theirs.decode(ids) == text


def test_masks_take_the_space_before_them(pair):
    ours, theirs = pair
    for text in ("the [MASK] is here", "[MASK] at first", "un[MASK]able"):
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode_with_masks(text).tolist()


def test_pairs_are_framed_as_in_pretraining(pair):
    ours, theirs = pair
    first, second = (ids.tolist() for ids in ours.encode(["a model", "again"]))
    encoded = theirs.encode("a model", "again")
    special = ours.special
    assert encoded.ids == [special.cls, *first, special.sep, *second, special.sep]
    assert encoded.type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 1)


def test_an_imported_tokenizer_leaves_as_it_came():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    tokenizer = HuggingFace.from_wordpiece("\n".join(pieces).encode())
    files = tokenizer_files(tokenizer, 32)
    assert files["tokenizer.json"].encode() == tokenizer.to_bytes()
    settings = json.loads(files["tokenizer_config.json"])
    assert (settings["mask_token"], settings["model_max_length"]) == ("[MASK]", 32)
