"""Workers that may be lost: what they were doing is done again, and a store's bytes do not depend on it.

The workers are threads that play a cluster. python -m tests.faults.ray_work loses real nodes of Ray, by hand.
"""

import concurrent.futures
import contextlib
import itertools
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lm.config import DataConfig
from lm.data import corpus, prepare, ray_workers
from lm.data.ray_workers import Lost, Pool, Worker
from lm.errors import InputError
from tests.data.test_prepare import contents


class Cluster:
    """Workers of which some are lost: before, in the middle of, or after a call."""

    def __init__(self, lost_calls: tuple[int, ...] = (), after: bool = False, starts: int = 10**6):
        self._calls, self._lock = itertools.count(), threading.Lock()
        self._lost, self._after, self._starts = lost_calls, after, starts
        self.started = 0

    def start(self) -> Worker:
        with self._lock:
            self.started += 1
        if self.started > self._starts:
            raise Lost("no machine")
        dead = threading.Event()

        def worker(function: Callable):
            assert not dead.is_set()  # a lost worker is never asked again
            with self._lock:
                is_lost = next(self._calls) in self._lost
            if is_lost:
                dead.set()
                if self._after:
                    function()
                raise Lost("the node is gone")
            return function()

        return worker


@contextlib.contextmanager
def pool(cluster: Cluster, num_workers: int = 2) -> Iterator[Pool]:
    started = Pool(cluster.start, num_workers)
    yield started
    started.shutdown(cancel_futures=True)


def test_every_call_is_answered_though_workers_are_lost():
    cluster = Cluster(lost_calls=(0, 3, 4, 9))
    with pool(cluster) as workers:
        assert list(workers.map(abs, range(-20, 0))) == list(range(20, 0, -1))
    assert cluster.started >= 2 + 3  # a worker that is lost is started again, unless all is done


def test_a_call_raises_its_own_error():
    with pool(Cluster()) as workers:
        failing = workers.submit(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            failing.result()
        assert workers.submit(int, "3").result() == 3  # and its worker lives on


def test_a_call_that_ends_every_worker_is_given_up():
    cluster = Cluster(lost_calls=tuple(range(8)))
    with pool(cluster) as workers, pytest.raises(RuntimeError, match="8 workers were lost during the same work"):
        workers.submit(abs, -1).result()


def test_without_any_worker_the_calls_fail():
    with pool(Cluster(starts=1, lost_calls=(1,)), 1) as workers:
        first, second = workers.submit(abs, -1), workers.submit(abs, -2)
        assert first.result() == 1
        with pytest.raises(RuntimeError, match=r"no worker could be kept alive, .*no machine"):
            second.result()
        with pytest.raises(RuntimeError, match="no worker"):
            workers.submit(abs, -3)


def test_one_machine_is_enough():
    """The place of the other one stays empty."""
    with pool(Cluster(starts=1)) as workers:
        assert list(workers.map(abs, [-1, -2, -3])) == [1, 2, 3]


def test_what_has_not_begun_is_cancelled():
    blocked, begun = threading.Event(), threading.Event()
    workers = Pool(Cluster().start, 1)
    running = workers.submit(lambda: begun.set() or blocked.wait(10))
    begun.wait(10)
    waiting = workers.submit(abs, -1)
    workers.shutdown(wait=False, cancel_futures=True)
    blocked.set()
    assert running.result() is True
    assert waiting.cancelled()


# ---- Preparing


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, data_config: DataConfig) -> Path:
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_SMALLEST_SHARD", 4096)
        prepare.prepare(data_config, str(folder), num_workers=1, progress=False)
    return folder


def on_cluster(patch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    """Lets the runner `ray` be the pool of that cluster."""

    @contextlib.contextmanager
    def executor(runner: str, num_workers: int | None) -> Iterator[concurrent.futures.Executor]:
        assert runner == "ray"
        with pool(cluster, num_workers or 2) as workers:
            yield workers

    patch.setattr(ray_workers, "executor", executor)
    patch.setattr(corpus, "_SMALLEST_SHARD", 4096)


@pytest.mark.parametrize("after", [False, True], ids=["before they write", "after they wrote"])
def test_a_store_has_the_local_bytes_though_workers_are_lost(
    local: Path, data_config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
):
    on_cluster(monkeypatch, Cluster(lost_calls=(0, 2, 3), after=after))
    prepare.prepare(data_config, str(tmp_path), runner="ray", progress=False)
    assert contents(tmp_path) == contents(local)


def test_a_store_goes_on_on_a_cluster(
    local: Path, data_config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What the local runner left unfinished: without its manifest and two of its markers."""
    out = tmp_path / "out"
    shutil.copytree(local, out)
    assert data_config.path  # the state of an unfinished run names the corpus
    for name in ("manifest.json", "shards/00001/complete.json", "shards/00003/complete.json"):
        (out / name).unlink()
    (out / "shards/00003/train/tokens/zarr.json").write_text("{")  # half a file of a killed machine
    written = []
    write_shard = prepare.shard_jobs.write
    monkeypatch.setattr(prepare.shard_jobs, "write", lambda job: written.append(job.index) or write_shard(job))
    on_cluster(monkeypatch, Cluster(lost_calls=(0,), after=True))
    prepare.prepare(data_config, str(out), runner="ray", progress=False)
    assert sorted(written) in ([1, 1, 3], [1, 3, 3])
    assert contents(out) == contents(local)


def test_the_arrays_of_a_shard_are_never_missing_while_it_is_written_again(made, tmp_path: Path):
    """As by a worker that is taken for lost, and is not."""
    out = tmp_path / "store"
    shutil.copytree(made.path, out)
    array = out / "shards/00000/train/tokens"
    before = {path: path.read_bytes() for path in array.rglob("*") if path.is_file()}
    tokens = made.train.read([0], [made.train.num_tokens])
    seen = []
    watching = threading.Event()

    def watch() -> None:
        while not watching.is_set():
            seen.append(all(path.exists() for path in before))

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(20):
        prepare.store.arrays.write(str(out), ["shards/00000/train/tokens"], tokens).result()
    watching.set()
    thread.join()
    assert seen
    assert all(seen)
    assert {path: path.read_bytes() for path in before} == before


def test_a_runner_that_does_not_exist_is_refused(data_config: DataConfig, tmp_path: Path):
    for runner in ("spark", "ray://", "ray:8", ""):
        with pytest.raises(InputError, match="accepted: local, ray or ray://HOST:PORT"):
            prepare.prepare(data_config, str(tmp_path / "store"), runner=runner)


def test_ray_is_needed_for_its_runner_alone(data_config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"--runner=ray needs ray; pip install -e '.\[ray\]'"):
        prepare.prepare(data_config, str(tmp_path / "store"), runner="ray", progress=False)
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_a_folder_that_a_node_does_not_see_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="every node has to see the store"):
        prepare.shard_jobs.load_tokenizer(str(tmp_path), "tokenizer.model", "")
