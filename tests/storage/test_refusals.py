"""An unusable path, or a store that does not answer, is one line."""

import re
from pathlib import Path

import pytest

from lm import lease, storage
from lm.errors import InputError

USES = {
    "write": lambda path: storage.write_key(path, "k", b"1"),
    "lease": lambda path: lease.hold(path).__enter__(),
    "size": storage.size,
    "open": storage.open_file,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("foo://x/y", "unknown scheme"),
        ("://x", "unknown scheme"),
        ("gs://", "has no bucket"),
        ("s3:///x", "has no bucket"),
        ("s3://UPPER/x", "has no bucket"),
        ("FILE/below", "Not a directory"),
        ("/proc/x", "No such file"),
        ("/dev/null/x", "Not a directory"),
        ("a" * 300, "File name too long"),
        ("/tmp/a\0b", "cannot be used"),
    ],
)
def test_an_unusable_path_is_one_line(path: str, said: str, use: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=said) as caught:
        USES[use](path.replace("FILE", str(tmp_path / "file")))
    assert "\n" not in str(caught.value)


def test_what_is_no_name_of_a_bucket_is_refused() -> None:
    for name in ("b", "UPPER", "with space", "-first", "last-", "x" * 300):
        for scheme in ("gs", "s3"):
            with pytest.raises(InputError, match="is no name of one; accepted: "):
                storage.check_path(f"{scheme}://{name}/run")
    storage.check_path("gs://a-bucket_1.org/run")
    storage.check_path("a/folder")


def test_a_lost_slash_makes_no_folder() -> None:
    for use in (storage.check_path, storage.as_path, USES["write"], USES["lease"]):
        with pytest.raises(InputError, match="'gs:/bucket/x' has one slash after gs:; give gs://"):
            use("gs:/bucket/x")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for use in (USES["write"], USES["lease"], storage.list_keys):
        with pytest.raises(InputError, match="cannot be used: "):
            use(str(tmp_path / "file"))


def test_a_store_that_does_not_answer_is_waited_for_aloud_and_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert storage._SILENCE < 5
    looks = 2 + (storage._PATIENCE - storage._SILENCE) // storage._AGAIN
    assert 60 - 2 * looks > storage._PATIENCE  # a look at the address takes 2 s at most
    monkeypatch.setattr(storage, "_SILENCE", 0.05)
    monkeypatch.setattr(storage, "_AGAIN", 0.02)
    monkeypatch.setattr(storage, "_PATIENCE", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    why = re.escape("http://127.0.0.1:9 does not answer (Connection refused)")
    for use in (storage.reach, USES["write"], USES["open"], lambda path: storage.find(path, ())):
        with pytest.raises(InputError, match=why):
            use("s3://bucket/run")
        assert len(re.findall(why, capsys.readouterr().err)) > 2


def test_a_store_that_has_answered_may_be_away_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def result(self, timeout: float | None = None) -> str:
            if timeout is not None:
                raise TimeoutError
            return "late"

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "_answered", {"http://127.0.0.1:9"})
    assert storage._wait("s3://bucket/run", Slow()) == "late"  # pyright: ignore[reportArgumentType]


def test_google_storage_without_credentials_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_AUTH_TOKEN_FOR_TESTING", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("GCE_METADATA_ROOT", "127.0.0.1:9")
    with pytest.raises(InputError, match="gs:// has no credentials; set them with gcloud"):
        storage.reach("gs://bucket/run")
    key = tmp_path / "key.json"
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    for content in (None, b"{", b"[]", b"{}", b"\xff"):
        if content is not None:
            key.write_bytes(content)
        with pytest.raises(InputError, match=r"GOOGLE_APPLICATION_CREDENTIALS is '.*key\.json', which is no file with"):
            storage.reach("gs://bucket/run")
    key.write_text('{"type": "service_account"}')
    storage._find_google_credentials()


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_is_an_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(each, raising=False)
    for address in ("nonsense", "localhost:9000", "http://", "ftp://a"):
        monkeypatch.setenv(name, address)
        with pytest.raises(InputError, match=f"{name} is '{address}'; accepted: http://HOST:PORT or https://HOST"):
            storage.check_path("s3://bucket/run")
        storage.check_path("gs://bucket/run")
    for address in ("http://127.0.0.1:9000", "https://a.b/", ""):
        monkeypatch.setenv(name, address)
        storage.check_path("s3://bucket/run")
