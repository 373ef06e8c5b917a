"""Files on a local path, gs://... or s3://..., behind one set of functions.

TensorStore reads and writes small files and arrays: it writes a key whole or not at all, and can make a write depend
on the version that is there. fsspec reads the files of a corpus and lists the folders of checkpoints. Both retry
passing failures with backoff. Both take credentials from the environment, ~/.aws or Google's application default.
"""

import contextlib
import functools
import importlib
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import urlsplit

import fsspec
import fsspec.config
import tensorstore as ts
from etils import epath

from lm import aws
from lm.errors import InputError

Spec: TypeAlias = dict[str, str | dict[str, str] | dict[str, str | int]]  # of TensorStore's key-value stores

# Scheme -> the package that serves it through fsspec, and the extra of setup.py that installs the package.
_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# About four minutes in all. A pod should not idle through a longer outage.
_RETRIES: dict[str, str | int] = {"max_retries": 14, "initial_delay": "200ms", "max_delay": "32s"}

# Seconds after which a store that is silent is reported, between further reports, and after which one that has never
# answered is given up.
_SILENCE, _AGAIN, _PATIENCE = 4.0, 20.0, 50.0
_answered: set[str] = set()  # the addresses that have answered this process: these may be away for longer
_SILENT = "it takes connections, but sends no answer"

# Pattern of an error's text -> what is wrong, and what to do. The first match counts.
_REASONS = {
    "No space left|Disk quota exceeded": "the disk is full; free some space, or use another folder",
    "NoSuchBucket|bucket does not exist|NOT_FOUND: Not Found|bucket not found|notFound|No such bucket": (
        "there is no such bucket; create it, or correct the name"
    ),
    "ExpiredToken|TokenRefreshRequired|RequestTimeTooSkewed|has expired|RefreshError": (
        "the credentials have expired (or this clock is wrong); sign in again"
    ),
    "SignatureDoesNotMatch|InvalidAccessKeyId|request signature|access key ID you provided|InvalidToken|UNAUTHENTICATED"
    "|Invalid Credentials|Unauthorized": "the credentials are wrong; correct them",
    "NoCredentials|locate credentials|get credentials|find the credentials|default credentials were not found": (
        "there are no credentials; set them in the environment, ~/.aws or with gcloud"
    ),
    "AccessDenied|Access Denied|PERMISSION_DENIED|Permission denied|Forbidden|PermissionError|Read-only file system": (
        "access is denied; ask for the right to read and write there, or use another folder"
    ),
    "Could not connect|Couldn't resolve|Could not resolve|EndpointConnectionError|ClientConnectorError|retry attempts "
    "failed|UNAVAILABLE|ServiceUnavailable|DEADLINE_EXCEEDED": (
        "it cannot be reached; check the network and the endpoint, then run again"
    ),
}


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether a path is on object storage."""
    return "://" in str(path)


def absolute(path: epath.PathLike) -> str:
    """Returns a path that means the same from every folder; one on object storage is left as it is."""
    return str(path) if is_remote(path) else os.path.abspath(path)


def check_path(path: str) -> None:
    """Refuses a path that no storage can have, without asking one.

    Raises:
        InputError: the path has another scheme than gs:// and s3://, or what follows is no name of a bucket; or its
            characters would be other ones to TensorStore.
    """
    scheme, separator, rest = path.partition("://")
    encoding = sys.getfilesystemencoding()
    whole = path if separator else os.path.abspath(path)
    if encoding != "utf-8" and not whole.isascii():
        raise InputError(
            f"{whole!r} has characters outside ASCII, and paths are read as {encoding} here, but TensorStore's "
            "are UTF-8; set PYTHONUTF8=1, or LC_ALL=C.UTF-8."
        )
    if separator and scheme not in _PACKAGES:
        raise InputError(f"{path!r} has an unknown scheme; accepted: a local path, gs://... or s3://....")
    if separator and not rest.strip("/"):
        raise InputError(f"{path!r} has no bucket; accepted: {scheme}://BUCKET/....")
    bucket = rest.partition("/")[0]
    if separator and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
        raise InputError(
            f"{path!r} has no bucket: {bucket!r} is no name of one; accepted: {scheme}://BUCKET/..., with 3 or more "
            "lower-case letters, digits, dots, - and _."
        )
    if scheme == "s3" and separator and (endpoint := aws.endpoint()) and not re.match(r"https?://[^/]", endpoint):
        name = next(name for name in aws.ENDPOINTS if os.environ.get(name))
        raise InputError(f"{name} is {endpoint!r}; accepted: http://HOST:PORT or https://HOST.")
    if (scheme := path.partition(":/")[0]) in _PACKAGES and not separator:  # os.path.normpath, or a slip
        raise InputError(f"{path!r} has one slash after {scheme}:; give {scheme}://... or ./{path} for a folder here.")


def kvstore(path: str, *names: str) -> Spec:
    """Returns the TensorStore key-value spec of a folder below `path`, which is local, gs://... or s3://...

    Raises:
        InputError: as for `check_path`.
    """
    check_path(path)
    scheme, separator, rest = path.partition("://")
    if not separator:
        return {"driver": "file", "path": "/".join([os.path.abspath(os.path.expanduser(path)), *names]) + "/"}
    bucket, _, prefix = rest.partition("/")
    folder = "/".join(filter(None, [prefix.strip("/"), *names])) + "/"
    if scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": folder, "gcs_request_retries": _RETRIES}
    spec: Spec = {"driver": "s3", "bucket": bucket, "path": folder, "s3_request_retries": _RETRIES}
    found = {"endpoint": aws.endpoint(), "aws_region": aws.region(), "aws_credentials": aws.credentials()}
    return spec | {name: value for name, value in found.items() if value}


class StorageError(InputError):
    """The storage refused or did not answer. It may do so later: nothing is known about what it holds."""


@contextlib.contextmanager
def errors(path: epath.PathLike) -> Iterator[None]:
    """Turns a storage failure that the user can repair (space, access, credentials, bucket) into one line.

    Raises:
        StorageError: names `path` and the remedy. It does not quote the server, whose answer may hold secrets.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError) and (reason := _reason(error)):
            raise StorageError(f"{path}: {reason}.") from error
        raise


