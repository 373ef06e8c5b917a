"""What clients and machines do wrong: the others are answered, no slot stays taken, and the loop goes on."""

import asyncio
import concurrent.futures
import dataclasses
import json
import logging
import shutil
import socket
import threading
from pathlib import Path

import httpx
import jax
import numpy as np
import pytest
from etils import epath

from lm import checkpoint
from lm.config import CheckpointConfig
from lm.errors import InputError
from lm.serving import lanes
from lm.serving.served import Served
from lm.serving.server import make_app
from lm.serving.service import Service
from tests.serving.conftest import Running, limited, start, until

LONG = {"prompt": "the tree", "max_tokens": 96, "min_length": 96, "temperature": 0}


# ---- Exceptions -----------------------------------------------------------------------------------


def test_poison_fails_its_batch_alone(running: Running, monkeypatch):
    """A batch whose computation raises fails; later ones are answered."""
    model = running.service.engine.models["reader"]
    readers = model.weights.readers["pooled by mean"]
    (poison,) = model.predictor.loaded.tokenizer.encode(["sings"])
    program, faults = readers._program, running.service.metrics.faults._value.get()

    def poisoned(batch):
        if np.isin(batch.tokens_BL, poison).any():
            raise RuntimeError("poison")
        return program(batch)

    monkeypatch.setattr(readers, "_program", poisoned)
    assert running.refusal("/embed", {"inputs": "sings"}).status_code == 424
    assert running.refusal("/v1/embeddings", {"input": ["a", "sings"]}).status_code == 500
    assert len(running.post("/embed", {"inputs": ["a", "b"]})) == 2
    assert running.service.metrics.faults._value.get() == faults + 2


@pytest.mark.parametrize("program", ["_insert", "_take_steps"])
def test_poison_in_a_lane_leaves_the_lane_working(running: Running, monkeypatch, program):
    expected = running.post("/v1/completions", LONG)["choices"]
    original, calls = getattr(lanes, program), []

    def poisoned(*args):
        calls.append(0)
        if len(calls) == 3:
            original(*args)  # the state's buffers are given away
            raise RuntimeError("poison")
        return original(*args)

    monkeypatch.setattr(lanes, program, poisoned)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        statuses = list(threads.map(lambda _: running.client.post("/v1/completions", json=LONG).status_code, range(4)))
    assert set(statuses) <= {200, 500}
    assert 500 in statuses
    assert running.post("/v1/completions", LONG)["choices"] == expected


# ---- Clients that leave, and deadlines ------------------------------------------------------------


def test_a_client_that_leaves_a_stream_frees_its_slots(running: Running, monkeypatch):
    scheduler, metrics = running.service.scheduler, running.service.metrics
    before, take_steps, calls, left = metrics.written_tokens._value.get(), lanes._take_steps, [], threading.Event()

    def held(*args):  # the sequences must not end before the client has left, nor wait before there is a text
        calls.append(0)
        assert len(calls) != 80 or left.wait(60)
        return take_steps(*args)

    monkeypatch.setattr(lanes, "_take_steps", held)
    with running.client.stream("POST", "/v1/completions", json={**LONG, "n": 4, "stream": True}) as response:
        lines = response.iter_lines()  # a reader that nobody holds closes the connection
        next(lines)
        until(lambda: scheduler.slots_in_use() == 4)  # they enter one by one
    until(lambda: scheduler.slots_in_use() == 0)
    left.set()
    assert metrics.written_tokens._value.get() - before < 4 * 96


def test_a_client_that_leaves_while_it_waits_is_forgotten(running: Running):
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2]))) as raw:
        body = json.dumps({**LONG, "n": 4}).encode()
        raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        until(lambda: running.service.scheduler.slots_in_use() == 4)
    until(lambda: running.service.scheduler.slots_in_use() == 0)


