"""Ids that never move, text that survives, and markup that text cannot produce."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from lm.config import DataConfig, ObjectiveConfig
from lm.data.sentences import sentences
from lm.errors import InputError
from lm.tasks import create_row_format
from lm.tokenizers.huggingface_tokenizer import HuggingFace
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece
from lm.tokenizers.special_ids import FIRST_ORDINARY_ID, SpecialIds
from lm.tokenizers.tokenizer import Tokenizer, load_tokenizer

MARKUP = "[PAD] [UNK] [CLS] [SEP] [MASK] <extra_id_0> <extra_id_99> <0x41> ▁ ##a"


def train(documents: list[str], kind: str = "unigram") -> SentencePiece:
    texts = (sentence for document in documents for sentence in sentences(document))
    return SentencePiece.train(texts, vocab_size=600, kind=kind)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def trained(request: pytest.FixtureRequest, documents: list[str]) -> SentencePiece:
    return train(documents, request.param)


def pieces(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    return [tokenizer.id_to_piece(i) for i in ids]


def test_special_ids_are_fixed(trained: SentencePiece):
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [trained.id_to_piece(i) for i in range(5)] == names
    assert all(trained.id_to_piece(104 - k) == f"<extra_id_{k}>" for k in range(100))
    assert trained.id_to_piece(FIRST_ORDINARY_ID) == "<0x00>"
    assert trained.special_ids.tolist() == list(range(105))
    assert 105 + 256 < trained.vocab_size <= 600


@pytest.mark.parametrize(
    "text",
    [
        "Number of things, (said) the year.",
        "天地玄黄，宇宙洪荒。龘靐！",
        "  two  spaces and a tail  ",
        "line\n\ttab\r\n",
        "émigré ﬁ Ａ① 🙂 \u200b é",
        MARKUP.replace("▁", "_"),
        "\x01\x00",
        "",
    ],
)
def test_text_survives_byte_for_byte(trained: SentencePiece, text: str):
    (ids,) = trained.encode([text])
    assert trained.decode(ids) == text


@pytest.mark.parametrize("seed", range(10))
def test_no_text_produces_a_special_id(trained: SentencePiece, seed: int):
    random_ = random.Random(seed)
    anything = "".join(
        chr(random_.choice([random_.randrange(0xD800), random_.randrange(0xE000, 0x110000)])) for _ in range(300)
    )
    for ids in trained.encode([MARKUP, MARKUP.replace(" ", ""), anything]):
        assert len(ids)
        assert not np.isin(ids, trained.special_ids).any()


def test_training_is_deterministic(documents: list[str]):
    assert train(documents).fingerprint == train(documents).fingerprint
    assert train(documents).fingerprint != train(documents[1:200]).fingerprint


def test_a_tiny_corpus_gives_a_small_tokenizer():
    tokenizer = SentencePiece.train(["one two three", "four"], vocab_size=8192)
    assert 361 < tokenizer.vocab_size < 500
    assert tokenizer.decode(tokenizer.encode(["好 zwei"])[0]) == "好 zwei"


def test_a_corpus_without_text_trains_no_tokenizer():
    with pytest.raises(InputError, match="no tokenizer can be trained"):
        SentencePiece.train([], vocab_size=600)


def test_masks_in_text_become_the_mask_id(trained: SentencePiece):
    def encoded(text: str) -> list[str]:
        return pieces(trained, trained.encode_with_masks(text))

    plain = pieces(trained, trained.encode(["the year of"])[0])
    assert encoded("the year of") == plain
    assert encoded("the year [MASK]") == [*pieces(trained, trained.encode(["the year"])[0]), "[MASK]"]
    assert encoded("[MASK] year") == ["[MASK]", *pieces(trained, trained.encode(["year"])[0])]
    assert encoded("[MASK][MASK] [MASK]") == ["[MASK]"] * 3
    assert "▁" not in encoded("the [MASK].")[-1]
    assert encoded("宇宙[MASK]荒")[-1] == "荒"
    assert "[MASK]" not in encoded("a \x01 b")


def test_words_start_where_whole_word_masking_may_begin(trained: SentencePiece):
    starts = trained.starts_word()
    assert starts.shape == (trained.vocab_size,)
    assert starts[trained.special_ids].all()
    for index in range(361, trained.vocab_size):
        piece = trained.id_to_piece(index)
        assert starts[index] == (not (piece[0].isascii() and any(map(str.isalnum, piece))))
    rare = "龘é\n"
    ids = trained.encode([rare])[0]
    by_piece = dict(zip(pieces(trained, ids), starts[ids], strict=True))
    assert by_piece == {
        **{"▁": True, "<0xE9>": True, "<0xBE>": False, "<0x98>": False},
        **{"<0xC3>": False, "<0xA9>": False, "<0x0A>": True},
    }


def test_a_saved_model_loads_and_a_foreign_one_is_refused(trained: SentencePiece, tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(trained.to_bytes())
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.fingerprint == trained.fingerprint
    with pytest.raises(InputError, match="no sentencepiece model"):
        SentencePiece(b"nonsense")
    with pytest.raises(InputError, match=r"no tokenizer at .*; give one of tokenizer.model, tokenizer.json"):
        load_tokenizer(str(tmp_path / "missing"))
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c", "d"]),
        model_writer=buffer,
        vocab_size=50,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(InputError, match=r"first pieces are <unk>, <s>, </s>"):
        SentencePiece(buffer.getvalue())


VOCABULARY = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "year", "##s", "[", "]", "mask", "天"]


@pytest.fixture
def wordpiece(tmp_path: Path) -> Tokenizer:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    return load_tokenizer(str(tmp_path))


def test_wordpiece_of_an_imported_model(wordpiece: Tokenizer):
    assert wordpiece.special == SpecialIds(pad=0, unk=2, cls=3, sep=4, mask=5, first_sentinel=-1, num_sentinels=0)
    assert wordpiece.special_ids.tolist() == [0, 2, 3, 4, 5]
    assert wordpiece.vocab_size == len(VOCABULARY)
    assert pieces(wordpiece, wordpiece.encode(["The years 天[MASK] zzz"])[0]) == [
        *["the", "year", "##s", "天", "[MASK]", "[UNK]"]
    ]
    assert pieces(wordpiece, wordpiece.encode_with_masks("the [MASK] 天")) == ["the", "[MASK]", "天"]
    assert np.flatnonzero(~wordpiece.starts_word()).tolist() == [VOCABULARY.index("##s")]
    assert wordpiece.decode(np.array([3, 6, 7, 8, 4])) == "the years"


def test_tokenizer_json_of_an_imported_model(wordpiece: Tokenizer, tmp_path: Path):
    path = tmp_path / "json" / "tokenizer.json"
    path.parent.mkdir()
    path.write_bytes(wordpiece.to_bytes())
    loaded = load_tokenizer(str(path))
    assert loaded.fingerprint == wordpiece.fingerprint
    assert loaded.encode(["the years"])[0].tolist() == [6, 7, 8]


def without(wordpiece: Tokenizer, name: str) -> Tokenizer:
    content = json.loads(wordpiece.to_bytes())
    content.pop("lm")  # the ids of the roles
    content["model"]["vocab"].pop(name)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != name]
    return HuggingFace(json.dumps(content).encode())


def test_a_missing_special_token_is_refused_where_it_is_needed(wordpiece: Tokenizer):
    with pytest.raises(InputError, match=r"no \[SEP\] or </s>, which every model needs"):
        without(wordpiece, "[SEP]")
    maskless, clsless = without(wordpiece, "[MASK]"), without(wordpiece, "[CLS]")
    assert (maskless.special.mask, clsless.special.cls) == (-1, -1)
    assert pieces(maskless, maskless.encode_with_masks("the year")) == ["the", "year"]
    with pytest.raises(InputError, match=r"no \[MASK\] or <mask>, which a text with \[MASK\] needs"):
        maskless.encode_with_masks("the [MASK]")
    for tokenizer, objective, missing in (
        (maskless, "mlm", r"\[MASK\] or <mask>"),
        (maskless, "infilling", r"\[MASK\] or <mask>"),
        (clsless, "mlm", r"\[CLS\] or <s>"),
        (wordpiece, "span_corruption", "<extra_id_0>"),
    ):
        with pytest.raises(InputError, match=f"no {missing}, which objective.name={objective} needs"):
            create_row_format(DataConfig(), ObjectiveConfig(name=objective), tokenizer.special)
    create_row_format(DataConfig(), ObjectiveConfig(name="infilling"), clsless.special)
    with pytest.raises(InputError, match=r"no \[CLS\] or <s>, which data.begin_with_cls=True needs"):
        create_row_format(DataConfig(begin_with_cls=True), ObjectiveConfig(name="infilling"), clsless.special)


T5_MARKUP = "the year<extra_id_0></s> <pad> <extra_id_99> of"


@pytest.fixture(scope="module")
def spiece(documents: list[str]) -> bytes:
    """A model as T5 has them: without sentinels and without byte pieces."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentence for document in documents for sentence in sentences(document)),
        model_writer=buffer,
        vocab_size=300,
        hard_vocab_limit=False,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"},
        minloglevel=2,
    )
    return buffer.getvalue()


