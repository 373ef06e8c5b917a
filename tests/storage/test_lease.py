"""One writer at a time, on any storage."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lm import lease, storage
from lm.errors import InputError

HOLD_FOR_EVER = """
import sys, time
from lm import lease
with lease.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(1000)
"""


@pytest.fixture(params=["local", "s3", "gs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run")
    request.getfixturevalue({"s3": "s3_port", "gs": "gcs_port"}[request.param])
    return f"{request.param}://bucket/lease-{tmp_path.name}"


def test_a_held_folder_is_refused_and_a_released_one_is_not(folder: str):
    with lease.hold(folder) as check:
        held = json.loads(storage.read_keys(folder, [lease.NAME])[0] or "")
        assert held["expires"] > time.time()
        with pytest.raises(InputError, match=r"is in use by process \d+ on .*until \d\d:\d\d:\d\d"), lease.hold(folder):
            pass
        check()
    assert storage.list_keys(folder) == []
    with lease.hold(folder):
        pass


def test_of_several_at_once_one_gets_it(tmp_path: Path, s3_url: str):
    """Not on the GCS server of these tests: it lets a second create-only write overwrite the first."""
    for folder in (str(tmp_path), s3_url):
        start, go_on = threading.Barrier(8), threading.Barrier(8)
        fates = []

        def compete(folder: str = folder, start: threading.Barrier = start, go_on: threading.Barrier = go_on) -> None:
            start.wait()
            try:
                with lease.hold(folder):
                    fates.append("held")  # noqa: B023
                    go_on.wait()
            except InputError:
                fates.append("refused")  # noqa: B023
                go_on.wait()

        threads = [threading.Thread(target=compete) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(fates) == ["held", *["refused"] * 7]


def test_what_a_killed_process_of_this_machine_left_is_taken_over_at_once(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {process.pid} "), lease.hold(str(tmp_path)):
            pass
        process.send_signal(signal.SIGKILL)
    assert storage.list_keys(str(tmp_path)) == [lease.NAME]
    with lease.hold(str(tmp_path)):
        pass


@pytest.mark.parametrize(("seconds", "refused"), [(30, True), (-1, False)])
def test_of_another_machine_only_the_clock_tells(folder: str, seconds: float, refused: bool):
    with lease.hold(folder):
        (content,) = storage.read_keys(folder, [lease.NAME])
    assert content
    other = {**json.loads(content), "machine": "another", "token": "another", "expires": time.time() + seconds}
    storage.write_key(folder, lease.NAME, json.dumps(other).encode())
    if refused:
        with pytest.raises(InputError, match="in use"), lease.hold(folder):
            pass
        return
    with lease.hold(folder):
        assert json.loads(storage.read_keys(folder, [lease.NAME])[0] or b"")["token"] != "another"


def test_it_is_renewed_and_a_replaced_one_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "SECONDS", 0.4)
    folder = str(tmp_path)

    def held() -> dict:
        return json.loads(storage.read_keys(folder, [lease.NAME])[0] or b"{}")

    with lease.hold(folder) as check:
        first = held()
        while held()["expires"] == first["expires"]:
            time.sleep(0.01)
        check()
        storage.write_key(folder, lease.NAME, json.dumps({**held(), "token": "another"}).encode())
        with pytest.raises(InputError, match=r"this run has lost .*lease: another run has replaced it"):  # noqa: PT012
            while True:
                check()
                time.sleep(0.01)
    assert held()["token"] == "another"  # it is not ours to remove