@contextlib.contextmanager
def _path_errors(path: epath.PathLike) -> Iterator[None]:
    """Does what `errors` does, and also turns an error of the operating system about the path into one line."""
    try:
        with errors(path):
            yield
    except (OSError, ValueError) as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else error.errno if isinstance(error, OSError) else None
        said = os.strerror(number) if number else str(error)
        raise InputError(f"{str(path)!r} cannot be used: {said}; give another path.") from error


def _reason(error: BaseException) -> str | None:
    """Returns what the user can repair about an error or one of its causes; None where there is nothing."""
    pending: list[BaseException | None] = [error]
    texts = []
    while pending and len(texts) < 20:
        if (cause := pending.pop()) is not None:
            texts.append(f"{type(cause).__name__}: {cause}")
            pending += [*(cause.exceptions if isinstance(cause, BaseExceptionGroup) else ()), cause.__context__]
            pending.append(cause.__cause__)
    return next((reason for text in texts for words, reason in _REASONS.items() if re.search(words, text)), None)


# --- keys


def read_keys(path: str, names: Sequence[str]) -> list[bytes | None]:
    """Reads some keys below a path concurrently; None for a key that does not exist."""
    with _path_errors(path):
        folder = _open(path)
        pending = [folder.read(name) for name in names]
        results = [_wait(path, future) for future in pending]
    return [result.value if result.state == "value" else None for result in results]


def write_key(path: str, name: str, value: bytes) -> None:
    """Writes a key below a path. Readers find the old value or the new one, never a part."""
    with _path_errors(path):
        _wait(path, start_writing(path, name, value))


def start_writing(path: str, name: str, value: bytes) -> ts.Future:
    """Starts `write_key` and returns a future; its `result()` waits for the end."""
    return _open(path).write(name, value)


def read_version(path: str, name: str) -> tuple[bytes | None, bytes]:
    """Returns the content of a key, None where it is absent, and its version for `write_version`."""
    with _path_errors(path):
        result = _wait(path, _open(path).read(name))
    return (result.value if result.state == "value" else None), result.stamp.generation


def write_version(path: str, name: str, value: bytes | None, version: bytes) -> bytes | None:
    """Writes a key, or deletes it where `value` is None, if it still has `version`.

    Returns:
        The new version; None where the key has another version and nothing was written.
    """
    with _path_errors(path):
        store = _open(path)
        made = _wait(path, store.write(name, value, if_equal=version)).generation
        if not made:  # a missing bucket gives the same answer; listing raises
            store.list(ts.KvStore.KeyRange(name, name + "\0")).result()
    return made or None


def list_keys(path: str) -> list[str]:
    """Returns the keys of all files below a path, relative to it."""
    with _path_errors(path):
        keys: list[bytes] = _wait(path, _open(path).list())
    return sorted(key.decode() for key in keys)


def delete_folder(path: str, name: str) -> None:
    """Deletes every key below `path/name/`."""
    with _path_errors(path):
        _open(path, name).delete_range(ts.KvStore.KeyRange()).result()


def _open(path: str, *names: str) -> ts.KvStore:
    spec = kvstore(path, *names)
    if spec["driver"] == "gcs" and _address(path) not in _answered:
        _find_google_credentials()
    return ts.KvStore.open(spec).result()


# --- stores that do not answer


def reach(path: epath.PathLike) -> None:
    """Waits until the store of a path has answered once. A local path is no store.

    Raises:
        InputError: it does not answer within a minute, or refuses, or the path names no bucket.
    """
    if not is_remote(path):
        return
    kvstore(str(path))  # refuses what is no bucket, whether its store has answered or not
    if _address(str(path)) not in _answered:
        read_keys(str(path), ["config.json"])


