"""A server takes up the checkpoints that a run saves where it trains: on disk, on gs:// and on s3://."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from lm import checkpoint, storage
from lm.config import CheckpointConfig, Config
from lm.data.store import Store
from lm.models import Params
from lm.serving import served
from lm.serving.served import Served
from lm.serving.server import Watcher, make_service
from lm.serving.service import Service
from lm.serving.settings import Settings
from lm.storage import StorageError
from tests.inference.conftest import make_workdir
from tests.serving.conftest import until

SETTINGS = Settings(tasks=("embed",), batch_tokens=64, watch_seconds=0.05)  # one small shape


@pytest.fixture
def watch() -> Iterator[Callable[[str], Service]]:
    """Serves a working directory, and looks for its new checkpoints."""
    ends = []

    def start(workdir: str) -> Service:
        service = make_service([Served("model", workdir, SETTINGS)], SETTINGS)
        service.engine.start()
        watcher = Watcher(service)
        ends.extend((watcher.close, service.engine.close, service.close))
        until(lambda: service.engine.is_ready)
        return service

    yield start
    for end in ends:
        end()


def save(workdir: str, step: int, params: Params) -> None:
    saved = checkpoint.Checkpoints(storage.as_path(workdir), CheckpointConfig(keep=9))
    saved.save(step, {"params": params, "step": np.int32(step)})
    saved.close()


def refused(service: Service) -> float:
    return service.metrics.reloads.labels("model", "refused")._value.get()


def test_checkpoints_of_a_run_are_taken_up_from_object_storage(url: str, tiny_config: Config, watch):
    make_workdir(storage.as_path(url), tiny_config, Store.open(tiny_config.data.store).tokenizer)
    service = watch(url)
    model = service.engine.models["model"]
    (before,) = model.predictor.embed(["the tree"])
    params = model.predictor.loaded.params
    save(url, 1, jax.tree.map(lambda leaf: leaf * np.nan, params))
    until(lambda: refused(service) == 1)
    assert model.weights.step == 0
    save(url, 2, jax.tree.map(lambda leaf: leaf * 1.1, params))
    until(lambda: model.weights.step == 2)
    (after,) = model.predictor.embed(["the tree"])
    assert np.abs(np.subtract(after["embedding"], before["embedding"])).max() > 1e-3
    assert (refused(service), service.engine.compilations) == (1, 0)


def test_a_checkpoint_that_cannot_be_used_is_read_once_and_one_that_does_not_come_again(
    tiny_config: Config, tmp_path: Path, watch, monkeypatch: pytest.MonkeyPatch
):
    workdir = make_workdir(tmp_path / "run", tiny_config, Store.open(tiny_config.data.store).tokenizer)
    service = watch(workdir)
    model = service.engine.models["model"]
    params, read, asked = model.predictor.loaded.params, checkpoint.load_params, []

    def load_params(workdir, step, abstract):
        asked.append(step)
        if asked.count(2) == 1:
            raise StorageError("the storage does not answer.")
        return read(workdir, step, abstract)

    monkeypatch.setattr(served.checkpoint, "load_params", load_params)
    save(str(tmp_path / "other"), 1, params)
    for file in (tmp_path / "other/checkpoints/1/params").rglob("*"):
        if file.is_file() and file.stat().st_size > 4096:
            file.write_bytes(file.read_bytes()[:-100])
    os.rename(tmp_path / "other/checkpoints/1", tmp_path / "run/checkpoints/1")
    until(lambda: refused(service) == 1)
    looks = watch_times(service, monkeypatch)
    until(lambda: len(looks) > 2)
    assert asked == [1]
    shutil.rmtree(tmp_path / "run/checkpoints/1")
    save(workdir, 2, params)
    until(lambda: model.weights.step == 2)
    assert asked == [1, 2, 2]


def watch_times(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows with every look of the watcher."""
    looks, reload = [], service.engine.reload

    def counted(*args, **options):
        looks.append(True)
        return reload(*args, **options)

    monkeypatch.setattr(service.engine, "reload", counted)
    return looks
