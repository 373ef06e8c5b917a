"""Readers yield the documents that are in the files, and say where a file is wrong."""

import gzip
import json
import pickle
import sys
import threading
from pathlib import Path

import pytest

from lm.config import DataConfig
from lm.data import corpus
from lm.errors import InputError


def config(source: str, path: object, **fields) -> DataConfig:
    return DataConfig(source=source, path=str(path), **fields)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes become many shards."""
    monkeypatch.setattr(corpus, "_SMALLEST_SHARD", 64)


def test_text_documents_are_separated_by_blank_lines(tmp_path: Path):
    (tmp_path / "b.txt").write_bytes("\ufeffFirst.\r\nStill first.\r\n\r\n \t\r\nSecond.".encode())
    (tmp_path / "a.txt").write_text("Whole\nfile.\n")
    (tmp_path / "c.txt").write_text("\n\n")
    (tmp_path / "ignored.bin").write_text("no text")
    assert list(corpus.documents(config("text", tmp_path))) == ["Whole\nfile.", "First.\nStill first.", "Second."]


def test_paths_may_be_files_folders_and_globs(tmp_path: Path):
    for name in ("x1.txt", "x2.txt", "deep/y.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    paths = f"{tmp_path}/x*.txt, {tmp_path}/deep,{tmp_path}/x1.txt"
    assert list(corpus.documents(config("text", paths))) == ["x1.txt", "x2.txt", "deep/y.txt"]


def test_jsonl_and_its_gzip_give_the_field(tmp_path: Path):
    lines = [{"body": " one ", "id": 1}, {"body": "", "id": 2}, {"body": "二\nlines \ud800", "id": 3}]
    content = "\n\n".join(map(json.dumps, lines))
    (tmp_path / "a.jsonl").write_text(content)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(content)
    assert list(corpus.documents(config("jsonl", tmp_path, field="body"))) == ["one", "二\nlines ?"] * 2


def test_parquet_gives_the_column(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert list(corpus.documents(config("parquet", tmp_path))) == ["one", "two"]
    with pytest.raises(InputError, match=r"no column data.field='body'; accepted: text, n"):
        list(corpus.documents(config("parquet", tmp_path, field="body")))
    with pytest.raises(InputError, match=r"row 0: data.field='n' is int"):
        list(corpus.documents(config("parquet", tmp_path, field="n")))


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"pip install -e '.\[parquet\]'"):
        list(corpus.documents(config("parquet", tmp_path)))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("gaps", [1, 2, 3])
def test_text_cut_into_shards_is_the_same_corpus(tmp_path: Path, newline: str, gaps: int):
    """Cuts fall into lines, at their ends and into runs of blank lines."""
    expected = [f"document {i}{newline}" + "x" * (i % 50) + "y" for i in range(100)]
    (tmp_path / "a.txt").write_text((newline * (gaps + 1)).join(expected), newline="")
    units = corpus.shards(config("text", tmp_path))
    assert len(units) > 20
    found = [document for unit in pickle.loads(pickle.dumps(units)) for document in corpus.read(unit)]
    assert found == [document.replace("\r", "") for document in expected]


@pytest.mark.usefixtures("small_shards")
def test_jsonl_cut_into_shards_is_the_same_corpus(tmp_path: Path):
    expected = ["x" * (i % 70) + str(i) for i in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in expected))
    units = corpus.shards(config("jsonl", tmp_path))
    assert len(units) > 20
    assert [document for unit in units for document in corpus.read(unit)] == expected


@pytest.mark.usefixtures("small_shards")
def test_small_files_share_a_shard_and_keep_their_order(tmp_path: Path):
    for i in range(50):
        (tmp_path / f"{i:02d}.txt").write_text(f"document {i:02d}")
    units = corpus.shards(config("text", tmp_path))
    assert 1 < len(units) < 20
    assert [text for unit in units for text in corpus.read(unit)] == [f"document {i:02d}" for i in range(50)]
    assert sum(unit.size for unit in units) == 50 * len("document 00")


@pytest.mark.usefixtures("small_shards")
def test_a_shard_is_closed_as_soon_as_it_is_large_enough(tmp_path: Path):
    sizes = [1 + 37 * i % 61 for i in range(60)]
    for i, size in enumerate(sizes):
        (tmp_path / f"{i:02d}.txt").write_text("x" * size)
    units = corpus.shards(config("text", tmp_path))
    found = [[Path(file).stat().st_size for file in unit.files] for unit in units]
    assert [size for group in found for size in group] == sizes
    assert [unit.size for unit in units] == list(map(sum, found))
    assert all(sum(group) >= 64 > sum(group[:-1]) for group in found[:-1])


@pytest.mark.usefixtures("small_shards")
def test_a_part_without_a_blank_line_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not to the end of the file, which would read a file without blank lines once for each of its parts."""
    document = "\n".join(f"line {i}" for i in range(1000))
    (tmp_path / "a.txt").write_text(document)
    (tmp_path / "b.txt").write_text(f"one\n\n{document}\n\nlast")
    read, lines = [], corpus.files.lines
    monkeypatch.setattr(
        corpus.files, "lines", lambda *args: (read.append(len(line[1])) or line for line in lines(*args))
    )
    units = corpus.shards(config("text", tmp_path))
    assert len(units) > 100
    assert [text for unit in units for text in corpus.read(unit)] == [document, "one", document, "last"]
    assert sum(read) < 5 * len(document)


