"""How a checkpoint is given to replicas on Ray and taken back, against a Ray that is only its answers."""

import json
import os
import signal
import socket
import subprocess
import urllib.error
from email.message import Message

import pytest

from lm.cluster import ray_here, ray_roll, ray_serve, ray_verbs
from lm.cluster.ray_serve import Replicas
from lm.errors import InputError

BROKEN = "is damaged"


class Ray:
    """A cluster with one application. Replicas take a checkpoint at the second look, or refuse one called broken."""

    def __init__(self, count: int):
        self.sent, self.status, self.looks, self.asked = [], "", 0, 0
        self.said = [{"replica": f"r{n}", "checkpoint": "", "refusal": "", "steps": {"lm": 75}} for n in range(count)]

    def send(self, made, file: str, address: str) -> None:
        del file, address
        self.sent.append(made["applications"][0])
        self.status, self.looks = "RUNNING", 0

    def given(self) -> str:
        return self.sent[-1]["deployments"][0]["user_config"]["checkpoint"]

    def fetch(self, url: str, headers) -> bytes:
        del headers
        if url.endswith(ray_roll.REPLICA):
            self.asked += 1
            return json.dumps(self.said[self.asked % len(self.said)]).encode()
        self.looks += 1
        if self.sent and self.looks > 1:
            for each in self.said:
                broken = "broken" in self.given()
                each |= {"checkpoint": self.given(), "refusal": f"{self.given()} {BROKEN}." if broken else ""}
        deployment = {"replicas": [{"state": "RUNNING"} for _ in self.said], "message": ""}
        application = {
            "status": self.status,
            "message": "",
            "deployments": {ray_serve.DEPLOYMENT: deployment},
            "deployed_app_config": self.sent[-1] if self.sent else None,
        }
        return json.dumps({"applications": {"lm": application} if self.sent else {}}).encode()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    made = Ray(3)
    monkeypatch.setattr(ray_roll, "_fetch", made.fetch)
    monkeypatch.setattr(ray_roll, "_send", made.send)
    monkeypatch.setattr(ray_roll, "_PAUSE", 0.0)
    return made


def test_a_roll_ends_when_every_replica_serves_it(ray: Ray, capsys) -> None:
    with pytest.raises(InputError, match="nothing is served there yet; start it with serve"):
        ray_roll.deploy(Replicas("runs/a"), "", "", is_roll=True)
    ray_roll.deploy(Replicas("runs/a"), "", "http://head:1")
    assert capsys.readouterr().out == "serving lm at step 75 on http://127.0.0.1:8000\n"
    ray.asked = 0
    ray_roll.deploy(Replicas("runs/b", host="0.0.0.0"), "", "http://head:1", is_roll=True)
    assert capsys.readouterr().out == "serving lm at step 75 on http://head:8000\n"
    assert ray.asked == 5  # before anything changed, too early, and each replica
    assert [each["checkpoint"] for each in ray.said] == [f"lm={os.path.abspath('runs/b')}"] * 3


def test_a_refused_checkpoint_is_taken_back(ray: Ray) -> None:
    ray_roll.deploy(Replicas("runs/a"), "", "")
    with pytest.raises(InputError) as refused:
        ray_roll.deploy(Replicas("runs/broken"), "", "", is_roll=True)
    path = f"lm={os.path.abspath('runs/broken')}"
    assert str(refused.value) == f"{path} {BROKEN}. lm keeps step 75. Ray has the config before it again."
    assert [each["deployments"][0]["user_config"]["checkpoint"] for each in ray.sent] == [
        f"lm={os.path.abspath(name)}" for name in ("runs/a", "runs/broken", "runs/a")
    ]