def unigram(spiece: bytes) -> bytes:
    """The same as a `tokenizer.json`, whose vocabulary holds the special tokens too."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    processor = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    size = processor.get_piece_size()
    vocabulary = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(size)]
    sentinels = [f"<extra_id_{k}>" for k in reversed(range(100))]
    tokenizer: Any = Tokenizer(models.Unigram(vocabulary + [(name, 0.0) for name in sentinels], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *sentinels]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer.to_str().encode()


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_tokenizers_of_t5(spiece: bytes, tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(spiece if name == "spiece.model" else unigram(spiece))
    tokenizer = load_tokenizer(str(tmp_path))
    size = sentencepiece.SentencePieceProcessor(model_proto=spiece).get_piece_size()
    assert tokenizer.vocab_size == size + 100
    assert tokenizer.special == SpecialIds(
        pad=0, unk=2, cls=-1, sep=1, mask=-1, first_sentinel=size + 99, num_sentinels=100
    )
    assert tokenizer.special_ids.tolist() == [0, 1, 2, *range(size, size + 100)]
    assert pieces(tokenizer, np.array([1, size, size + 99])) == ["</s>", "<extra_id_99>", "<extra_id_0>"]
    (ids,) = tokenizer.encode(["the year of"])
    assert tokenizer.decode([size + 99, *ids, 1, 0]) == "the year of"
    marked = tokenizer.encode([T5_MARKUP])[0]  # names of special tokens are tokens, as in transformers
    assert [i for i in marked if i in tokenizer.special_ids] == [size + 99, 1, 0, size]
    starts = tokenizer.starts_word()
    assert starts[tokenizer.special_ids].all()
    assert 0 < starts[ids].sum() <= 3
    with pytest.raises(InputError, match=r"no \[MASK\] or <mask>, which a text with"):
        tokenizer.encode_with_masks("the [MASK]")


def test_both_tokenizers_of_t5_agree(spiece: bytes, documents: list[str]):
    texts = [sentence.strip() for document in documents[:20] for sentence in sentences(document)]
    texts = [" ".join(text.split()) for text in texts if text]
    ours = SentencePiece(spiece).encode(texts)
    theirs = HuggingFace(unigram(spiece)).encode(texts)
    assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in theirs]


def test_the_tokenizer_of_bart():
    """Byte-level BPE; its special ids stand first, [MASK] last."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters, "th", "the"])}
    vocabulary["<mask>"] = len(vocabulary)
    bpe: Any = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer = HuggingFace(bpe.to_str().encode())
    last = len(vocabulary) - 1
    assert tokenizer.special == SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=last, first_sentinel=-1, num_sentinels=0)
    assert tokenizer.special_ids.tolist() == [0, 1, 2, 3, last]
    assert pieces(tokenizer, tokenizer.encode_with_masks("the [MASK]")) == ["the", "<mask>"]
    (ids,) = tokenizer.encode(["the </s> é <mask>"])
    assert np.flatnonzero(np.isin(ids, tokenizer.special_ids)).tolist() == [2, len(ids) - 1]
    assert tokenizer.decode([0, *ids, 2]) == "the  é"
