"""Answers over HTTP equal those of `lm.load`, and do not depend on what else the server does."""

import concurrent.futures
import json
import random
from typing import Any

import httpx
import numpy as np
import pytest

import lm
from tests.serving.conftest import WORDS, Running

LENGTHS = (1, 2, 5, 9, 14, 25, 60)  # words; the models read 32 tokens


def texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=LENGTHS[i % len(LENGTHS)])) for i in range(count)]


@pytest.fixture(scope="module")
def models(workdirs):
    return {name: lm.load(path) for name, path in workdirs.items()}


# ---- As lm.load answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "inputs"),
    [
        ("fill-mask", ["the [MASK] tree", "[MASK] " * 12, "no mask", {"text": "a [MASK]", "text_pair": "b [MASK]"}]),
        ("next-sentence", [{"text": "the tree", "text_pair": "sings"}, "the tree"]),
        ("embed", [*texts(1, 7), "", {"query": "a"}]),
    ],
)
def test_reading_tasks_answer_as_the_library(running: Running, models, task, inputs):
    ours = running.post(f"/tasks/{task}", {"inputs": inputs})["answers"]
    theirs = models["reader"].pipeline(task)(inputs)
    assert len(ours) == len(theirs) == len(inputs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        np.testing.assert_allclose(numbers(mine), numbers(other), atol=1e-6)


def numbers(answer: Any) -> list[float]:
    """All numbers of an answer."""
    match answer:
        case dict():
            return [number for value in answer.values() for number in numbers(value)]
        case list():
            return [number for value in answer for number in numbers(value)]
        case float():
            return [answer]
    return []


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.3, "seed": 4}, {"num_beams": 2, "length_penalty": 0.5}, {"min_length": 24, "num_beams": 2}],
    ids=str,
)
def test_writing_tasks_answer_as_the_library(running: Running, models, options):
    inputs, most, written = texts(2, 5), {"max_length": 24}, running.service.metrics.written_tokens._value
    before = written.get()
    ours = running.post("/tasks/generate", {"inputs": inputs, **options, **most})["answers"]
    assert 0 < written.get() - before <= len(inputs) * 24
    theirs = models["writer"].generate(inputs, **options, **most)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["text"] == other["text"]
        assert mine["score"] == pytest.approx(other["score"], abs=1e-5)
        assert [each["text"] for each in mine.get("candidates", [])] == [
            each["text"] for each in other.get("candidates", [])
        ]


def test_a_stream_of_a_task_ends_with_its_answer(running: Running):
    body = {"inputs": [*texts(3, 2), ""], "max_length": 12}
    answers = running.post("/tasks/generate", body)["answers"]
    found, written = {}, {}
    for event in events(running, "/tasks/generate", {**body, "stream": True}):
        if "answer" in event:
            found[event["index"]] = event["answer"]
        else:
            written[event["index"]] = written.get(event["index"], "") + event["text"]
    assert [found[i] for i in range(3)] == answers
    assert written == {i: answers[i]["text"] for i in range(2)}


def events(running: Running, path: str, body: object) -> list[Any]:
    """The events of a stream, which ends with [DONE]."""
    with running.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_the_models_are_chosen_by_name(running: Running):
    assert [each["id"] for each in running.client.get("/v1/models").json()["data"]] == ["reader", "writer"]
    assert running.client.get("/v1/models/writer").json()["id"] == "writer"
    for path, body in (
        ("/v1/embeddings", {"input": "a", "model": "writer"}),
        ("/v1/embeddings", {"input": "a", "model": "nobody"}),
        ("/tasks/generate", {"inputs": ["a"], "model": "reader"}),
        ("/tasks/nothing", {"inputs": ["a"]}),
    ):
        assert running.refusal(path, body).status_code == 404


# ---- Whatever else is computed --------------------------------------------------------------------


def mixed(count: int) -> list[tuple[str, dict[str, Any]]]:
    """Requests of every kind and length."""
    rng, found = random.Random(7), []
    for number, text in enumerate(texts(8, count)):
        length = rng.randint(1, 40)
        found.append(
            [
                ("/v1/embeddings", {"input": text}),
                ("/v1/completions", {"prompt": text, "temperature": 0, "max_tokens": length}),
                ("/v1/completions", {"prompt": text, "seed": number, "max_tokens": length, "top_p": 0.9, "n": 2}),
                ("/tasks/generate", {"inputs": [text], "num_beams": 2, "max_length": length}),
                ("/embed", {"inputs": [text, text[:5] or "a"]}),
                ("/v1/completions", {"prompt": text, "seed": number, "max_tokens": length, "logprobs": 0, "stop": "e"}),
                ("/tasks/fill-mask", {"inputs": [f"{text[:40]} [MASK]"]}),
            ][number % 7]
        )
    return found


def said(answer: Any) -> Any:
    """An answer without its id and time."""
    return (
        {key: value for key, value in answer.items() if key not in ("id", "created")}
        if isinstance(answer, dict)
        else answer
    )


def test_concurrent_mixed_requests_are_answered_as_alone(running: Running):
    requests = mixed(56)
    alone = [said(running.post(*request)) for request in requests]

    def ask(place: int) -> Any:
        if place % 5 == 4:  # among them, clients that leave
            body = {"prompt": "the tree", "max_tokens": 96, "temperature": 0, "n": 4}
            with pytest.raises(httpx.TimeoutException):
                running.client.post("/v1/completions", json=body, timeout=0.01)
        return said(running.post(*requests[place]))

    order = random.Random(9).sample(range(len(requests)), len(requests))
    with concurrent.futures.ThreadPoolExecutor(64) as threads:
        together = dict(zip(order, threads.map(ask, order), strict=True))
    for place, expected in enumerate(alone):
        path, found = requests[place][0], together[place]
        if path in ("/v1/embeddings", "/embed", "/tasks/fill-mask"):
            np.testing.assert_allclose(numbers(found), numbers(expected), atol=1e-6)
        else:
            assert found == expected
