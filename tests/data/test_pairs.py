"""A pair keeps its source and target together from the file to the store, and an empty half is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm.config import DataConfig
from lm.data import corpus, prepare
from lm.data.pairs import Pair, question_source, translation_source
from lm.data.store import Split, Store, read_pairs
from lm.errors import InputError

PAIRS = [Pair(f"question number {i}", f"答案 {i % 7} of {i}") for i in range(300)]


def as_tsv(pairs: list[Pair]) -> str:
    return "".join(f"{pair.source}\t{pair.target}\n" for pair in pairs)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_SMALLEST_SHARD", 256)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "a.tsv").write_text(as_tsv(PAIRS))
    config = DataConfig(source="tsv", path=str(folder), vocab_size=500, heldout_fraction=0.1)
    return prepare.prepare(config, str(folder / "store"), num_workers=1, progress=False)


def test_tsv_its_gzip_and_windows_line_ends_give_the_pairs(tmp_path: Path):
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfone\tein  Wort \r\n\r\nt w o\t\xe4\xba\x8c\r\n")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("last\tletztes")
    found = list(corpus.documents(DataConfig(source="tsv", path=str(tmp_path))))
    assert found == [Pair("one", "ein Wort"), Pair("t w o", "二"), Pair("last", "letztes")]


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_records_give_pairs_where_a_target_field_is_set(tmp_path: Path, source: str):
    records = [{"de": "eins\nzwei", "en": "one two", "id": 1}, {"de": "drei", "en": " three ", "id": 2}]
    if source == "parquet":
        parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    config = DataConfig(source=source, path=str(tmp_path), field="de", target_field="en")
    assert list(corpus.documents(config)) == [Pair("eins zwei", "one two"), Pair("drei", "three")]
    config.target_field = "fr"
    with pytest.raises(InputError, match=r"data\.target_field='fr'"):
        list(corpus.documents(config))
    config.target_field = "id"
    with pytest.raises(InputError, match=r"data\.target_field='id'"):
        list(corpus.documents(config))


@pytest.mark.usefixtures("small_shards")
def test_tsv_cut_into_shards_is_the_same_corpus(tmp_path: Path):
    (tmp_path / "a.tsv").write_text(as_tsv(PAIRS))
    units = corpus.shards(DataConfig(source="tsv", path=str(tmp_path)))
    assert len(units) > 20
    assert [pair for unit in units for pair in corpus.read(unit)] == PAIRS


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("tsv", b"a\tb\nno tab\n", r"a.tsv, line 2 has 1 column; accepted: 2"),
        ("tsv", b"a\tb\tc\n", r"a.tsv, line 1 has 3 columns; accepted: 2"),
        ("tsv", b"a\tb\n\nc\t \n", r"a.tsv, line 3 has an empty target"),
        ("tsv", b"a\tb\n \tc\n", r"a.tsv, line 2 has an empty source"),
        ("tsv", b"a\tb\nc\t\xff\n", r"a.tsv, line 2 is not UTF-8 \(byte 0xff\)"),
        ("tsv", b"\n\n", r"holds no pair"),
        ("jsonl", b'{"text": "a", "target": "b"}\n{"text": "a", "target": ""}', r"line 2 has an empty target"),
        ("jsonl", b'{"text": " ", "target": "b"}', r"line 1 has an empty source"),
        ("jsonl", b'{"text": "a"}', r"line 1 has no text under data.target_field='target' \(it has: text\)"),
        ("jsonl", b'{"target": "a"}', r"line 1 has no text under data.field='text'"),
    ],
)
def test_a_bad_pair_is_named_in_one_line(tmp_path: Path, source: str, content: bytes, message: str):
    path = tmp_path / f"a.{source}"
    path.write_bytes(content)
    config = DataConfig(source=source, path=str(path), target_field="target" if source == "jsonl" else "")
    with pytest.raises(InputError, match=message) as error:
        prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)
    assert "\n" not in str(error.value)


def test_an_empty_half_in_parquet_is_named(tmp_path: Path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "target": ["c", " "]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet, row 1 has an empty target"):
        list(corpus.documents(DataConfig(source="parquet", path=str(tmp_path), target_field="target")))


def split_pairs(store: Store) -> tuple[list[Pair], list[Pair]]:
    return read_pairs(store, store.train), read_pairs(store, store.heldout)


def test_the_store_gives_back_every_pair_in_one_split(made: Store):
    train, heldout = split_pairs(made)
    assert made.kind == made.manifest.get("kind") == "pairs"
    assert sorted(train + heldout) == sorted(PAIRS)
    assert 0.03 < len(heldout) / len(PAIRS) < 0.2
    assert not set(train) & set(heldout)
    for split in (made.train, made.heldout):
        assert (np.diff(split.document_offsets) == 2).all()


def test_chosen_pairs_are_read_in_the_order_asked_for(made: Store):
    everything = read_pairs(made, made.train)
    assert read_pairs(made, made.train, [5, 0, 5]) == [everything[5], everything[0], everything[5]]
    assert read_pairs(made, made.train, []) == []


def test_pairs_of_one_source_or_group_are_in_one_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repeated = [Pair(f"source {i % 60}", f"target {i}") for i in range(240)]
    (tmp_path / "a.tsv").write_text(as_tsv(repeated))
    config = DataConfig(source="tsv", path=str(tmp_path), vocab_size=500, heldout_fraction=0.3)
    train, heldout = split_pairs(prepare.prepare(config, str(tmp_path / "by_source"), num_workers=1, progress=False))
    assert len(train) + len(heldout) == 240
    assert {pair.source for pair in heldout}
    assert not {pair.source for pair in train} & {pair.source for pair in heldout}

    grouped = [pair._replace(source=f"source {i}", group=str(i % 40)) for i, pair in enumerate(repeated)]
    monkeypatch.setattr(corpus, "_file_shards", lambda _: corpus._grouped("tsv", grouped))
    train, heldout = split_pairs(prepare.prepare(config, str(tmp_path / "by_group"), num_workers=1, progress=False))
    group = {pair.source: pair.group for pair in grouped}
    assert heldout
    assert not {group[pair.source] for pair in train} & {group[pair.source] for pair in heldout}


def test_pairs_of_one_source_cannot_be_held_out(tmp_path: Path):
    (tmp_path / "a.tsv").write_text("same\tone\nsame\ttwo\n")
    config = DataConfig(source="tsv", path=str(tmp_path))
    with pytest.raises(InputError, match=r"only the pairs of one source, so.*data.heldout_fraction=0"):
        prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)


def test_a_store_of_documents_is_no_store_of_pairs(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "A document.", "title": "One"}\n{"text": "Two.", "title": "Two"}\n')
    config = DataConfig(source="jsonl", path=str(tmp_path))
    documents = prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)
    assert documents.kind == "documents"
    with pytest.raises(InputError, match=r"holds documents, not pairs; prepare one with data.source=tsv"):
        read_pairs(documents, documents.train)
    config.target_field = "title"
    with pytest.raises(InputError, match=r"made with other settings: data.target_field \('' -> 'title'\)"):
        prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)


def test_a_store_older_than_a_setting_is_still_opened(made: Store, tmp_path: Path):
    """Stores made before `split_digits` were made without it."""
    settings: dict[str, Any] = {**made.manifest["settings"]}
    older_settings = {name: value for name, value in settings.items() if name != "split_digits"}
    path = Path(made.path)
    older = tmp_path / "older"
    older.mkdir()
    for name in ("tokenizer.model", "shards"):
        (older / name).symlink_to(path / name)
    (older / "manifest.json").write_text(json.dumps({**made.manifest, "settings": older_settings}))
    opened = prepare.prepare(DataConfig(**settings), str(older), num_workers=1, progress=False)
    assert opened.train.num_documents == made.train.num_documents
    with pytest.raises(InputError, match=r"data.split_digits \(False -> True\)"):
        prepare.prepare(DataConfig(**{**settings, "split_digits": True}), str(older), num_workers=1, progress=False)


def test_a_half_without_tokens_is_refused(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb")
    (tmp_path / "a.tsv").write_text("a\tb\nb\t\u0300\n")
    config = DataConfig(source="tsv", path=str(tmp_path / "a.tsv"), tokenizer=str(tmp_path), heldout_fraction=0.0)
    with pytest.raises(InputError, match=r"no token for one half of the pair 'b', '\u0300'"):
        prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)


def test_digits_are_split_where_that_is_asked_for(tmp_path: Path):
    numbers = [Pair(f"in {1900 + i % 3} it was", f"{1900 + i % 3}-11") for i in range(400)]
    (tmp_path / "a.tsv").write_text(as_tsv([Pair(f"{pair.source} {i}", pair.target) for i, pair in enumerate(numbers)]))
    pieces: dict[bool, set[str]] = {}
    for split in (False, True):
        config = DataConfig(source="tsv", path=str(tmp_path / "a.tsv"), vocab_size=500, split_digits=split)
        made = prepare.prepare(config, str(tmp_path / str(split)), num_workers=1, progress=False)
        ids: Split = made.train
        pieces[split] = {
            made.tokenizer.id_to_piece(i) for i in set(ids.read(np.array([0]), np.array([ids.num_tokens])))
        }
    assert any(sum(map(str.isdigit, piece)) > 1 for piece in pieces[False])
    assert not any(sum(map(str.isdigit, piece)) > 1 for piece in pieces[True])


def test_sources_of_the_applications_are_one_line():
    assert translation_source("Open\n the  file", "zh_CN") == "translate to zh_CN: Open the file"
    assert question_source("What is x?", "Args:\n    x: y.") == "question: What is x? context: Args: x: y."