def test_a_deadline_ends_a_request(running: Running):
    headers = {"x-timeout-seconds": "0.02"}
    response = running.refusal("/v1/completions", {**LONG, "n": 8}, headers=headers)
    assert response.status_code == 504
    assert response.json()["error"]["type"] == "timeout_error"
    for wrong in ("-1", "soon", "nan"):
        assert running.refusal("/v1/completions", LONG, headers={"x-timeout-seconds": wrong}).status_code == 400


def test_a_slow_reader_does_not_hold_a_slot(running: Running):
    with running.client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
        until(lambda: running.service.scheduler.slots_in_use() == 0)
        assert len(list(response.iter_lines())) > 20


# ---- Limits ---------------------------------------------------------------------------------------


def test_large_bodies_are_refused_before_they_are_read(running: Running):
    most = running.service.settings.max_body_bytes
    assert running.refusal("/embed", {"inputs": "a" * most}).status_code == 413

    def chunks():
        for _ in range(100):
            yield b" " * (most // 50)

    assert running.client.post("/embed", content=chunks()).status_code == 413


def test_what_never_fits_is_named(running: Running):
    with limited(running.service, waiting_tokens=10):
        response = running.refusal("/v1/completions", LONG)
        assert response.status_code == 413
        assert "at most 10" in response.text
    with_many = running.refusal("/v1/completions", {**LONG, "n": 128, "prompt": ["a"] * 100})
    assert with_many.status_code == 400
    assert "at most 2048" in with_many.text
    for options, message in (
        ({"early_stopping": True}, "no early_stopping; --extra_options=early_stopping, at its start, adds it."),
        (
            {"forced_bos_token_id": 5, "no_repeat_ngram_size": 2},
            "no no_repeat_ngram_size and no forced_bos_token_id; --extra_options=no_repeat_ngram_size,forced, at",
        ),
        (
            {"suppress_tokens": [5], "forced_eos_token_id": 5},
            "suppress_tokens is longer than the list that this server",
        ),
    ):
        assert message in running.refusal("/tasks/generate", {"inputs": "a", **options}).json()["error"]["message"]
    assert "num_beams has no effect on embed" in running.refusal("/tasks/embed", {"inputs": "a", "num_beams": 2}).text
    assert "accepts 1, 2" in running.refusal("/tasks/generate", {"inputs": ["a"], "num_beams": 3}).text


@pytest.mark.parametrize(
    "path", ["/embed", "/v1/embeddings", "/v1/completions", "/tasks/embed", "/tasks/generate", "/tokenize"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        b'{"inputs": NaN}',
        b"[" * 50_000,
        b'{"inputs": [[[1]]], "input": 1e999, "prompt": {}}',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_bad_bodies_are_the_clients_fault(running: Running, path, content):
    response = running.client.post(path, content=content)
    assert 400 <= response.status_code < 500
    assert response.json()["error"]


def test_texts_that_no_tokenizer_takes(running: Running):
    for text in ("\ud800", "a\x00b", "\u202e" * 40 + "a", "😀" * 500):
        for path, body in (
            ("/tasks/embed", {"inputs": [text]}),
            ("/v1/embeddings", {"input": text}),
            ("/v1/completions", {"prompt": text, "max_tokens": 4, "stop": text[:2]}),
        ):
            assert running.client.post(path, content=json.dumps(body)).status_code == 200


def test_unknown_routes_are_not_counted_apart(running: Running):
    for number in range(5):
        assert running.client.get(f"/nothing/{number}").status_code == 404
    assert running.client.get("/embed").status_code == 405
    page = running.client.get("/metrics").text
    assert 'route="other",status="404"' in page
    assert "/nothing/" not in page
    assert "lm_slots_in_use 0.0" in page


# ---- Who may ask ----------------------------------------------------------------------------------


def ask(service: Service, *requests: httpx.Request) -> list[httpx.Response]:
    """Asks an application of its own around a service."""

    async def all_of_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(make_app(service)), base_url="http://a") as client:
            return [await client.send(request) for request in requests]

    return asyncio.run(all_of_them())


def test_keys(running: Running):
    settings = dataclasses.replace(running.service.settings, api_keys=("one", "two"))
    service = Service(running.service.engine, settings)
    request = lambda path, **headers: httpx.Request("POST", f"http://a{path}", json={"inputs": "a"}, headers=headers)  # noqa: E731
    statuses = [
        each.status_code
        for each in ask(
            service,
            request("/embed"),
            request("/embed", authorization="Bearer three"),
            request("/embed", authorization="Basic one"),
            request("/embed", authorization="Bearer one"),
            request("/embed", authorization="bearer two"),
            request("/v1/embeddings", authorization="Bearer"),
            httpx.Request("GET", "http://a/health"),
            httpx.Request("GET", "http://a/v1/models"),
        )
    ]
    assert statuses == [401, 401, 401, 200, 200, 401, 200, 401]
    service.close()


def test_origins(running: Running):
    headers = {"origin": "http://b", "access-control-request-method": "POST"}
    request = httpx.Request("OPTIONS", "http://a/embed", headers=headers)
    allowed = Service(running.service.engine, dataclasses.replace(running.service.settings, cors_origins=("http://b",)))
    assert ask(running.service, request)[0].headers.get("access-control-allow-origin") is None
    assert ask(allowed, request)[0].headers["access-control-allow-origin"] == "http://b"
    allowed.close()


def test_a_log_has_the_id_and_not_the_text(running: Running, caplog):
    with caplog.at_level(logging.INFO, "lm.serving"):
        response = running.client.post("/embed", json={"inputs": "secret"}, headers={"x-request-id": "abc-1"})
        running.client.post(
            "/embed", json={"inputs": "secret", "normalize": "secret"}, headers={"x-request-id": "no\ttab"}
        )
        until(lambda: len(caplog.records) == 2)
    assert response.headers["x-request-id"] == "abc-1"
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("abc-1 POST /embed 200")
    assert "tab" not in second
    assert "secret" not in first + second


# ---- Stopping -------------------------------------------------------------------------------------


def test_draining_answers_what_comes_and_finishes_what_runs(running: Running):
    settings = dataclasses.replace(running.service.settings, drain_seconds=2)
    second = start(Service(running.service.engine, settings))
    with second.client.stream("POST", "/v1/completions", json={**LONG, "n": 4, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        second.server.servers[0].get_loop().call_soon_threadsafe(second.server.drain)
        until(lambda: second.service.draining)
        other = httpx.Client(base_url=second.url)
        assert other.get("/ready").status_code == 503
        assert other.get("/health").status_code == 200
        assert other.post("/embed", json={"inputs": "a"}).status_code == 200
        other.close()
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    second.thread.join(30)
    assert not second.thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        second.client.get("/ready")
    second.client.close()
    assert running.client.get("/ready").status_code == 200


# ---- New weights ------------------------------------------------------------------------------------


def save(workdir: str, step: int, params) -> None:
    saved = checkpoint.Checkpoints(epath.Path(workdir), CheckpointConfig(asynchronous=False, keep=9))
    saved.save(step, {"params": params, "step": np.int32(step)})
    saved.close()


def test_new_weights_under_load(running: Running, workdirs):
    """Every answer is wholly of one set of weights; bad checkpoints are refused; nothing is compiled."""
    models = running.service.engine.models
    asked = [
        ("/embed", {"inputs": ["the tree sings"] * 60}),
        ("/v1/completions", {**LONG, "prompt": ["the tree", "stone"], "n": 2, "max_tokens": 30, "min_length": 0}),
    ]

    def said(request: tuple[str, dict]) -> str:
        found = running.post(*request)
        return vectors(found) if isinstance(found, list) else json.dumps(found["choices"])

    old = [said(request) for request in asked]
    answers, stop = [[], []], threading.Event()

    def load(place: int) -> None:
        while not stop.is_set():
            answers[place].append(said(asked[place]))

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        waiting = [threads.submit(load, place) for place in (0, 1, 0, 1)]
        until(lambda: all(len(each) > 2 for each in answers))
        for name, workdir in workdirs.items():
            save(workdir, 1, jax.tree.map(lambda leaf: leaf * 1.1, models[name].predictor.loaded.params))
            assert running.post("/admin/reload", {"model": name}) == {"model": name, "step": 1, "loaded": True}
            assert running.post("/admin/reload", {"model": name})["loaded"] is False
        counts = [len(each) for each in answers]
        until(lambda: all(len(each) > count + 3 for each, count in zip(answers, counts, strict=True)))
        stop.set()
        for each in waiting:
            each.result()
    new = [said(request) for request in asked]
    for place in (0, 1):
        assert old[place] != new[place]
        assert set(answers[place]) == {old[place], new[place]}


def test_reloads_that_take_long_keep_no_request_waiting(running: Running, monkeypatch):
    end, begun, arrived, model = threading.Event(), [], [], running.service.model

    def asked(*which: str) -> Served:
        arrived.append(which)
        return model(*which)

    def reload(name: str) -> tuple[int, bool]:
        begun.append(name)
        assert end.wait(120)
        return len(begun), True

    monkeypatch.setattr(running.service.engine, "reload", reload)
    monkeypatch.setattr(running.service, "model", asked)
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(running.post, "/admin/reload", {"model": "reader"}) for _ in range(3)]
        try:
            until(lambda: len(begun) > 0 and len(arrived) == 3)
            assert len(running.post("/embed", {"inputs": ["a", "b"]}, timeout=30)) == 2
        finally:
            end.set()
        assert sorted(each.result()["step"] for each in waiting) == [1, 2, 3]


def test_bad_weights_are_refused(running: Running, workdirs):
    model, workdir = running.service.engine.models["reader"], workdirs["reader"]
    request = "/embed", {"inputs": ["the tree sings"]}
    expected, step = running.post(*request), model.weights.step
    folders = [Path(workdir, "checkpoints", str(number)) for number in (2, 3)]
    try:
        save(workdir, 2, jax.tree.map(lambda leaf: leaf * np.nan, model.predictor.loaded.params))
        refusal = running.refusal("/admin/reload", {"model": "reader"})
        assert refusal.status_code == 400
        assert "not finite" in refusal.text
        save(workdir, 3, model.predictor.loaded.params)
        for file in (folders[1] / "params").rglob("*"):
            if file.is_file() and file.stat().st_size > 4096:
                file.write_bytes(file.read_bytes()[:-100])
        assert "damaged" in running.refusal("/admin/reload", {"model": "reader"}).text
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    assert running.post(*request) == expected
    assert running.client.get("/info").json()["step"] == step


def test_another_run_with_other_settings_is_refused(running: Running, workdirs, tmp_path: Path):
    """Its weights alone would answer otherwise than its own server."""
    other = shutil.copytree(workdirs["reader"], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["data"]["seq_length"] -= 8
    (other / "config.json").write_text(json.dumps(config))
    (other / "sentence_encoder.json").write_text('{"pooling": "cls", "normalize": false, "prompts": {}}')
    with pytest.raises(InputError, match=r"has another data\.seq_length, another pooling; start a new server for it"):
        running.service.engine.reload("reader", path=str(other))


def vectors(found: list[list[float]]) -> str:
    """The vectors of one text, rounded; all have to be the same."""
    rounded = {tuple(np.round(vector, 4)) for vector in found}
    assert len(rounded) == 1
    return str(rounded)


def test_the_heartbeat(running: Running, monkeypatch):
    engine = running.service.engine
    assert engine.seconds_since_beat() < 30
    monkeypatch.setattr(engine, "seconds_since_beat", lambda: 61.0)
    assert running.client.get("/health").status_code == 503
    assert running.client.get("/health").json() == {"error": "unhealthy", "error_type": "Unhealthy"}