def test_sizes_of_remote_files_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = [f"s3://bucket/{i:03d}.txt" for i in range(64)]
    together = threading.Barrier(32, timeout=20)
    monkeypatch.setattr(corpus.files, "paths", lambda *_: paths)
    monkeypatch.setattr(corpus.storage, "size", lambda path: together.wait() * 0 + int(path[-7:-4]) + 1)
    (unit,) = corpus.shards(config("text", "s3://bucket"))
    assert (unit.files, unit.size) == (tuple(paths), 64 * 65 // 2)


@pytest.mark.parametrize("lines", ["text", "tsv"])
def test_the_names_of_files_say_how_they_are_read(tmp_path: Path, lines: str):
    for source in ("jsonl", "parquet", lines):
        for number, suffix in enumerate(corpus.SUFFIXES[source]):
            file = tmp_path / source / str(number) / f"a{suffix}"
            file.parent.mkdir(parents=True)
            file.write_bytes(b"")
            for path in (file, file.parent, f"{file.parent}/*", tmp_path / source, f"{file}, {file.parent}"):
                assert corpus.source_of(str(path), lines) == source
    (tmp_path / "unknown.log").write_bytes(b"")
    assert corpus.source_of(str(tmp_path / "unknown.log"), lines) == lines
    with pytest.raises(
        InputError, match=r"has files of several kinds: .*\(jsonl\), .*\(parquet\), .*give those of one"
    ):
        corpus.source_of(str(tmp_path), lines)
    with pytest.raises(InputError, match="matches nothing"):
        corpus.source_of(str(tmp_path / "absent"), lines)


def test_digest_changes_with_the_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    (before,) = corpus.shards(config("text", path))
    path.write_text("longer")
    (after,) = corpus.shards(config("text", path))
    assert before.digest() != after.digest()


@pytest.mark.parametrize(
    ("source", "name", "content", "message"),
    [
        ("text", "a.txt", b"fine\n\nbad \xff\n", r"a.txt, line 3 is not UTF-8 \(byte 0xff\); convert"),
        ("jsonl", "a.jsonl", b'{"text": "\xff"}', r"a.jsonl, line 1 is not UTF-8"),
        ("jsonl", "a.jsonl", b'{"text": "a"}\n\n{"text": \n', r"a.jsonl, line 3 is not JSON"),
        ("jsonl", "a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', r"line 2 has no text under data.field='text' .*: body"),
        ("jsonl", "a.jsonl", b'{"text": 3}', r"line 1: data.field='text' is a JSON int; it must be text"),
        ("jsonl", "a.jsonl", b'{"text": ["a"]}', r"line 1: data.field='text' is a JSON list"),
        (
            "jsonl",
            "a.jsonl",
            gzip.compress(b'{"text": "a"}', mtime=0),
            r"a.jsonl is compressed with gzip; .* ends with .gz",
        ),
        ("jsonl", "a.jsonl", b"[1]", r"line 1 has no text .* \(it has: list\)"),
        ("jsonl", "a.jsonl.gz", b"no gzip", r"a.jsonl.gz cannot be read"),
        ("parquet", "a.parquet", b"no parquet", r"a.parquet cannot be read as Parquet"),
        ("text", "a.txt", b"", r"holds no document"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, source: str, name: str, content: bytes, message: str):
    if source == "parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(corpus.documents(config(source, tmp_path / name)))


@pytest.mark.usefixtures("small_shards")
def test_errors_in_a_later_shard_count_lines_from_the_start_of_the_file(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 40 + "{}\n")
    with pytest.raises(InputError, match="line 41 has no text"):
        list(corpus.documents(config("jsonl", tmp_path)))


@pytest.mark.parametrize("path", ["missing.txt", "*.nothing", "empty"])
def test_a_path_that_matches_nothing_is_refused(tmp_path: Path, path: str):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"matches nothing that can be read as text; give"):
        corpus.shards(config("text", tmp_path / path))


def test_docstrings_are_read_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = "A docstring that says a lot. " * 10
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "module.py").write_text(
        f'"""{long}0"""\nraise SystemExit("imported")\n'
        f'class A:\n    """\n    {long}1\n        indented\n    """\n'
        f'    def f(self):\n        """{long}2"""\n'
        f'try:\n    pass\nexcept ImportError:\n    def g():\n        """{long}3"""\n'
        f'def same():\n    """{long}0"""\ndef short():\n    """Short."""\n'
    )
    (tmp_path / "site" / "broken.py").write_text(f'"""{long}""" (')
    (tmp_path / "site" / "python2.py").write_text(f'"""{long}"""\nprint "\\d"')
    monkeypatch.setattr(
        corpus.sysconfig, "get_paths", lambda: dict.fromkeys(("stdlib", "purelib", "platlib"), tmp_path)
    )
    found = list(corpus.documents(DataConfig(source="installed-docs")))
    assert found == [f"{long}0", f"{long}1\n    indented", f"{long}2", f"{long}3"]