def test_what_ray_itself_refuses_is_said(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(made, file: str, address: str) -> None:
        ray.send(made, file, address)
        ray.status = "DEPLOY_FAILED"

    monkeypatch.setattr(ray_roll, "_send", failing)
    with pytest.raises(InputError, match=r"^lm=.*runs/a is not served: Ray says DEPLOY_FAILED: no reason\.$"):
        ray_roll.deploy(Replicas("runs/a"), "", "")


def test_replicas_that_cannot_be_asked_are_left_alone(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_roll.deploy(Replicas("runs/a"), "", "")

    def failing(url: str, error: Exception) -> bytes:
        if url.endswith(ray_roll.REPLICA):
            raise error
        return ray.fetch(url, {})

    for fault, said in (
        (urllib.error.HTTPError("", 401, "no key", Message(), None), "answers 401 .*; set LM_API_KEYS"),
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), r"\(Connection refused\), so its"),
    ):
        monkeypatch.setattr(ray_roll, "_fetch", lambda url, headers, fault=fault: failing(url, fault))
        with pytest.raises(InputError, match=said):
            ray_roll.deploy(Replicas("runs/b"), "", "", is_roll=True)
    assert len(ray.sent) == 1


def test_an_address_that_does_not_answer_is_one_line() -> None:
    for address, said in (
        ("http://127.0.0.1:1", r"--address=http://127.0.0.1:1 does not answer \(Connection refused\); give that of a"),
        ("head:8265", "--address=head:8265 is no address of a dashboard; accepted: http://HOST:8265"),
    ):
        with pytest.raises(InputError, match=said):
            ray_roll.Dashboard(address).application()


def test_a_port_that_is_taken_is_refused_before_ray_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"--host=127.0.0.1 --port={port}: Address already in use; choose another"):
            ray_here.require_port("127.0.0.1", port)
    ray_here.require_port("127.0.0.1", port)


def test_status_and_delete_need_no_checkpoint_and_have_two_spellings() -> None:
    for words in (["status"], ["serve", "status"], ["delete"], ["serve", "delete"]):
        (command,) = ray_verbs.shown(ray_verbs.verb(words), Replicas(""), "", "http://head:1")
        wanted = {
            "status": "serve status --address=http://head:1",
            "delete": "serve shutdown --address=http://head:1 --yes",
        }
        assert str(command) == wanted[words[-1]]
    assert [ray_verbs.verb(words) for words in (["serve"], ["serve", "apply"], ["roll"])] == ["apply", "apply", "roll"]
    for words in (["serve", "serve"], ["deploy"], ["status", "roll"]):
        with pytest.raises(InputError, match=r"is given; accepted: serve, or serve apply\|status\|roll\|delete"):
            ray_verbs.verb(words)
    for verb in ("apply", "roll"):
        with pytest.raises(InputError, match="--checkpoint is missing"):
            ray_verbs.shown(verb, Replicas(""), "", "")


def test_what_was_started_ends_with_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_here, "_ENDING", 1.0)
    running = subprocess.Popen(["sleep", "60"], start_new_session=True)
    with pytest.raises(SystemExit) as ended, ray_here.ended(running):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert running.poll() in (-signal.SIGINT, -signal.SIGTERM)  # a suite in the background ignores the first


@pytest.mark.parametrize("status", ["RUNNING", "DEPLOY_FAILED"])
def test_a_start_says_that_it_serves_or_is_ended(status: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    application = {"status": status, "message": "Traceback\n  lm.errors.InputError: it is damaged.\n"}
    dashboard = ray_roll.Dashboard("")
    monkeypatch.setattr(dashboard, "application", lambda: application)
    monkeypatch.setattr(ray_here, "is_ready", lambda where: status == "RUNNING")
    monkeypatch.setattr(ray_here, "_LOOKS", 0.01)
    monkeypatch.setattr(ray_here, "_ENDING", 1.0)
    failures: list[str] = []
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as running,
        ray_here.announced("http://here", running, dashboard, failures) as ready,
    ):
        if status == "RUNNING":
            ready.join()
            running.terminate()
        running.wait()
    good = ("starting Ray and a replica, to serve on http://here\n", "serving on http://here\n", [])
    bad = (good[0], "", ["Ray says DEPLOY_FAILED: lm.errors.InputError: it is damaged"])
    said = capsys.readouterr()
    assert (said.err, said.out, failures) == (good if status == "RUNNING" else bad)
