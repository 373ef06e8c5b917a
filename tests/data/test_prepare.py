"""A preparation is complete or absent, goes on after a kill, and holds out whole documents."""

import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm import lease
from lm.config import DataConfig
from lm.data import changes, corpus, prepare
from lm.data.sentences import sentences
from lm.data.store import Split, Store
from lm.errors import InputError
from lm.tokenizers.tokenizer import FILES, load_tokenizer

ROOT = Path(__file__).parents[2]

# Prepares with many small shards and, told so, kills itself before a shard's marker is written:
# with several processes the worker kills its parent, as an operator or the kernel might.
SCRIPT = """
import json, multiprocessing, os, signal, sys
from lm.config import DataConfig
from lm.data import corpus, prepare, store

fields, out, workers, kill_at = json.loads(sys.argv[1])
corpus._SMALLEST_SHARD = 4096
write_key = store.write_key

def write_or_die(path, name, value):
    if name == kill_at:
        parent = multiprocessing.parent_process()
        os.kill(parent.pid if parent else os.getpid(), signal.SIGKILL)
    write_key(path, name, value)

store.write_key = write_or_die
if __name__ == "__main__":
    prepare.prepare(DataConfig(**fields), out, num_workers=workers, progress=False)
"""


def run_script(tmp_path: Path, config: DataConfig, out: Path, workers: int = 1, kill_at: str = "") -> int:
    (tmp_path / "script.py").write_text(SCRIPT)
    arguments = json.dumps([dataclasses.asdict(config), str(out), workers, kill_at])
    # The pipes are read to their end: orphaned workers that live on would make this time out.
    process = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), arguments],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        timeout=60,
    )
    return process.returncode


