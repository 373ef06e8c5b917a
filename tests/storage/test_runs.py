"""Training where the working directory is on object storage: killed, faulted, denied, damaged."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm import checkpoint, checksums, lease, storage
from lm import config as config_lib
from lm.config import Config
from lm.errors import InputError
from lm.training import loop, metrics
from tests.test_bad_input import assert_refused
from tests.training.conftest import changed

from . import proxy
from .servers import BUCKET

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tiny_config: Config) -> Config:
    """Twelve steps, a checkpoint at 4, 8 and 12; the store is made in the working directory."""
    return changed(tiny_config, data={"store": ""}, train={"steps": 12}, checkpoint={"every": 4, "keep": 2})


@pytest.fixture(scope="module")
def command(config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    file = tmp_path_factory.mktemp("config") / "tiny.py"
    values = json.loads(config_lib.to_json(config))
    file.write_text(f"from lm import config\n\ndef get_config():\n    return config.from_dict({values!r})\n")
    return [sys.executable, str(ROOT / "launch" / "train.py"), f"--config={file}"]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, env={**os.environ, **environment}
    )


def curve(workdir: str) -> list[tuple[int, float, float]]:
    return [(int(line["step"]), line["loss"], line["gradient_norm"]) for line in metrics.read_metrics(workdir)]


@pytest.fixture(scope="module")
def unbroken(config: Config, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float, float]]:
    """The curve of a run that nothing happened to, on disk."""
    workdir = str(tmp_path_factory.mktemp("unbroken") / "run")
    loop.train(config, workdir)
    assert len(curve(workdir)) == 12
    return curve(workdir)


@contextlib.contextmanager
def held_back(url: str, port: int, request: bytes) -> Iterator[tuple[dict[str, str], threading.Event]]:
    """A proxy that holds back a request for ever: the environment that leads there, and when it has come."""
    came = threading.Event()

    def decide(head: bytes) -> int:
        line = head.partition(b"\r\n")[0]
        if request in line.replace(b"%2F", b"/") and not line.startswith((b"GET", b"HEAD")):
            came.set()
            return proxy.HOLD
        return proxy.PASS

    with proxy.running(port, decide) as server:
        endpoint = server.url
        names = ("AWS_ENDPOINT_URL",) if url.startswith("s3") else ("TENSORSTORE_GCS_HTTP_URL", "STORAGE_EMULATOR_HOST")
        yield dict.fromkeys(names, endpoint), came


def test_kill_9_while_saving_costs_no_bit(url: str, config, command, unbroken, request):
    """The marker of checkpoint 8 never arrives: its arrays are there, it is not."""
    port = request.getfixturevalue("s3_port" if url.startswith("s3") else "gcs_port")
    with held_back(url, port, b"/checkpoints/8/commit_success.txt") as (environment, came):
        process = subprocess.Popen(
            [*command, f"--workdir={url}"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert came.wait(120), process.stderr and process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = storage.list_keys(url)
    assert any(key.startswith("checkpoints/8/params/") for key in left)
    assert "checkpoints/8/commit_success.txt" not in left
    assert lease.NAME in left
    assert checkpoint.locate(url)[1] == 4
    loop.train(config, url)
    assert curve(url) == unbroken
    left = storage.list_keys(url)
    assert {key.split("/")[1] for key in left if key.startswith("checkpoints/")} == {"8", "12"}
    assert lease.NAME not in left
    assert {"config.json", "tokenizer.model", "loss.png", "store/manifest.json"} <= set(left)
    assert any(key.startswith("tensorboard/") for key in left)
    assert checkpoint.load_params(*checkpoint.locate(url)).keys()


def test_frozen_parameters_are_written_again_where_their_first_save_was_killed(
    s3_port: int, s3_url: str, config, tmp_path
):
    """The marker of `frozen` never arrives, so no checkpoint does either: the run begins again."""
    frozen = changed(
        config,
        optim={"frozen": "encoder/.*", "schedule": "constant"},
        train={"steps": 2},
        checkpoint={"every": 1, "asynchronous": False},
    )
    file = tmp_path / "frozen.py"
    values = json.loads(config_lib.to_json(frozen))
    file.write_text(f"from lm import config\n\ndef get_config():\n    return config.from_dict({values!r})\n")
    with held_back(s3_url, s3_port, b"/frozen/commit_success.txt") as (environment, came):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / "train.py"), f"--config={file}", f"--workdir={s3_url}"],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert came.wait(120), process.stderr and process.stderr.read()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = storage.list_keys(s3_url)
    assert any(key.startswith("frozen/") for key in left)
    assert not any(key.endswith("commit_success.txt") for key in left)
    loop.train(frozen, s3_url)
    assert [step for step, *_ in curve(s3_url)] == [1, 2]
    assert checkpoint.load_params(s3_url, 2)["encoder"]


def test_a_request_in_five_may_fail(s3_port: int, s3_url: str, command, unbroken):
    """Half of the faults are answers of 503, half are connections that break."""
    count = iter(range(1_000_000))

    def decide(head: bytes) -> int:
        number = next(count)
        return proxy.PASS if number % 5 else (proxy.REFUSE, proxy.RESET)[number // 5 % 2]

    with proxy.running(s3_port, decide) as server:
        once = "--config.checkpoint.every=12"  # a save more would meet no other kind of request
        result = run([*command, f"--workdir={s3_url}", once], AWS_ENDPOINT_URL=server.url)
    assert result.returncode == 0, result.stderr
    assert min(server.counts[proxy.REFUSE], server.counts[proxy.RESET]) >= 10
    assert curve(s3_url) == unbroken
    assert checkpoint.locate(s3_url)[1] == 12


def test_a_second_run_in_a_live_folder_is_refused(s3_url: str, command):
    with lease.hold(s3_url):
        assert_refused(run([*command, f"--workdir={s3_url}"]), s3_url, "in use by process", "until")
    assert storage.list_keys(s3_url) == []


def test_wrong_credentials_are_refused(s3_url: str, command):
    result = run([*command, f"--workdir={s3_url}"], AWS_SECRET_ACCESS_KEY="not-the-secret")
    assert_refused(result, s3_url, "credentials are wrong")
    assert "not-the-secret" not in result.stderr


def test_a_missing_bucket_is_refused(url: str, config):
    url = url.replace(BUCKET, "no-such-bucket")
    with pytest.raises(InputError, match=f"^{url}: there is no such bucket"):
        loop.train(config, url)


@pytest.fixture(scope="module")
def eight_steps(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps, with checkpoints 4 and 8, on disk."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    loop.train(changed(config, train={"steps": 8}, optim={"schedule": "constant"}), str(workdir))
    return workdir


@pytest.fixture
def finished(eight_steps: Path, tmp_path: Path) -> str:
    """A copy of it, to be spoiled."""
    return str(shutil.copytree(eight_steps, tmp_path / "run"))


def flip(workdir: str, step: int, item: str, share: float) -> None:
    """Flips a bit in each data file of a checkpoint: some hold only what was written anew elsewhere."""
    for path in (Path(workdir) / "checkpoints" / str(step) / item).glob("**/d/*"):
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 8
        path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(finished: str, config, capfd):
    longer = changed(config, optim={"schedule": "constant"})
    flip(finished, 8, "training", 0.5)
    before = curve(finished)
    loop.train(longer, finished)
    shown = capfd.readouterr().err
    assert f"checkpoint {finished}/checkpoints/8 is damaged and not used: " in shown
    assert "resuming from step 4" in shown
    assert curve(finished)[:8] == before
    assert checkpoint.locate(finished)[1] == 12
    for file in (Path(finished) / "checkpoints" / "12").glob("params/**/d/*"):
        file.write_bytes(file.read_bytes()[:-1])
    longest = changed(longer, train={"steps": 13})
    loop.train(longest, finished)
    assert "checkpoints/12 is damaged and not used" in capfd.readouterr().err
    assert [step for step, *_ in curve(finished)] == list(range(1, 14))


def test_a_part_that_only_another_process_cannot_read_counts_before_any_sum(
    finished: str, config, monkeypatch: pytest.MonkeyPatch, capfd
):
    """A sum over an array of several processes waits for all of them: none may begin one that another cannot join."""
    asked, compute = [], checksums.compute
    monkeypatch.setattr(checkpoint, "_all_processes", lambda mine: bool(asked.append(mine) or len(asked) > 1))

    def watched(tree):
        assert len(asked) != 1
        return compute(tree)

    monkeypatch.setattr(checksums, "compute", watched)
    loop.train(changed(config, optim={"schedule": "constant"}), finished)
    assert asked == [True, True]
    shown = capfd.readouterr().err
    assert "checkpoints/8 is damaged and not used: another process could not read its part" in shown
    assert "resuming from step 4" in shown


def test_where_no_checkpoint_is_whole_nothing_is_deleted(finished: str, config):
    for step in (4, 8):
        flip(finished, step, "training", 0.3)
    with pytest.raises(InputError, match=r"every checkpoint in .* is damaged \(tried 8, 4\); restore one from a copy"):
        loop.train(changed(config, optim={"schedule": "constant"}), finished)
    assert sorted(path.name for path in Path(finished, "checkpoints").iterdir()) == ["4", "8"]


def test_a_flipped_bit_in_weights_is_not_read_as_weights(finished: str):
    flip(finished, 8, "params", 0.7)
    with pytest.raises(InputError, match=r"checkpoints/8/params is damaged .*; use another step"):
        checkpoint.load_params(*checkpoint.locate(finished))


def test_a_checksum_tells_any_bit_and_any_exchange():
    tree = {"a": np.arange(24, dtype=np.float32).reshape(4, 6), "b": np.arange(8, dtype=jnp.bfloat16), "c": np.int32(7)}
    whole = checksums.compute(tree)
    for index in range(24):
        for bit in (0, 17, 31):
            other = {**tree, "a": tree["a"].copy()}
            other["a"].view(np.uint32).flat[index] ^= np.uint32(1 << bit)
            found = checksums.compute(other)
            assert [name for name in found if found[name] != whole[name]] == ["['a']"]
    exchanged = {**tree, "a": tree["a"][::-1]}
    assert checksums.compute(exchanged)["['a']"] != whole["['a']"]
    mesh = jax.make_mesh((2, 3), ("x", "y"), devices=jax.devices()[:6])
    split = {**tree, "a": jax.device_put(tree["a"], NamedSharding(mesh, PartitionSpec("x", "y")))}
    assert checksums.compute({"a": split["a"]}) == {"['a']": whole["['a']"]}
