"""A language is chosen by its token: beside the source, and at the beginning of the translation."""

from typing import Any

import numpy as np
import pytest

from lm import families
from lm.config import Config
from lm.errors import InputError
from lm.inference import languages
from lm.inference.languages import Languages, Translate
from lm.inference.requests import RequestError
from lm.tokenizers.frame import Frame
from lm.tokenizers.special_ids import SpecialIds

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "__de__", "__en__", "__fr__", "hello"]
DE, EN, FR = 4, 5, 6


class Tokenizer:
    """M2M-100's tokens around a text: the code of English and the end."""

    special = SpecialIds(pad=1, unk=3, cls=0, sep=2, mask=-1, num_sentinels=0)
    special_ids = np.arange(7, dtype=np.int32)
    cuts_left = False

    def id_to_piece(self, index: int) -> str:
        return PIECES[index]

    def frame(self, texts: int) -> Frame:
        assert texts == 1
        return Frame(((EN,), (2,)), ((0,), (0,)), (0,))

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array([PIECES.index(word) for word in text.split()], np.int32) for text in texts]


def translate(language: str = "", *, start: int = 2, forced: int = -1, objective: str = "infilling") -> Translate:
    config = Config()
    config.model = families.m2m100(vocab_size=8, d_model=8, num_layers=1, num_heads=2, d_ff=8)
    config.data.seq_length, config.objective.name = 16, objective
    config.generation.decoder_start_token_id, config.generation.forced_bos_token_id = start, forced
    tokenizer: Any = Tokenizer()
    return Translate(config, tokenizer, 8, language, forced)


def test_the_codes_are_found_by_name() -> None:
    tokenizer: Any = Tokenizer()
    assert Languages.of(tokenizer).ids == {"de": DE, "en": EN, "fr": FR}


@pytest.mark.parametrize(
    ("language", "request_", "tokens", "prompt"),
    [
        ("", "hello", [EN, 7, 2], [FR]),  # the language of the folder
        ("de", "hello", [EN, 7, 2], [DE]),
        ("fr-de", "hello", [FR, 7, 2], [DE]),
        ("fr-de", {"text": "hello", "language": "de-en"}, [DE, 7, 2], [EN]),
    ],
)
def test_a_language_is_chosen_by_its_code(language: str, request_: Any, tokens: list[int], prompt: list[int]) -> None:
    row = translate(language, forced=FR).row(request_)
    assert (row.tokens.tolist(), row.prompt.tolist()) == (tokens, prompt)


def test_a_decoder_that_begins_with_a_code_writes_that_language_alone() -> None:
    row = translate("fr-de", start=DE).row("hello")
    assert (row.tokens.tolist(), row.prompt.tolist()) == ([FR, 7, 2], [])
    with pytest.raises(RequestError, match="language is 'en'; this model always writes __de__"):
        translate(start=DE).row({"text": "hello", "language": "en"})


def test_a_model_that_would_write_any_language_needs_one() -> None:
    with pytest.raises(RequestError, match=r"no language is given to translate into; accepted: de, .* \(3 languages\)"):
        translate().row("hello")
    assert translate().row({"text": "hello", "language": "de"}).prompt.tolist() == [DE]
    assert translate("de").row("hello").prompt.tolist() == [DE]
    assert translate(objective="pairs").row("hello").prompt.tolist() == []  # it was trained on one language here


def test_the_first_of_several_trained_languages_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config()
    config.data.languages = "de,fr,zh_CN"
    languages.say_default(config, "fr")
    assert capsys.readouterr().err == ""
    languages.say_default(config, "")
    said = "translating into de where no language is given; --language, or a request's own, chooses fr or zh_CN\n"
    assert capsys.readouterr().err == said
    config.data.languages = "de"
    languages.say_default(config, "")
    assert capsys.readouterr().err == ""


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(InputError, match=r"language is 'xx'; accepted: de, en, fr, ... \(3 languages\)"):
        translate("xx")
    with pytest.raises(RequestError, match="language is 'de-xx'"):
        translate().row({"text": "hello", "language": "de-xx"})
