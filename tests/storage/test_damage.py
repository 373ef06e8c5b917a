"""What is said of a damaged checkpoint: which file, what is wrong with it, what to do."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from lm import checkpoint, orbax_storage
from lm.config import CheckpointConfig
from lm.errors import InputError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of several arrays in files of their own."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    rng = np.random.default_rng(0)
    params = {f"kernel{index}": rng.random((64, 64), np.float32) for index in range(6)}
    saved = checkpoint.Checkpoints(folder, CheckpointConfig(asynchronous=False))
    saved.save(3, {"params": params, "step": np.int32(3)})
    saved.close()
    return folder


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("files", "damage", "said"),
    [
        ("manifest.ocdbt", Path.unlink, r"a file is missing"),
        ("manifest.ocdbt", flipped, r"a file has other bytes than were written: manifest\.ocdbt"),
        ("d/*", Path.unlink, r"a file is missing: d/\w+"),
        ("d/*", emptied, r"a file is shorter than it was written: d/\w+"),
        ("ocdbt.process_0/d/*", emptied, r"a file (is shorter|has other bytes) than .*written"),
        ("_METADATA", emptied, r"its metadata cannot be read"),
    ],
)
def test_the_file_and_its_fault_are_named(
    whole: Path, tmp_path: Path, files: str, damage: Callable[[Path], None], said: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "run")
    params = folder / "checkpoints/3/params"
    damaged = list(params.glob(files))
    assert damaged
    for path in damaged:
        damage(path)
    message = rf"checkpoint {params} is damaged \({said}\); use another step, WORKDIR/checkpoints/N\."
    with pytest.raises(InputError, match=message):
        checkpoint.load_params(folder, 3)


def test_coroutines_that_orbax_drops_are_not_reported_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each array that it does not read any more would give a traceback and the whole specification of the array."""
    reported: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    orbax_storage._shorten_log.__wrapped__()
    report = cast(Callable[[object], object], sys.unraisablehook)
    for file, text in (("/lib/orbax/serialization.py", "no chunk"), ("/lib/other.py", "Event loop is closed")):
        dropped = SimpleNamespace(cr_code=SimpleNamespace(co_filename=file))
        report(SimpleNamespace(object=dropped, exc_value=Exception(text)))
    assert reported == []
    other = SimpleNamespace(object=dropped, exc_value=Exception("no chunk"))
    nothing = SimpleNamespace(object=None, exc_value=Exception("no chunk"))
    report(other)
    report(nothing)
    assert reported == [other, nothing]
