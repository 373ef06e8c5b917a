"""What a stream sends is the text of all tokens, and never a part of a stop string."""

import numpy as np
import pytest

from lm.inference.prompts import written_text
from lm.serving.text import GrowingText

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
