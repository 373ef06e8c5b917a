"""The ids of every folder are those of transformers' AutoTokenizer, before and after import and export."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from lm.config import Config
from lm.errors import InputError
from lm.huggingface.tokenizer import read_tokenizer, write_tokenizer
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece
from tests.peers import tokenizer_folders
from tests.peers.tokenizer_folders import AXES, BERT, LINES, WORDS, folders, hard_texts, model_type, write
from tests.tokenizing.test_folders import FEW, FILES, JSON, PIECES, TEXT, changed, places
from tests.tokenizing.test_folders import write as write_files

pytestmark = pytest.mark.peers

TEXTS, MARKUP = hard_texts(), "[CLS] a[SEP]b <hl>"
VOCABULARIES = tokenizer_folders.vocabularies()
# Of these classes transformers saves no tokenizer.json, and decodes the code of the language with the text.
IN_PYTHON = ("marian", "m2m_100")


def theirs_of(folder: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(folder)


def assert_equal(folder: Path, name: str) -> None:
    """Compares all texts, a pair with its token types, and the roles."""
    theirs, ours = theirs_of(folder), read_tokenizer(folder)
    one, two = ours.frame(1), ours.frame(2)
    expected = theirs(TEXTS)["input_ids"]
    for text, ids, found in zip(TEXTS, expected, ours.encode(TEXTS), strict=True):
        assert one.around([found])[0].tolist() == ids, (name, text[:80])
    pair = theirs(TEXTS[20], TEXTS[30])
    tokens, types = two.around(ours.encode([TEXTS[20], TEXTS[30]]))
    assert tokens.tolist() == pair["input_ids"], name
    if "token_type_ids" in pair:
        assert types.tolist() == pair["token_type_ids"], name
    for role in ("pad", "unk", "mask"):
        if (index := getattr(theirs, f"{role}_token_id")) is not None:
            assert getattr(ours.special, role) == index, (name, role)


@pytest.mark.parametrize("family", AXES)
def test_ids_of_every_folder(family: str, tmp_path: Path):
    """By hand with the vocabulary's files, as version 5 saves it, and as version 4 did."""
    for number, (name, files) in enumerate(folders(family)):
        by_hand, saved, older = (tmp_path / f"{number}-{form}" for form in ("hand", "saved", "older"))
        write(by_hand, VOCABULARIES[family], family, files)
        if family == "albert" and files.get("special_tokens_map.json"):  # [SEP] is renamed to a token it lacks
            with pytest.raises(TypeError, match="special_tokens"):
                theirs_of(by_hand)
            with pytest.raises(InputError, match="cannot be built"):
                read_tokenizer(by_hand)
            continue
        assert_equal(by_hand, name)
        if number % 2:
            continue
        theirs = theirs_of(by_hand)
        theirs.save_pretrained(saved)
        shutil.copy(by_hand / "config.json", saved)
        assert_equal(saved, f"saved, {name}")
        if family not in IN_PYTHON:
            older.mkdir()
            shutil.copy(by_hand / "config.json", older)
            shutil.copy(saved / "tokenizer.json", older)
            shutil.copy(by_hand / "tokenizer_config.json", older)
            assert_equal(older, f"older, {name}")


def test_the_matrix_is_large():
    assert len(set(TEXTS)) == len(TEXTS) == 200
    assert max(map(len, TEXTS)) > 10_000
    by_hand = {family: len(list(folders(family))) for family in AXES}
    others = sum(-(-count // 2) * (1 if family in IN_PYTHON else 2) for family, count in by_hand.items())
    assert (sum(by_hand.values()) + others) * len(TEXTS) > 10_000


def fast_tokenizers() -> dict[str, Tokenizer]:
    """Files as the `tokenizers` library writes them, with parts and ids that no class of transformers makes."""
    made = {}
    gap = {piece: index for index, piece in enumerate([*BERT, *WORDS])} | {"zulu": 900}
    words = Tokenizer(models.WordPiece(gap, unk_token="[UNK]"))
    words.normalizer = normalizers_of_bert()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in BERT])
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    words.enable_truncation(8)
    words.enable_padding(length=8)
    made["gap"] = words
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<s>", "</s>", *(f"▁{word}" for word in WORDS)]
    tags = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    tags.pre_tokenizer, tags.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tags.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:5]])
    tags.add_tokens([AddedToken(name, normalized=False) for name in names[5:7]])
    tags.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B:1 <eos>:1", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    made["tags"] = tags
    return made


def normalizers_of_bert():
    from tokenizers import normalizers

    return normalizers.BertNormalizer(lowercase=False)


