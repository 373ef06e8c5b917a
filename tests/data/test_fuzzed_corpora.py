"""Whatever is in a file, a reader yields its texts or names the file and the line or row. It never fails otherwise."""

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from lm.config import DataConfig
from lm.data import corpus
from lm.data.pairs import Pair
from lm.errors import InputError

READERS = {"text": {}, "jsonl": {}, "tsv": {}, "parquet": {}, "jsonl pairs": {"target_field": "target"}}
# Values that a record may hold; what Python's own reader refuses is written by hand.
VALUES = ['"text"', '""', "null", "3", "1e999", "NaN", "[]", "{}", '"\\ud800"', '"\\u200b"', '"\\u0000"', "true"]
HOSTILE = ["9" * 5000, "[" * 100_000, '{"a":' * 100_000, '"\\x"', '"open', "'single'", "\ufeff", "\x00", "{", "}"]
LINES = [b"plain text", b"a\tb", b"a\tb\tc", b"\t", b"\xff\xfe", b"\xed\xa0\x80", b"", b" ", b"\r", b"\x00\x85\x0c"]


def records(random_: random.Random) -> bytes:
    """Lines of JSON, most of them valid, with fields of every kind."""
    lines = []
    for _ in range(random_.randint(0, 6)):
        values = {name: random_.choice(['"one"', '"two"', '"\\ud800"', "null"]) for name in ("text", "target")}
        if random_.random() < 0.2:
            values |= {random_.choice(["text", "target", "\\u0000", "x" * 500, ""]): random_.choice(VALUES)}
        line = "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"
        lines.append((line if random_.random() < 0.9 else random_.choice(HOSTILE + VALUES)).encode())
    return random_.choice([b"\n", b"\r\n"]).join(lines)


def content(random_: random.Random, source: str) -> bytes:
    if source.startswith("jsonl") and random_.random() < 0.8:
        return records(random_)
    if random_.random() < 0.2:
        return random_.randbytes(random_.randint(0, 200))
    return b"\n".join(random_.choice(LINES if random_.random() < 0.2 else [b"a\tb"]) for _ in range(5))


def parquet_file(random_: random.Random, path: Path) -> None:
    """A file of columns of any type and name, which may be cut or changed."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = random_.randint(0, 4)

    def column():
        texts = random_.choices(["one", "", None, "\u200b", "zwei"], k=rows)
        raw = arrow.array(random_.choices([b"one", b"\xff", b"caf\xe9"], k=rows), arrow.binary())
        return random_.choice(
            [
                lambda: arrow.array(texts, arrow.string()),
                lambda: arrow.array(texts, arrow.large_string()),
                lambda: arrow.array(texts, arrow.string()).dictionary_encode(),
                lambda: arrow.array([None] * rows),
                lambda: arrow.array([None] * rows, arrow.int64()),
                lambda: arrow.array(list(range(rows)), arrow.timestamp("ns")),
                lambda: arrow.array([["a"]] * rows, arrow.list_(arrow.string())),
                lambda: arrow.array([{"text": "a"}] * rows),
                lambda: raw,
                lambda: arrow.Array.from_buffers(arrow.string(), rows, raw.buffers()),
            ]
        )()

    names = random_.choices(["text", "text", "other", "a.b", ""], k=random_.randint(1, 3))
    parquet.write_table(arrow.Table.from_arrays([column() for _ in names], names=names), path)
    written = bytearray(path.read_bytes())
    if random_.random() < 0.3:
        for _ in range(3):
            written[random_.randrange(len(written))] = random_.randrange(256)
    path.write_bytes(written[: random_.randrange(len(written)) if random_.random() < 0.2 else len(written)])


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_gives_texts_or_names_the_place(tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "_SMALLEST_SHARD", 64)
    source = reader.split()[0]
    suffix = {"text": ".txt"}.get(source, f".{source}")
    refused = read = 0
    for seed in range(120):
        random_ = random.Random(seed)
        path = tmp_path / f"{seed}{suffix}"
        if source == "parquet":
            parquet_file(random_, path)
        else:
            path.write_bytes(content(random_, reader))
            if random_.random() < 0.2:
                path = path.rename(f"{path}.gz")
                packed = b"".join(gzip.compress(path.read_bytes()) for _ in range(2))
                path.write_bytes(packed[: random_.randrange(len(packed)) if random_.random() < 0.5 else len(packed)])
        try:
            texts = list(corpus.documents(DataConfig(source=source, path=str(path), **READERS[reader])))
        except InputError as error:
            refused += 1
            message = str(error)
            whole = "cannot be read|holds no|has no column|has \\d+ columns"
            assert path.name in message, message
            assert re.search(rf", (line|row) \d+|{whole}", message), message
            assert len(message) < 1000
        else:
            read += 1
            for text in texts:
                halves = text[:2] if isinstance(text, Pair) else [text]
                assert all(half == half.strip() and half.encode() for half in halves)
    assert refused > 10
    assert read > 10


def place(tmp_path: Path, source: str, **fields) -> str:
    with pytest.raises(InputError) as refusal:
        list(corpus.documents(DataConfig(source=source, path=str(tmp_path), **fields)))
    return str(refusal.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"text": ' + b'{"a":' * 200_000, "nested too deeply"),
        (b'{"text": 1, "' + b"k" * 10_000 + b'": 2}', "data.field='text' is a JSON int; it must be text"),
    ],
)
def test_a_hostile_line_is_named(tmp_path: Path, line: bytes, reason: str):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    message = place(tmp_path, "jsonl")
    assert "a.jsonl, line 2" in message
    assert reason in message
    assert len(message) < 500


def test_nulls_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture):
    from lm.data import prepare

    records = [{"text": None if i % 10 == 7 else f"document number {i} has words"} for i in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = DataConfig(source="jsonl", path=str(tmp_path), vocab_size=420)
    store = prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)
    assert sum(split["documents"] for split in store.manifest["splits"].values()) == 54
    assert store.manifest.get("skipped") == 6
    assert "left out 6 records with null as data.field" in capsys.readouterr().err
    pairs = [{"text": "a", "target": "b"}, {"text": "a", "target": None}, {"text": None, "target": "b"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in pairs))
    (shard,) = corpus.shards(DataConfig(source="jsonl", path=str(tmp_path / "pairs.jsonl"), target_field="target"))
    skipped: list[None] = []
    assert list(corpus.read(shard, lambda: skipped.append(None))) == [Pair("a", "b")]
    assert len(skipped) == 2


def test_parquet_names_the_row_or_the_columns(tmp_path: Path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    raw = arrow.array([b"fine"] * 1500 + [b"caf\xe9"], arrow.binary())
    latin = arrow.Array.from_buffers(arrow.string(), len(raw), raw.buffers())
    parquet.write_table(arrow.table({"text": latin}), tmp_path / "a.parquet")
    assert "a.parquet, row 1500: data.field='text' is not UTF-8 (byte 0xe9)" in place(tmp_path, "parquet")
    text = arrow.array(["a"])
    parquet.write_table(arrow.Table.from_arrays([text, text], names=["text", "text"]), tmp_path / "a.parquet")
    assert "a.parquet has 2 columns data.field='text'" in place(tmp_path, "parquet")
