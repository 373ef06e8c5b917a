"""A tokenizer can be trained on any text of any size, and its ids give back every text."""

import random
from pathlib import Path

import pytest

from lm.config import DataConfig
from lm.data import prepare
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece

RNG = random.Random(0)


def chinese_book(sentences: int) -> list[str]:
    """Sentences of Zipf-like characters, thousands of different ones: 300 KB are about 4,500 sentences."""
    return [
        "".join(chr(0x4E00 + int(RNG.paretovariate(0.5)) % 6000) for _ in range(RNG.randint(5, 40))) + "。"
        for _ in range(sentences)
    ]


TEXTS = {
    "Chinese": chinese_book(1500),
    "Thai": ["".join(chr(RNG.randint(0xE01, 0xE3A)) for _ in range(80)) for _ in range(200)],
    "emoji": ["".join(RNG.choice("😀😁😂🤣👨‍👩‍👧🇩🇪🎉✨🔥 abc") for _ in range(30)) for _ in range(100)],
    "one letter": ["a"],
    "two words": ["hello world"],
    "one endless line": ["".join(chinese_book(1200))],
    "one character again and again": ["字" * 30_000],
    "digits": ["1234567890" * 3],
}


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("name", TEXTS)
def test_any_text_trains_a_tokenizer_and_comes_back(name: str, kind: str) -> None:
    for size in (400, 1000):
        tokenizer = SentencePiece.train(TEXTS[name], vocab_size=size, kind=kind)
        assert 361 < tokenizer.vocab_size <= size
        for text in (TEXTS[name][-1][:200], "龘 zwölf 🦖", "Return a [MASK]."):
            assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_a_book_of_many_characters_fills_a_small_vocabulary_with_frequent_ones() -> None:
    tokenizer = SentencePiece.train(TEXTS["Chinese"], vocab_size=1000)
    assert tokenizer.vocab_size == 1000
    pieces = {tokenizer.id_to_piece(index) for index in range(361, 1000)}
    assert {chr(0x4E01), "。"} <= pieces  # 0x4E01 is the most frequent character
    assert any(len(piece.lstrip("▁")) > 1 for piece in pieces)


def test_a_vocabulary_that_cannot_be_reached_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thai.txt").write_text("\n\n".join(TEXTS["Thai"]), encoding="utf-8")
    config = DataConfig(source="text", path=str(tmp_path / "thai.txt"), vocab_size=8192)
    store = prepare.prepare(config, str(tmp_path / "store"), num_workers=1)
    size = store.tokenizer.vocab_size
    said = f"data.vocab_size is 8,192, but this corpus gives no more than {size:,} pieces; the tokenizer has these"
    assert said in capfd.readouterr().err