TAGS = {"cls": "<bos>", "sep": "<eos>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}


@pytest.mark.parametrize("model_type", ["modernbert", "bert", "umt5", "unheard-of"])
def test_a_tokenizer_json_runs_as_it_is(model_type: str, tmp_path: Path):
    for name, roles in {"gap": {}, "tags": {f"{role}_token": token for role, token in TAGS.items()}}.items():
        folder = tmp_path / name
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
        write(folder, {}, model_type, {"tokenizer_config.json": config})
        fast_tokenizers()[name].save(str(folder / "tokenizer.json"))
        assert_equal(folder, name)
        ours = read_tokenizer(folder)
        if name == "tags":
            assert (ours.special.cls, ours.special.sep, ours.special.mask) == (2, 1, 4)
        else:
            assert (ours.vocab_size, ours.id_to_piece(900), ours.id_to_piece(800)) == (901, "zulu", "")


def encoded(text: str, ours, kept) -> list[int]:
    return kept.around([ours.encode_with_masks(text)])[0].tolist()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_an_export_of_an_own_tokenizer_reads_back(kind: str, tmp_path: Path):
    """By AutoTokenizer and by our own import, in English and Chinese, with masks, bytes and every white space."""
    chinese = ["天地玄黄，宇宙洪荒。", "日月盈昃，辰宿列张。", "寒来暑往，秋收冬藏。"] * 10
    own = SentencePiece.train([*LINES, *chinese], vocab_size=700, kind=kind)
    config = Config()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    write_tokenizer(tmp_path, own, config)
    theirs, again = theirs_of(tmp_path), read_tokenizer(tmp_path)
    one, two, back = WORDS[0], WORDS[1], WORDS[2]
    masked = [
        f"{one} [MASK] {two}",
        f"{one} [MASK].",
        "[MASK]",
        " [MASK] x",
        "  [MASK]",
        f"[MASK]{back}",
        "天[MASK]荒",
        "a\n[MASK]",
    ]
    markup = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<extra_id_")
    texts = [*masked, *LINES[:50], *chinese[:3], *(text for text in TEXTS if not any(name in text for name in markup))]
    for text in texts:
        ids = encoded(text, own, own.frame(1))
        assert theirs(text)["input_ids"] == ids, text
        assert encoded(text, again, again.frame(1)) == ids, text
        if "[MASK]" not in text and "▁" not in text:
            assert again.decode(again.encode([text])[0]) == text
    pair = theirs("a b", "c")
    tokens, types = own.frame(2).around(own.encode(["a b", "c"]))
    assert (pair["input_ids"], pair["token_type_ids"]) == (tokens.tolist(), types.tolist())
    assert (theirs.mask_token, theirs.cls_token, theirs.pad_token_id) == ("[MASK]", "[CLS]", 0)
    assert again.special == own.special
    assert (again.starts_word() == own.starts_word()).all()


@pytest.mark.parametrize("family", AXES)
def test_an_export_of_an_imported_tokenizer_reads_back(family: str, tmp_path: Path):
    write(tmp_path / "given", VOCABULARIES[family], family, list(folders(family))[2][1])
    first = read_tokenizer(tmp_path / "given")
    (tmp_path / "back").mkdir()
    (tmp_path / "back/config.json").write_text(json.dumps({"model_type": model_type(family)}))
    write_tokenizer(tmp_path / "back", first, Config())
    assert_equal(tmp_path / "back", family)
    second = read_tokenizer(tmp_path / "back")
    assert [ids.tolist() for ids in second.encode(TEXTS)] == [ids.tolist() for ids in first.encode(TEXTS)]
    assert second.special == first.special
    expected = theirs_of(tmp_path / "given")
    kept = [f"{WORDS[0]} {WORDS[1]}, a."]
    ids = expected(kept[0], add_special_tokens=False)["input_ids"]
    assert first.decode(ids) == second.decode(ids) == expected.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@settings(FEW, max_examples=100)
@given(data=st.data())
def test_a_damaged_folder_gives_the_same_ids_or_a_refusal(damaged: Path, data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(FILES)))
    path = data.draw(st.sampled_from([place for place in places(FILES[name]) if place]))
    files = {**FILES, name: changed(FILES[name], path, data.draw(JSON | st.just(...)))}
    write_files(damaged, {**files, "vocab.txt": "\n".join(PIECES), "config.json": {"model_type": "bert"}})
    try:
        ours = read_tokenizer(damaged)
    except InputError:
        return
    if "__type" not in path:  # transformers takes the objects of special_tokens_map.json alone without it
        theirs = theirs_of(damaged)([TEXT, MARKUP])["input_ids"]
        assert [ours.frame(1).around([ids])[0].tolist() for ids in ours.encode([TEXT, MARKUP])] == theirs


def test_a_token_without_a_row_is_an_error_of_its_text(tmp_path: Path):
    vocabulary = {"vocab.txt": "\n".join([*BERT, *sorted(set(WORDS))])}
    write(tmp_path / "bert", vocabulary, "bert", {"added_tokens.json": {"<hl>": 1000}})
    whole = read_tokenizer(tmp_path / "bert")
    last = whole.vocab_size - 1
    assert whole.id_to_piece(last) == "<hl>"
    short = read_tokenizer(tmp_path / "bert", rows=last)
    assert short.encode([WORDS[0]])[0].tolist() == whole.encode([WORDS[0]])[0].tolist()
    with pytest.raises(InputError, match=rf"'<hl>' with the id {last}, but the model's table of embeddings has {last}"):
        short.encode([WORDS[0], f"{WORDS[1]} <hl>"])
    assert last in short.special_ids
