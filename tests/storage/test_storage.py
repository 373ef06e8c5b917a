"""Keys, files and errors are the same wherever files are."""

import gzip
import os
from pathlib import Path

import numpy as np
import polib
import pytest

from lm import storage
from lm.config import DataConfig
from lm.data import corpus, manifest, prepare, store
from lm.data.pairs import Pair
from lm.errors import InputError
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece
from tests.training.conftest import make_corpus

from .proxy import PASS, running
from .servers import BUCKET, KEY, SECRET


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gs://bucket/a/b", {"driver": "gcs", "bucket": "bucket", "path": "a/b/x/"}),
        ("gs://bucket", {"driver": "gcs", "bucket": "bucket", "path": "x/"}),
        ("s3://bucket/a/", {"driver": "s3", "bucket": "bucket", "path": "a/x/"}),
        ("/local/a/", {"driver": "file", "path": "/local/a/x/"}),
    ],
)
def test_key_value_specs(path: str, expected: dict, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "no/file")
    spec = storage.kvstore(path, "x")
    assert {name: value for name, value in spec.items() if not name.endswith("_retries")} == expected


def test_s3_endpoint_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:8333")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    spec = storage.kvstore("s3://bucket/a")
    assert (spec["endpoint"], spec["aws_region"]) == ("http://localhost:8333", "eu-north-1")


def test_an_unknown_scheme_is_refused():
    for use in (storage.kvstore, storage.as_path, lambda path: storage.find(path, ())):
        with pytest.raises(InputError, match=r"accepted: a local path, gs://\.\.\. or s3://"):
            use("ftp://host/a")


def test_keys_are_written_read_listed_and_deleted(url: str):
    assert storage.read_keys(url, ["a"]) == [None]
    storage.write_key(url, "a", b"1")
    storage.write_key(url, "b/c", b"2" * 100_000)
    assert storage.read_keys(url, ["a", "b/c", "c"]) == [b"1", b"2" * 100_000, None]
    assert storage.list_keys(url) == ["a", "b/c"]
    storage.delete_folder(url, "b")
    assert storage.list_keys(url) == ["a"]


def test_a_key_is_made_once_and_replaced_only_as_it_was_read(s3_url: str, tmp_path: Path):
    """Not on the GCS server of these tests: it lets a second create-only write overwrite the first."""
    for folder in (str(tmp_path), s3_url):
        content, absent = storage.read_version(folder, "k")
        assert content is None
        first = storage.write_version(folder, "k", b"1", absent)
        assert first
        assert storage.write_version(folder, "k", b"2", absent) is None
        second = storage.write_version(folder, "k", b"3", first)
        assert second
        assert storage.write_version(folder, "k", b"4", first) is None
        assert storage.write_version(folder, "k", None, first) is None
        assert storage.read_version(folder, "k") == (b"3", second)
        assert storage.write_version(folder, "k", None, second)
        assert storage.read_version(folder, "k") == (None, absent)


