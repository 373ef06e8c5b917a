"""Answers of many numbers: they are refused in time, or leave the event loop free."""

import asyncio
import json
import threading

import numpy as np
import pytest
from starlette.responses import Response

from lm.serving import large, routes
from tests.serving.conftest import Running


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/embed", {"inputs": ["a"] * 5}, "5 inputs; this server answers at most 4"),
        ("/embed_all", {"inputs": "the tree sings"}, "tokens; this server answers at most 4"),
        ("/v1/embeddings", {"input": ["a"] * 5}, "5 inputs"),
        ("/tasks/embed", {"inputs": ["a"] * 5}, "5 inputs"),
        ("/tasks/fill-mask", {"inputs": ["[MASK] [MASK]"], "top": 65}, "2 masks; this server answers at most 1"),
        ("/tokenize", {"inputs": "a " * 40}, "at most 32"),
    ],
    ids=str,
)
def test_an_answer_that_is_too_large_is_refused_before_anything_waits(
    running: Running, monkeypatch, path, body, message
):
    monkeypatch.setattr(large, "MOST", 4 * 32)  # the vectors of four inputs
    monkeypatch.setattr(running.service, "results", None)
    response = running.refusal(path, body)
    assert response.status_code == 413
    assert message in response.text


def test_a_large_answer_leaves_the_event_loop_free(monkeypatch):
    """Between two vectors of an answer that is encoded, the event loop answers others."""
    asked, free, dumps = [], threading.Event(), routes._dumps

    def held(value):
        asked.append(free.wait(20))  # only the event loop sets it
        return dumps(value)

    async def answer() -> Response:
        answering = asyncio.create_task(routes.answered_apart(lambda: list(vectors), vectors.size))
        await asyncio.sleep(0)
        free.set()
        return await answering

    vectors = np.linspace(-1, 1, 2 * large.AT_ONCE, dtype=np.float32).reshape(2, -1)
    monkeypatch.setattr(routes, "_dumps", held)
    assert json.loads(bytes(asyncio.run(answer()).body)) == vectors.tolist()
    assert asked == [True, True]


@pytest.mark.parametrize(
    "value",
    [{}, [], "a", {"a": {}, "b": []}, [{"a": [{"b": "\ud800"}, {}]}, {"c": None}], {"a": [[1.5, 2], [], [3]], "b": 1}],
    ids=repr,
)
def test_pieces_are_the_json_of_the_whole(value):
    assert "".join(routes._pieces(value)) == routes._dumps(value)


def test_pieces_of_arrays_are_the_json_of_their_numbers():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7
    value = {"data": [{"index": 0, "embedding": array[0, 0]}], "weights": array, "empty": array[:0]}
    assert "".join(routes._pieces(value)) == json.dumps(value, default=np.ndarray.tolist, separators=(",", ":"))
