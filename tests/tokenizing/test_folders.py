"""Damaged folders of tokenizers: one clear line for each, and never ids that a whole folder would not give."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.config import Config, DataConfig, ObjectiveConfig
from lm.errors import InputError
from lm.tasks import create_row_format
from lm.tasks.mlm import MaskedLM
from lm.tokenizers import folders
from lm.tokenizers.huggingface_tokenizer import HuggingFace
from lm.tokenizers.tokenizer import load, load_tokenizer

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "The", "year", "##s", "café", "cafe", "a", "b"]
TEXT = "The years café <hl> [MASK] b"
FAST, CONFIG = "tokenizer.json", "tokenizer_config.json"
FILES = {
    CONFIG: {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": False,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": 512,
        "cls_token": "[CLS]",
        "mask_token": {"content": "[MASK]", "lstrip": False, "__type": "AddedToken"},
        "additional_special_tokens": ["<hl>"],
        "padding_side": "right",
    },
    "special_tokens_map.json": {"sep_token": "[SEP]", "unk_token": {"content": "[UNK]", "special": True}},
    "added_tokens.json": {"<hl>": 13},
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 2**70)
    | st.floats()
    | st.sampled_from(["", "[CLS]", "x", "\ud800", "\x00"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["content", "id", "type", ""]), inner, max_size=2)
    ),
    max_leaves=4,
)
FEW = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)


def write(folder: Path, files: dict[str, object]) -> Path:
    for old in folder.iterdir():
        old.unlink()
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bert")


@pytest.fixture(scope="module")
def fast(folder: Path) -> dict[str, object]:
    made = folders.read(write(folder, {**FILES, "vocab.txt": "\n".join(PIECES)}))
    assert isinstance(made, HuggingFace)
    return json.loads(made.tokenizer_json)


def places(content: object, path: tuple = ()) -> list[tuple]:
    """The paths of all values inside a JSON value."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def changed(content: object, path: tuple, value: object) -> object:
    """A copy in which one value is another one, or missing if `value` is `...`."""
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)  # pyright: ignore[reportArgumentType]
    if value is ... and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return copy


def read(folder: Path) -> list[int] | None:
    """The ids of a text; None if the folder or the text is refused, in one line."""
    try:
        tokenizer = folders.read(folder)
        frame = tokenizer.frame(1)
        return frame.around(tokenizer.encode([TEXT]))[0].tolist()
    except InputError as refused:
        message = str(refused)
    assert len(message.splitlines()) == 1
    assert message.endswith(".")
    return None


WHOLE = [2, 6, 7, 8, 9, 13, 4, 12, 3]


def test_a_whole_folder(folder: Path):
    assert read(write(folder, {**FILES, "vocab.txt": "\n".join(PIECES)})) == WHOLE


@FEW
@given(data=st.data())
def test_settings_with_wrong_values(folder: Path, data: st.DataObject):
    """A value of the wrong type is refused by its name. A missing one is its default, as in transformers."""
    name = data.draw(st.sampled_from(sorted(FILES)))
    path = data.draw(st.sampled_from([place for place in places(FILES[name]) if place]))
    value = data.draw(JSON | st.just(...))
    files = {**FILES, name: changed(FILES[name], path, value), "vocab.txt": "\n".join(PIECES)}
    found = read(write(folder, files))
    if path in (("do_lower_case",), ("tokenize_chinese_chars",), ("strip_accents",)) and value is not ...:
        allowed = isinstance(value, bool) or (value is None and path == ("strip_accents",))
        assert (found is not None) == allowed
    if path == ("model_max_length",):
        number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 1
        assert (found == WHOLE) == (value is ... or value is None or number)


@FEW
@given(data=st.data())
def test_a_tokenizer_json_with_wrong_values(folder: Path, fast: dict, data: st.DataObject):
    parts = {key: value for key, value in fast.items() if key != "model"}
    parts["model"] = {key: value for key, value in fast["model"].items() if key != "vocab"}
    path = data.draw(
        st.sampled_from([place for place in [*places(parts), ("model", "vocab"), ("model", "vocab", "the")] if place])
    )
    value = data.draw(JSON | st.just(...))
    files = {
        FAST: changed(fast, path, value),
        CONFIG: {
            "tokenizer_class": data.draw(
                st.sampled_from(["BertTokenizer", "PreTrainedTokenizerFast", "T5Tokenizer", None])
            )
        },
    }
    read(write(folder, files))


@FEW
@given(data=st.data())
def test_files_that_are_no_json(folder: Path, fast: dict, data: st.DataObject):
    files = {**FILES, FAST: fast, "vocab.txt": "\n".join(PIECES)}
    name = data.draw(st.sampled_from(sorted(files)))
    text = files[name] if name == "vocab.txt" else json.dumps(files[name])
    assert isinstance(text, str)
    cut = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.sampled_from(["", "{", "[" * 20_000, "9" * 5_000, "\ufeff", "nan", '"\\ud800"']))
    write(folder, files)
    (folder / name).write_text(text[:cut] + put)
    found = read(folder)
    if name != "vocab.txt":
        assert found is None