def _wait(path: str, future: ts.Future) -> Any:
    """Returns the result of a future. The first answer of a store is waited for a minute at most, and not in silence.

    TensorStore tries again and again, and keeps the reason to itself until it gives up.
    """
    if not is_remote(path) or (address := _address(path)) in _answered:
        return future.result()
    waited, pause = 0.0, _SILENCE
    while True:
        try:
            result = future.result(timeout=pause)
            break
        except TimeoutError:
            waited += pause
            why = f"{address} does not answer ({_silence(address)})"
        if waited >= _PATIENCE:
            raise InputError(f"{path} cannot be reached: {why}; check the network and the endpoint, then run again.")
        print(f"waiting for {path}: {why}: {waited:.0f} s so far", file=sys.stderr, flush=True)
        pause = min(_AGAIN, _PATIENCE - waited)
    _answered.add(address)
    return result


def _address(path: str) -> str:
    """Returns the URL of the server that has a remote path."""
    scheme, _, rest = path.partition("://")
    if scheme == "gs":
        return os.environ.get("TENSORSTORE_GCS_HTTP_URL") or "https://storage.googleapis.com"
    if endpoint := aws.endpoint():
        return endpoint
    region = aws.region()
    return f"https://{rest.partition('/')[0]}.s3.{f'{region}.' if region else ''}amazonaws.com"


def _silence(address: str) -> str:
    """Returns why a server does not answer, as far as a connection tells."""
    parts = urlsplit(address)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=2).close()
    except TimeoutError:
        return "no connection within 2 s"
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)
    return _SILENT


def _is_google_key(path: str) -> bool:
    """Returns whether a file holds credentials as Google writes them: a JSON object with a type."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "type" in content


def _find_google_credentials() -> None:
    """Refuses gs:// without credentials. TensorStore would log an error of its own and try for minutes.

    Raises:
        InputError: there are none in the environment, in gcloud's folder or on this machine's metadata server.
    """
    key = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if key and not _is_google_key(key):
        raise InputError(
            f"GOOGLE_APPLICATION_CREDENTIALS is {key!r}, which is no file with Google's credentials; correct it, or "
            "unset it and run gcloud auth application-default login."
        )
    variables = ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_AUTH_TOKEN_FOR_TESTING", "TENSORSTORE_GCS_HTTP_URL")
    folder = os.environ.get("CLOUDSDK_CONFIG") or os.path.expanduser("~/.config/gcloud")
    if any(map(os.environ.get, variables)) or os.path.exists(f"{folder}/application_default_credentials.json"):
        return
    host = os.environ.get("GCE_METADATA_ROOT") or "metadata.google.internal"
    if _silence(f"http://{host}") != _SILENT:
        raise InputError(
            "gs:// has no credentials; set them with gcloud auth application-default login, or name a key file in "
            "GOOGLE_APPLICATION_CREDENTIALS."
        )


# --- files and folders


def as_path(path: epath.PathLike) -> epath.Path:
    """Returns a path that can be read and written through fsspec.

    Raises:
        InputError: as for `check_path`, or the package that serves the scheme is missing.
    """
    check_path(str(path))
    scheme, separator, _ = str(path).partition("://")
    if separator:
        _filesystem(scheme)
    return epath.Path(path)


@functools.cache
def _filesystem(scheme: str) -> fsspec.AbstractFileSystem:
    if scheme not in _PACKAGES:
        raise InputError(f"{scheme}:// is an unknown scheme; accepted: a local path, gs://... or s3://....")
    package, extra = _PACKAGES[scheme]
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{scheme}:// needs {package}; pip install -e '.[{extra}]'.") from error
    logging.getLogger(package).setLevel(logging.CRITICAL)  # it logs what it raises, with tracebacks
    # Other processes write there too, so a cached listing may be out of date.
    settings: dict[str, object] = {"use_listings_cache": False}
    if scheme == "s3":
        settings["config_kwargs"] = {"retries": {"mode": "standard", "max_attempts": _RETRIES["max_retries"]}}
        if region := aws.region():
            settings["client_kwargs"] = {"region_name": region}
    for name in ("gs", "gcs") if scheme == "gs" else (scheme,):
        fsspec.config.conf[name] = settings | fsspec.config.conf.get(name, {})
    return fsspec.filesystem(scheme)


def find(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
    """Returns the files on object storage that `pattern` names, sorted.

    Args:
        pattern: a file, a glob or a folder.
        suffixes: of the files to take from a folder.
    """
    scheme = pattern.partition("://")[0]
    with _path_errors(pattern):
        files = _filesystem(scheme)
        reach(pattern)
        if files.isfile(pattern):
            found = [pattern]
        elif below := files.find(pattern):
            found = [path for path in map(str, below) if path.endswith(suffixes)]
        else:
            found = [path for path in map(str, files.glob(pattern)) if files.isfile(path)]
    return sorted(path if is_remote(path) else f"{scheme}://{path}" for path in found)


def size(path: str) -> int:
    """Returns the size of a file in bytes."""
    with _path_errors(path):
        reach(path)
        return as_path(path).stat().length if is_remote(path) else os.path.getsize(path)


def open_file(path: str) -> IO[bytes]:
    """Opens a file for reading; it can be sought."""
    with _path_errors(path):
        reach(path)
        return as_path(path).open("rb")