def contents(folder: Path) -> dict[str, str]:
    """Every file's hash."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def texts(store: Store, split: Split) -> list[str]:
    bounds = split.sentence_offsets
    ids = split.read(np.array([0]), np.array([split.num_tokens]))
    segments = [store.tokenizer.decode(ids[start:end]) for start, end in itertools.pairwise(bounds)]
    offsets = split.document_offsets
    return [" ".join(segments[start:end]) for start, end in itertools.pairwise(offsets)]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_SMALLEST_SHARD", 4096)


def test_every_document_is_in_one_split(made: Store, documents: list[str]):
    expected = [" ".join(sentences(document)) for document in documents]
    train, heldout = texts(made, made.train), texts(made, made.heldout)
    assert sorted(train + heldout) == sorted(expected)
    assert not set(train) & set(heldout)
    assert 0.04 < len(heldout) / len(expected) < 0.2


@pytest.mark.usefixtures("small_shards")
def test_the_split_does_not_depend_on_the_shards(made: Store, data_config: DataConfig, tmp_path: Path):
    cut = prepare.prepare(data_config, str(tmp_path), num_workers=1, progress=False)
    assert len(cut.manifest["shards"]) > 5 > len(made.manifest["shards"])
    assert texts(cut, cut.heldout) == texts(made, made.heldout)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, data_config: DataConfig, workers: int, monkeypatch: pytest.MonkeyPatch
):
    assert run_script(tmp_path, data_config, tmp_path / "unbroken") == 0
    killed = tmp_path / "killed"
    assert run_script(tmp_path, data_config, killed, workers, kill_at="shards/00004/complete.json") == -9
    complete = {path.parent.name for path in killed.glob("shards/*/complete.json")}
    # The worker that shot its parent may finish its shard before it is gone itself; the other may be in an earlier one.
    assert len({"00000", "00001", "00002", "00003"} & complete) >= 3
    assert len(complete) < len(list((tmp_path / "unbroken").glob("shards/*")))
    with pytest.raises(InputError, match="no complete token store"):
        Store.open(str(killed))

    written = []
    write_shard = prepare.shard_jobs.write
    monkeypatch.setattr(prepare.shard_jobs, "write", lambda job: written.append(f"{job.index:05d}") or write_shard(job))
    monkeypatch.setattr(prepare.SentencePiece, "train", None)  # the tokenizer is there already
    prepare.prepare(data_config, str(killed), num_workers=1, progress=False)
    assert not set(written) & complete
    assert contents(killed) == contents(tmp_path / "unbroken")


def test_a_complete_store_is_opened_without_its_corpus(made: Store, data_config: DataConfig):
    again = prepare.prepare(dataclasses.replace(data_config, batch_size=2), made.path, num_workers=1, progress=False)
    assert again.manifest == made.manifest


def test_a_store_tells_how_its_files_have_changed(made: Store, tmp_path: Path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    text = folder / "a.txt"
    text.write_text("One day.\n\nTwo nights.\n\nThree years.\n")
    os.utime(text, (1e9, 1e9))
    config = DataConfig(source="text", path=str(folder), heldout_fraction=0.4)
    out = str(tmp_path / "store")
    manifest = prepare.prepare(config, out, num_workers=1, progress=False, tokenizer=made.tokenizer).manifest
    assert changes.since(manifest) == ""
    os.utime(text, (2e9, 2e9))
    assert changes.since(manifest) == "a file has another name or modification time"
    (folder / "b.txt").write_text("Four.\n")
    assert changes.since(manifest) == "1 file(s) of 36 bytes then, 2 file(s) of 42 bytes now"
    older = manifest.copy()
    del older["listing"]
    assert changes.since(older) == ""
    assert prepare.prepare(config, out, progress=False, tokenizer=made.tokenizer).manifest == manifest
    folder.rename(tmp_path / "elsewhere")  # as on a machine that has the store alone
    assert changes.since(manifest) == ""


def test_a_store_made_with_other_settings_is_refused_by_name(made: Store, data_config: DataConfig):
    other = dataclasses.replace(data_config, vocab_size=700, heldout_fraction=0.2)
    with pytest.raises(InputError, match=r"data.vocab_size \(600 -> 700\), data.heldout_fraction \(0.1 -> 0.2\)"):
        prepare.prepare(other, made.path, num_workers=1, progress=False)


@pytest.mark.usefixtures("small_shards")
def test_an_unfinished_store_of_another_corpus_starts_afresh(tmp_path: Path, data_config: DataConfig):
    out = tmp_path / "out"
    assert run_script(tmp_path, data_config, out, kill_at="shards/00006/complete.json") == -9
    path = tmp_path / "other.txt"
    path.write_text("\n\n".join(f"Another document, number {i}." for i in range(30)))
    other = dataclasses.replace(data_config, path=str(path))
    made = prepare.prepare(other, str(out), num_workers=1, progress=False)
    assert sum(split["documents"] for split in made.manifest["splits"].values()) == 30
    assert len(list(out.glob("shards/*"))) == len(made.manifest["shards"]) == 1


@pytest.mark.parametrize("first", ["trained", "imported"])
def test_a_stopped_run_goes_on_with_its_own_tokenizer(
    tmp_path: Path, made: Store, data_config: DataConfig, first: str, monkeypatch: pytest.MonkeyPatch
):
    """Not with that of an earlier run with other settings, whose file has another name."""
    pieces = tmp_path / "vocab.txt"
    pieces.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "time", "year", "day"]))
    imported = dataclasses.replace(data_config, tokenizer=str(pieces))
    monkeypatch.setattr(prepare.SentencePiece, "train", lambda *_, **__: made.tokenizer)
    runs = [data_config, imported] if first == "trained" else [imported, data_config]
    out = str(tmp_path / "out")
    for config in runs:
        with monkeypatch.context() as stopped:
            stopped.setattr(prepare, "_write_splits", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                prepare.prepare(config, out, num_workers=1, progress=False)
    expected = load_tokenizer(str(pieces)) if first == "trained" else made.tokenizer
    with monkeypatch.context() as again:
        again.setattr(prepare.SentencePiece, "train", None)
        again.setattr(prepare.tokenizers, "load_tokenizer", None)
        store = prepare.prepare(runs[1], out, num_workers=1, progress=False)
    assert store.tokenizer.fingerprint == expected.fingerprint
    assert [name for name in FILES if Path(out, name).exists()] == [expected.file_name]
    assert load_tokenizer(out).fingerprint == expected.fingerprint


def test_a_store_is_finished_under_its_lease(tmp_path: Path, data_config: DataConfig, monkeypatch: pytest.MonkeyPatch):
    held, finish = [], prepare.store.finish

    def finish_seen(out: str, *args):
        held.append(Path(out, lease.NAME).exists())
        finish(out, *args)

    monkeypatch.setattr(prepare.store, "finish", finish_seen)
    prepare.prepare(data_config, str(tmp_path), num_workers=1, progress=False)
    assert held == [True]
    assert not (tmp_path / lease.NAME).exists()


def test_the_folder_of_a_run_is_no_store(tmp_path: Path, data_config: DataConfig):
    """Its tokenizer would be overwritten."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="is the working directory of a run; give another folder"):
        prepare.prepare(data_config, str(tmp_path), num_workers=1, progress=False)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "tokenizer.json"]


def test_one_long_document_does_not_fill_the_sample_of_a_tokenizer():
    short = [f"Document {number}." for number in range(200)]
    long = "A sentence of thirty characters." * 10_000
    shards = [corpus.Shard("text", texts=tuple(short)), corpus.Shard("text", texts=(long,))]
    sample = list(prepare._sample(shards, 1000))
    assert sample[:42] == short[:42]  # 504 characters
    assert 1000 <= sum(map(len, sample[42:])) < 2000


def test_a_given_tokenizer_is_used(made: Store, data_config: DataConfig, tmp_path: Path):
    config = dataclasses.replace(data_config, tokenizer=f"{made.path}/tokenizer.model")
    again = prepare.prepare(config, str(tmp_path), num_workers=1, progress=False)
    assert again.tokenizer.fingerprint == made.tokenizer.fingerprint
    assert again.manifest["splits"] == made.manifest["splits"]


