"""Keeps the code and config of a run in its workdir: every machine runs the same code, and it stays known later.

WORKDIR/launch/<id>/code.tar.gz   the files that git tracks, with uncommitted changes, and the config file
WORKDIR/launch/<id>/config.json   the config with its overrides

<id> is a hash of the content: the same code and config give the same snapshot. On a machine of the run,

    code="$(python -m lm.cluster.snapshot WORKDIR/launch/<id>/code.tar.gz)"

unpacks it once into the user's cache and prints the folder.
"""

import dataclasses
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lm import config as config_lib
from lm import storage
from lm.cluster.actions import Write
from lm.config import Config
from lm.errors import InputError

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run about to be launched.

    Attributes:
        folder: WORKDIR/launch/<id>.
        files: the files to write there.
        train: the training command, relative to the code: `launch/train.py` and its flags.
        untracked: Python files of the checkout that git does not track, and that the snapshot therefore leaves out.
    """

    folder: str
    files: tuple[Write, ...]
    train: tuple[str, ...]
    untracked: tuple[str, ...]

    @property
    def workdir(self) -> str:
        return self.folder.rpartition("/launch/")[0]

    @property
    def id(self) -> str:
        return self.folder.rpartition("/")[2]

    @property
    def code(self) -> str:
        return f"{self.folder}/code.tar.gz"


def take(config: Config, arguments: Sequence[str], workdir: str, root: Path = ROOT) -> Snapshot:
    """Packs the checkout and the config of a run.

    Args:
        arguments: the flags that gave `config`, `--config=FILE` first.
        workdir: where the run lives. A local folder must have the same path on every machine.

    Raises:
        InputError: `root` is no git checkout, or the config file is outside of it.
    """
    file = Path(arguments[0].removeprefix("--config=")).resolve()
    if not file.is_relative_to(root):
        raise InputError(f"--config is {file}, which is outside of the code; move it into {root}, say into configs/.")
    name = file.relative_to(root).as_posix()
    workdir = storage.absolute(workdir)
    tracked = _files(root, "--cached")
    others = _files(root, "--others", "--exclude-standard", "--", "*.py")
    present = sorted(path for path in {*tracked, name} if (root / path).is_file())
    code = _pack(root, present)
    train = ("launch/train.py", f"--config={name}", *arguments[1:], f"--workdir={workdir}")
    values = config_lib.to_json(config).encode()
    identity = hashlib.sha256(b"\0".join([code, values, *map(str.encode, train)])).hexdigest()[:12]
    folder = f"{workdir.rstrip('/')}/launch/{identity}"
    files = (
        Write(f"{folder}/code.tar.gz", code, f"{len(present)} files of {root.name}, as git tracks them"),
        Write(f"{folder}/config.json", values, "the config with its overrides"),
    )
    return Snapshot(folder, files, train, tuple(path for path in others if path != name))


def holds(path: str, root: Path = ROOT) -> bool:
    """Returns whether git tracks a path of the checkout: a file, a folder or a glob."""
    return not os.path.normpath(path).startswith("..") and bool(_files(root, "--cached", "--", path))


def unpack(code: str, cache: Path | None = None) -> Path:
    """Returns the folder of an unpacked code.tar.gz, unpacking it the first time.

    Args:
        cache: the parent folder; by default in the user's cache, which the machines of a cluster may share.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lm" / "code"
    folder = cache / code.split("/")[-2]
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with storage.errors(code):
        content = storage.as_path(code).read_bytes()
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            archive.extractall(f"{temporary}/code", filter="data")
        try:
            os.rename(f"{temporary}/code", folder)
        except OSError:  # another process of this run was faster
            if not folder.exists():
                raise
    return folder


def _files(root: Path, *arguments: str) -> list[str]:
    if shutil.which("git") is None:
        raise InputError("git is not installed here, or not on the PATH; install it, so that the code can be recorded.")
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z", *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"{root} is no git checkout; launch from a clone, so that the code that runs can be recorded."
        ) from error
    return [path for path in done.stdout.split("\0") if path]


def _pack(root: Path, paths: list[str]) -> bytes:
    """Returns a tar.gz that depends on names, modes and contents alone."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as archive,
    ):
        for path in paths:
            content = (root / path).read_bytes()
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            entry.mode = 0o755 if os.access(root / path, os.X_OK) else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


if __name__ == "__main__":
    print(unpack(sys.argv[1]))
