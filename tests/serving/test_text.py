"""What a stream sends is the text of all tokens, and never a part of a stop string."""

import numpy as np
import pytest

from lm.inference.prompts import written_text
from lm.serving.text import GrowingText, begin

SEED = 5


@pytest.fixture(scope="module")
def tokenizer(tiny_store):
    return tiny_store.tokenizer


def sequences(tokenizer, count: int = 14):
    """Random tokens, half of them the bytes of texts, so that characters arrive in pieces."""
    rng = np.random.default_rng(SEED)
    for number in range(count):
        random = rng.integers(4, tokenizer.vocab_size, 12).astype(np.int32)
        (text,) = tokenizer.encode(["the tree 你好 𝄞 é  , ☃ end" if number % 2 else "ß river, 世 ."])
        yield np.concatenate([random[: number % 7], text, random[7:]])


def pieces(growing: GrowingText, tokens: np.ndarray, step: int) -> list[str]:
    return [growing.add(tokens[begin : begin + step]) for begin in range(0, len(tokens), step)]


@pytest.mark.parametrize("step", [1, 3])
def test_the_pieces_together_are_the_text(tokenizer, step):
    for tokens in sequences(tokenizer):
        growing = GrowingText(tokenizer)
        sent = "".join([*pieces(growing, tokens, step), growing.finish()])
        assert sent == written_text(tokenizer, tokens)
        assert "\ufffd" not in sent or "\ufffd" in written_text(tokenizer, tokens)


@pytest.mark.parametrize("stop", [["tree"], ["ee 你"], ["你好", "river"], ["nowhere"], [" "]])
def test_nothing_of_a_stop_string_is_sent(tokenizer, stop):
    for tokens in sequences(tokenizer):
        whole = written_text(tokenizer, tokens)
        places = [whole.find(each) for each in stop if each in whole]
        growing = GrowingText(tokenizer, stop)
        sent = "".join([*pieces(growing, tokens, 1), growing.finish()])
        assert growing.stopped == bool(places)
        assert sent == (whole[: min(places)] if places else whole)


def test_the_text_ends_at_the_end_token(tokenizer):
    (ids,) = tokenizer.encode(["the tree"])
    growing = GrowingText(tokenizer)
    growing.add(ids)
    assert not growing.ended
    growing.add(np.array([tokenizer.special.sep], np.int32))
    assert growing.ended
    assert growing.text == "the tree"


def places(tokenizer, tokens) -> tuple[str, list[int]]:
    """The text of some tokens, and the place in it at which each begins."""
    growing, found = GrowingText(tokenizer), []
    for token in tokens:
        before = growing.text
        growing.add(np.array([token], np.int32))
        found.append(begin(before, growing.text, tokenizer.id_to_piece(int(token)).replace("▁", " ")))
    return growing.text, found


def test_a_token_begins_where_its_piece_stands_in_the_text(tokenizer):
    """Also after a lone space, which the text has only with the token after it."""
    pieces = [tokenizer.id_to_piece(index) for index in range(tokenizer.vocab_size)]
    space, letter, word = pieces.index("▁"), pieces.index("e"), pieces.index("▁the")
    for tokens in ([word, space, letter, word], [space, letter, space, word], [letter, space, space, letter, letter]):
        text, found = places(tokenizer, tokens)
        for token, place in zip(tokens, found, strict=True):
            piece = pieces[token].replace("▁", " ")
            assert text[place:].startswith(piece if place else piece.lstrip()) or not piece.strip()
        assert found == sorted(found)


def test_the_tokens_of_one_character_begin_where_it_does(tokenizer):
    (tokens,) = tokenizer.encode(["the ☃ 𝄞 end"])
    text, found = places(tokenizer, tokens)
    assert text == "the ☃ 𝄞 end"
    for character in "☃𝄞":
        assert found.count(text.index(character)) >= 3  # each of its bytes
    assert found == sorted(found)
    assert begin("x\ufffd", "x\ufffdy", "y") == 2  # a byte that no other follows is a character
    assert begin("x\ufffd", "x\ufffd\ufffd", "<0x82>") == begin("x\ufffd", "x€", "<0xAC>") == 1