@pytest.mark.parametrize("fraction", [0.001, 0.5])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_documents_still_fill_both_splits(tmp_path: Path, count: int, fraction: float):
    (tmp_path / "a.txt").write_text("\n\n".join(f"Document number {i}." for i in range(count)))
    config = DataConfig(source="text", path=str(tmp_path / "a.txt"), heldout_fraction=fraction)
    made = prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)
    assert made.train.num_documents >= 1
    assert made.heldout.num_documents >= 1
    assert made.train.num_documents + made.heldout.num_documents == count


@pytest.mark.parametrize(("times", "said"), [(1, "only one document, so"), (30, "only one document, 30 times, so")])
def test_one_document_cannot_be_held_out(tmp_path: Path, times: int, said: str):
    (tmp_path / "a.txt").write_text("\n\n".join(["The only document."] * times))
    config = DataConfig(source="text", path=str(tmp_path / "a.txt"))
    with pytest.raises(InputError, match=rf"a.txt', read as text, holds {said} none.*data.heldout_fraction=0"):
        prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)
    config.heldout_fraction = 0.0
    made = prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)
    assert (made.train.num_documents, made.heldout.num_documents) == (times, 0)


def test_a_run_takes_the_settings_of_a_complete_store_from_it(made: Store, data_config: DataConfig, tmp_path: Path):
    other = DataConfig(store=made.path, batch_size=7)
    found = prepare.as_prepared(other)
    assert (found.source, found.path, found.vocab_size) == ("text", data_config.path, data_config.vocab_size)
    assert found.batch_size == 7
    assert prepare.prepare(found, made.path).manifest == made.manifest  # which other settings would be refused
    with pytest.raises(InputError, match=r"was made with other settings: data.source \('text' -> 'installed-docs'\)"):
        prepare.as_prepared(other, ["data.source", "data.batch_size"])
    for new in ("", str(tmp_path / "new")):
        assert prepare.as_prepared(DataConfig(store=new), ["data.source"]) == DataConfig(store=new)


@pytest.mark.parametrize(("longest", "said"), [(1, ""), (400, "1 of 2 documents are held out, with ")])
def test_a_held_out_share_that_nobody_wants_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], longest: int, said: str
):
    """As in a corpus of two files without a blank line."""
    (tmp_path / "a.txt").write_text(
        "\n\n".join(["One.\n" * longest, "Another.\n" * longest] if said else map(str, range(400)))
    )
    config = DataConfig(source="text", path=str(tmp_path / "a.txt"), vocab_size=400)
    prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)
    found = capfd.readouterr().err
    assert found.startswith(said) if said else found == ""
    assert not said or found.endswith(
        "% of the tokens (data.heldout_fraction is 0.02); in text files a blank line separates documents\n"
    )


def test_too_few_pieces_to_train_a_tokenizer_are_refused(tmp_path: Path):
    """An imported model may have fewer; only the training of a tokenizer needs 105 special tokens and 256 bytes."""
    (tmp_path / "a.txt").write_text("One document.\n\nAnd another.")
    config = DataConfig(source="text", path=str(tmp_path / "a.txt"), vocab_size=130)
    with pytest.raises(InputError, match=r"data.vocab_size is 130; to train a tokenizer, give 400 or more"):
        prepare.prepare(config, str(tmp_path / "store"), num_workers=1, progress=False)


def test_an_error_in_a_worker_process_reaches_the_user(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "fine too"}\n{}\n')
    config = DataConfig(source="jsonl", path=str(tmp_path / "a.jsonl"))
    with pytest.raises(InputError, match="line 3 has no text"):
        prepare.prepare(config, str(tmp_path / "store"), num_workers=2, progress=False)
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_launch_script_prints_one_line(tmp_path: Path, data_config: DataConfig):
    fields = {name: value for name, value in dataclasses.asdict(data_config).items() if name != "batch_size"}
    fields["near_duplicates"] = 1.0
    (tmp_path / "config.py").write_text(
        f"from lm.config import Config, DataConfig\ndef get_config(): return Config(data=DataConfig(**{fields!r}))\n"
    )
    command = [sys.executable, "launch/prepare.py", f"--config={tmp_path}/config.py", f"--out={tmp_path}/store"]
    process = subprocess.run(
        [*command, "--workers=1"], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    assert line.startswith(f"{tmp_path}/store: train ")
    assert line.endswith(" pieces; left out 0 near-duplicates and 0 leaks of held-out documents (leaks.jsonl)")


def test_a_store_that_is_given_must_be_there_or_be_described(tmp_path: Path) -> None:
    """A misspelt store would else be made of the text that the config has by default."""
    config = DataConfig(store=str(tmp_path / "misspelt"))
    with pytest.raises(InputError, match="misspelt is no token store; correct it, make it with"):
        prepare.as_prepared(config, ["data.store", "data.batch_size"])
    assert prepare.as_prepared(config, ["data.store", "data.source"]) == config
    assert prepare.as_prepared(config) == config
    own = dataclasses.replace(config, source="text", path="corpus/*.txt")  # as the config file says
    assert prepare.as_prepared(own, ["data.store"]) == own
    (tmp_path / "misspelt").mkdir()
    (tmp_path / "misspelt" / "preparing.json").write_text("{}")
    assert prepare.as_prepared(config, ["data.store"]) == config  # goes on with what was begun