CONTRADICTIONS = {
    "code of its own": (
        {CONFIG: {"auto_map": {"AutoTokenizer": ["a.B", None]}}},
        "has auto_map, which is not supported",
    ),
    "a class with code of its own": ({CONFIG: {"tokenizer_class": "BertJapaneseTokenizer"}}, "BertJapaneseTokenizer"),
    "a class that needs other files": (
        {CONFIG: {"tokenizer_class": "T5Tokenizer"}},
        "neither tokenizer.json nor spiece.model",
    ),
    "an unknown class": (
        {CONFIG: {"tokenizer_class": "OtherTokenizer"}},
        "class is 'OtherTokenizer'; accepted without",
    ),
    "a class that is no name": ({CONFIG: {"tokenizer_class": 5}}, "tokenizer_class 5; accepted: a string"),
    "no unknown token": ({CONFIG: {"unk_token": None}}, "unk_token null"),
    "an unknown token that no piece is": ({CONFIG: {"unk_token": "<oov>"}}, "cannot be built: .*"),
    "a case that is no flag": ({CONFIG: {"do_lower_case": "yes"}}, "do_lower_case 'yes'; accepted: true or false"),
    "a length below one": ({CONFIG: {"model_max_length": -1}}, "model_max_length -1; accepted: a number of tokens"),
    "another file": ({CONFIG: {"fast_tokenizer_files": ["tokenizer.4.0.json"]}}, "fast_tokenizer_files"),
    "an id that is none": ({"added_tokens.json": {"<hl>": -3}}, "the id -3 of an added token"),
    "a map that is a list": ({"special_tokens_map.json": "[]"}, "special_tokens_map.json holds a JSON list"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_named(case: str, folder: Path):
    files, reason = CONTRADICTIONS[case]
    write(folder, {"vocab.txt": "\n".join(PIECES), **files})
    with pytest.raises(InputError, match=reason):
        folders.read(folder)


def test_vocabularies_that_cannot_be_read(folder: Path):
    for name, other in (("vocab.txt", ""), ("spiece.model", ""), ("merges.txt", "vocab.json")):
        write(folder, {})
        (folder / name).write_bytes(random.Random(1).randbytes(300))
        if other:
            (folder / other).write_bytes(b"{}")
        assert read(folder) is None
    assert read(write(folder, {})) is None


def test_a_folder_is_given_where_a_tokenizer_is_asked_for(folder: Path, fast: dict):
    """`data.tokenizer` takes a Hugging Face folder, with all its files, or one of its files."""
    write(folder, {**FILES, "vocab.txt": "\n".join(PIECES)})
    for path in (folder, folder / "vocab.txt"):
        cased = load_tokenizer(str(path))
        assert cased.frame(1).around(cased.encode([TEXT]))[0].tolist() == WHOLE
    again = load(cased.to_bytes(), cased.file_name)
    assert (again.fingerprint, again.longest) == (cased.fingerprint, 512)
    write(folder, {"vocab.txt": "\n".join(PIECES)})
    assert load_tokenizer(str(folder)).encode(["The CAFÉ"])[0].tolist() == [5, 10]
    write(folder, {FAST: fast})
    assert load_tokenizer(str(folder)).encode(["The café"])[0].tolist() == [6, 9]


def test_the_file_may_be_written_again_by_another_program(folder: Path):
    made = folders.read(write(folder, {**FILES, "vocab.txt": "\n".join(PIECES)}))
    pretty = json.dumps(json.loads(made.to_bytes()), indent=1).encode()
    assert re.match(rb'\{\n "lm"', pretty)
    assert load(pretty, made.file_name).encode([TEXT])[0].tolist() == WHOLE[1:-1]


def test_masking_draws_no_token_without_a_piece_or_a_row(folder: Path):
    """Random tokens of masked language modelling are ordinary ones; sentinels of a T5 descend from its first one."""
    pieces = {piece: index for index, piece in enumerate(PIECES)} | {"zulu": 20, "yankee": 30}
    model = {"type": "WordPiece", "vocab": pieces, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    content = {"version": "1.0", "added_tokens": [], "model": {**model, "max_input_chars_per_word": 100}}
    write(folder, {FAST: content, CONFIG: {"tokenizer_class": "BertTokenizer"}})
    tokenizer = folders.read(folder, rows=25)
    masked = MaskedLM.create(Config(), tokenizer)
    assert masked.ordinary_ids.tolist() == [*range(5, 13), 20]
    assert masked.mask_id == 4
    assert np.flatnonzero(~masked.starts_word_V).tolist() == [PIECES.index("##s")]
    with pytest.raises(InputError, match=r"'yankee' with the id 30"):
        tokenizer.encode(["yankee"])
    none = folders.read(folder, rows=4)
    with pytest.raises(InputError, match=r"mask token has the id 4, but .* 4 rows; objective.name=mlm needs it"):
        create_row_format(DataConfig(), ObjectiveConfig(), none.special)


def test_config_json_says_what_stands_around_a_text_where_no_file_of_the_tokenizer_does(folder: Path, fast: dict):
    def frame(texts: int, config: dict[str, int], **files: dict) -> tuple[tuple[int, ...], ...]:
        write(folder, {FAST: {**fast, "post_processor": None}, "config.json": config, **files})
        return folders.read(folder).frame(texts).ids

    ids = {"cls_token_id": 2, "sep_token_id": 3}
    assert frame(2, ids) == ((2,), (3,), (3,))
    assert frame(1, {"cls_token_id": 2}) == ((), ())
    assert frame(1, {**ids, "sep_token_id": 99}) == ((), ())
    assert frame(1, ids, **{CONFIG: {}}) == ((), ())


def test_config_json_names_the_kind_of_model(folder: Path):
    """By its files the folder is BERT's, whose special tokens this vocabulary does not have."""
    pieces = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *PIECES[5:]]
    write(folder, {"vocab.txt": "\n".join(pieces), "config.json": {"model_type": "mpnet"}})
    assert load_tokenizer(str(folder)).frame(2).ids == ((0,), (2, 2), (2,))