def test_a_remote_corpus_is_the_local_one(url: str, tmp_path: Path):
    """A file, a folder and a glob; compressed files; a file cut into parts."""
    make_corpus(tmp_path / "a.txt", documents=80)
    make_corpus(tmp_path / "b.txt", seed=1)
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress((tmp_path / "b.txt").read_bytes()))
    (tmp_path / "d.unknown").write_text("not read")
    for file in tmp_path.iterdir():
        storage.write_key(url, f"text/{file.name}", file.read_bytes())
    for part in ("a.txt", "", "[ab].txt", "*.gz"):
        local = list(corpus.documents(DataConfig(source="text", path=f"{tmp_path}/{part}")))
        assert local
        assert list(corpus.documents(DataConfig(source="text", path=f"{url}/text/{part}"))) == local
    size = storage.size(f"{url}/text/a.txt")
    whole = list(corpus.read(corpus.Shard("text", (f"{url}/text/a.txt",))))
    cuts = [0, size // 3, size // 2, size]
    parts = [corpus.Shard("text", (f"{url}/text/a.txt",), *cut) for cut in zip(cuts, [*cuts[1:-1], -1], strict=False)]
    assert [text for part in parts for text in corpus.read(part)] == whole
    with pytest.raises(InputError, match=f"{url}/text/nothing.* matches nothing"):
        corpus.shards(DataConfig(source="text", path=f"{url}/text/nothing*"))


def test_a_remote_parquet_file_is_read(s3_url: str, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"document {i}" for i in range(3000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=500)
    storage.write_key(s3_url, "a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert list(corpus.documents(DataConfig(source="parquet", path=s3_url))) == texts


def test_message_catalogues_are_read_from_object_storage(url: str, tmp_path: Path):
    header = 'msgid ""\nmsgstr ""\n"Language: de\\n"\n"Content-Type: text/plain; charset=ISO-8859-1\\n"\n'
    text = f'{header}\nmsgid "Open the file"\nmsgstr "Die Datei öffnen"\n'.encode("latin-1")
    binary = tmp_path / "a.mo"
    polib.pofile(text.decode("latin-1")).save_as_mofile(str(binary))
    for name, content in {"x.po": text, "de/LC_MESSAGES/a.mo": binary.read_bytes(), "fr.po": b"no keyword"}.items():
        storage.write_key(url, name, content)
    found = corpus.documents(DataConfig(source="gettext", path=f"{url}/x.po,{url}/de", languages="de"))
    assert list(found) == [Pair("translate to de: Open the file", "Die Datei öffnen", "open the file")]
    with pytest.raises(InputError, match=rf"^{url}/fr.po cannot be read as a message catalogue") as error:
        list(corpus.documents(DataConfig(source="gettext", path=url, languages="fr")))
    assert "/tmp" not in str(error.value).replace(url, "")


def test_preparing_on_object_storage_goes_on_where_it_was_stopped(url: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(corpus, "_SMALLEST_SHARD", 2048)
    make_corpus(tmp_path / "corpus.txt")
    storage.write_key(url, "corpus.txt", (tmp_path / "corpus.txt").read_bytes())
    local, remote = (
        DataConfig(source="text", path=f"{folder}/corpus.txt", vocab_size=448) for folder in (tmp_path, url)
    )
    expected = prepare.prepare(local, str(tmp_path / "store"), num_workers=1, progress=False)
    write_key, written = store.write_key, []

    def write(path: str, name: str, value: bytes, stop_at: str = "") -> None:
        if name == stop_at:
            raise KeyboardInterrupt
        written.append(name)
        write_key(path, name, value)

    stop_at = store.marker_name(3)
    monkeypatch.setattr(store, "write_key", lambda *arguments: write(*arguments, stop_at=stop_at))
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(remote, f"{url}/store", num_workers=1, progress=False)
    before = [name for name in written if name.startswith("shards/")]
    assert before
    assert manifest.read_manifest(f"{url}/store") is None
    written.clear()
    monkeypatch.setattr(store, "write_key", write)
    made = prepare.prepare(remote, f"{url}/store", num_workers=1, progress=False)
    assert not set(before) & set(written)
    assert made.manifest["splits"] == expected.manifest["splits"]
    assert "store/lease" not in storage.list_keys(url)
    whole = [(np.array([0]), np.array([split.num_tokens])) for split in (made.train, expected.train)]
    assert (made.train.read(*whole[0]) == expected.train.read(*whole[1])).all()


def test_a_window_is_read_in_one_range_for_each_run_of_blocks(
    s3_url: str, s3_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "BLOCK_TOKENS", 40_000)
    lengths = np.full(4_000, 50)
    text = store.Text(np.random.default_rng(0).integers(10, 400, lengths.sum()), lengths, np.full(400, 10))
    nothing = store.Text(*[np.zeros(0, np.int64)] * 3)
    tokenizer = SentencePiece.train(["a few words"], vocab_size=400)
    storage.write_key(s3_url, tokenizer.file_name, tokenizer.to_bytes())
    marker = store.write_shard(s3_url, 0, {"train": text, "heldout": nothing}, 400, "", (0, 0))
    store.finish(s3_url, tokenizer, "documents", {}, [marker])
    requests: list[bytes] = []
    with running(s3_port, lambda head: requests.append(head) or PASS) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        split = store.Store.open(s3_url).train
        assert [head.split()[1].rsplit(b"/", 1)[1] for head in requests] == [b"manifest.json", b"tokenizer.model"]
        requests.clear()
        window = split.window(np.array([0, 1, 2, 4]))
        found = window.read(np.array([0]), np.array([window.num_tokens]))
    assert (len(split.blocks), len(requests)) == (5, 4)  # the array, its index, and two runs of blocks
    ends = np.cumsum(split.blocks[:, 2])
    np.testing.assert_array_equal(found, np.concatenate([text.tokens[: ends[2]], text.tokens[ends[3] :]]))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_a_full_disk_is_one_line():
    with pytest.raises(InputError, match=r"^/dev/full: the disk is full; free some space"), storage.errors("/dev/full"):
        Path("/dev/full").write_text("text")


def test_a_denied_folder_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="access is denied"), storage.errors(tmp_path):
        raise PermissionError(13, "Permission denied", str(tmp_path))


def test_a_missing_bucket_is_one_line(url: str):
    other = url.replace(BUCKET, "no-such-bucket")
    with pytest.raises(InputError, match=f"^{other}: there is no such bucket"):
        storage.write_key(other, "a", b"1")


def test_wrong_credentials_are_one_line_without_them(s3_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(InputError, match=r"^s3://.*: the credentials are wrong; correct them\.$"):
        storage.read_keys(s3_url, ["a"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(InputError, match=r"^s3://.*: the credentials are wrong; correct them\.$"):
        storage.write_key(s3_url, "a", b"1")


def test_a_profile_of_the_aws_files_is_read_in_silence(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    storage.write_key(s3_url, "a", b"1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    (tmp_path / ".aws").mkdir()
    file = tmp_path / ".aws/credentials"
    file.write_text(f"[mine]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    assert storage.read_keys(s3_url, ["a"]) == [b"1"]
    assert capfd.readouterr().err == ""
    for text in ("[mine]\nrole_arn = x\n", "no section", "[other]\naws_access_key_id = x\n"):
        file.write_text(text)
        assert "aws_credentials" not in storage.kvstore(s3_url)
