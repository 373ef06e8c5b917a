"""The page at /: its files fit together and have every text in both languages, and what it asks for is right.

`page.sh` tries it in a browser.
"""

import asyncio
import dataclasses
import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest

from lm.inference import attention
from lm.inference.packed import Row
from lm.inference.predict import TASKS, Predictor
from lm.inference.prompts import written_text
from lm.serving import explore, server
from lm.serving.refusals import Refusal
from lm.serving.service import Service
from tests.serving.conftest import Running

FOLDER = Path(explore.__file__).parent / "page"
FILES = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
SCRIPTS = {name: source for name, source in FILES.items() if name.endswith(".js")}
TEXTS = {language: json.loads(FILES[f"texts.{language}.json"]) for language in ("en", "zh")}
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "json": "application/json"}
TYPES["svg"] = "image/svg+xml"


def referenced() -> set[str]:
    """The files that the page names."""
    found = set(re.findall(r'(?:href|src)="page/([^"]+)"', FILES["index.html"]))
    for source in SCRIPTS.values():
        found |= set(re.findall(r'from "\./([^"]+)"', source))
    return found | {f"texts.{language}.json" for language in TEXTS}


def used() -> tuple[set[str], set[str]]:
    """The keys of texts that the page uses, and the beginnings of those that it puts together."""
    everything = "\n".join([FILES["index.html"], *SCRIPTS.values()])
    return set(re.findall(r'"([a-z0-9.-]+)"', everything)), set(re.findall(r"`([a-z]+\.)\$\{", everything))


def test_every_file_is_served_with_its_type(running: Running):
    assert referenced() == set(FILES) - {"index.html"}
    for name, source in FILES.items():
        response = running.client.get("/" if name == "index.html" else f"/page/{name}")
        assert response.status_code == 200
        assert response.text == source
        assert response.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]
        assert "default-src 'self'" in response.headers["content-security-policy"]
        unchanged = running.client.get(response.url.path, headers={"if-none-match": response.headers["etag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert running.client.get("/page/nothing.js").status_code == 404
    assert running.client.get("/page/../explore.py").status_code == 404


def test_the_page_loads_nothing_from_elsewhere():
    for name, source in FILES.items():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`]*", source))
        assert {each for each in addresses if "www.w3.org" not in each} == set(), name


def test_every_text_is_there_in_both_languages():
    english, chinese = TEXTS["en"], TEXTS["zh"]
    assert list(english) == list(chinese)
    for key, text in english.items():
        if key != "examples-of":
            assert text
            assert chinese[key]
            assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", chinese[key])), key


def test_every_text_that_is_used_exists_and_the_others_do_not():
    exact, beginnings = used()
    texts = set(TEXTS["en"]) - {"examples-of"}
    assert {key for key in texts if key not in exact and not key.startswith(tuple(beginnings))} == set()
    asked = re.findall(r'\bt\(\s*"([^"]+)"', "\n".join(SCRIPTS.values()))
    assert asked
    assert set(asked) <= texts
    shown = re.findall(r'data-(?:text|label)="([^"]+)"', FILES["index.html"])
    assert set(shown) <= texts


def test_every_task_has_its_words_and_examples():
    shown = set(re.findall(r'^  "?([a-z-]+)"?: \{', SCRIPTS["tasks.js"].partition("export const OPTIONS")[0], re.M))
    assert shown >= set(TASKS)
    for texts in TEXTS.values():
        assert set(texts["examples-of"]) == shown
        for name in shown:
            assert {f"task.{name}", f"about.{name}"} <= set(texts)
            assert texts["examples-of"][name]
            assert all(text for example in texts["examples-of"][name] for text in example)


def test_the_tasks_of_each_model_are_listed(running: Running):
    reader, writer = running.client.get("/tasks").json()["models"]
    assert (reader["name"], reader["tasks"], reader["beams"]) == ("reader", ["fill-mask", "next-sentence", "embed"], [])
    assert (writer["name"], writer["tasks"]) == ("writer", ["generate", "translate", "answer"])
    assert (writer["beams"], writer["longest_output"], writer["languages"]) == ([1, 2], 96, [])


@pytest.mark.parametrize(
    ("model", "task", "given", "decoding"),
    [
        ("reader", "next-sentence", {"text": "the tree", "text_pair": "sings"}, {}),
        ("writer", "generate", "the tree", {"num_beams": 2, "max_length": 24}),
    ],
)
def test_attention_is_that_of_the_library(running: Running, monkeypatch, model, task, given, decoding):
    """Of the request and, for a model that writes, of the answer that the server gives to it."""
    served, seen = running.service.engine.models[model], []
    group, make = served.weights.attending, served.weights.attending.item
    monkeypatch.setattr(group, "item", lambda row, written_T: seen.append((row, written_T)) or make(row, written_T))
    body = {"task": task, "input": given, **decoding}
    asked = running.post("/attention", body)
    row, written_T = seen[0]
    np.testing.assert_array_equal(row.tokens, served.predictor.pipeline(task).prompt.row(given).tokens)
    if written_T is not None:
        answer = running.post(f"/tasks/{task}", {"inputs": [given], **decoding})["answers"][0]
        assert written_text(served.predictor.loaded.tokenizer, written_T) == answer["text"]
    library = Predictor(served.predictor.loaded)  # with programs of its own, that pad nothing
    expected = attention.of_row(library, row, written_T)
    assert (asked["of"], asked["layer"]) == (next(iter(expected)), 2)
    for of, weights in expected.items():
        for layer in (1, 2):
            found = running.post("/attention", {**body, "of": of, "layer": layer})
            assert (found["of"], found["has"], found["layer"], found["layers"]) == (of, list(expected), layer, 2)
            assert (found["queries"], found["keys"]) == (list(weights.queries), list(weights.keys))
            np.testing.assert_allclose(found["weights"], weights.weights_NHLS[layer - 1], atol=1e-4)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"task": "fill-mask", "input": "no mask"}, "no [MASK]"),
        ({"task": "embed", "input": ["a"]}, "input is a list"),
        ({"task": "embed", "input": "a", "of": "cross"}, "it has encoder"),
        ({"task": "embed", "input": "a", "layer": 9}, "layer is 9"),
        ({"task": "embed", "input": "a" * 400, "of": "cross"}, "it has encoder"),
        ({"task": "nothing", "input": "a"}, "no such task"),
    ],
)
def test_attention_that_there_is_not_is_refused(running: Running, body, words):
    response = running.refusal("/attention", body)
    assert response.status_code in (400, 404)
    assert words in response.json()["error"]["message"]


def test_attention_of_a_long_text_is_refused(running: Running):
    groups = {name: model.weights.attending for name, model in running.service.engine.models.items()}
    no_places, sevens = np.zeros(0, np.int32), lambda length: np.full(length, 7, np.int32)
    row = lambda length: Row(sevens(length), sevens(length), no_places, False)  # noqa: E731
    with pytest.raises(Refusal, match=r"the input has 129 tokens.*at most 128"):
        groups["reader"].item(row(129), None)
    with pytest.raises(Refusal, match="the text that is written has 129 tokens"):
        groups["writer"].item(row(128), sevens(129))
    assert groups["writer"].item(row(128), sevens(128)).tokens == 256


def test_similarity_takes_a_model(running: Running):
    body = {"inputs": {"source_sentence": "the tree", "sentences": ["the tree", "a house"]}}
    same, other = running.post("/similarity", {**body, "model": "reader"})
    assert same == pytest.approx(1, abs=1e-5)
    assert other < same
    assert running.refusal("/similarity", {**body, "model": "writer"}).status_code == 424


def test_the_page_is_open_where_the_tasks_need_a_key(running: Running):
    settings = dataclasses.replace(running.service.settings, api_keys=("secret",))
    service = Service(running.service.engine, settings)

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(server.make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            key = {"authorization": "Bearer secret"}
            found = [await client.get("/"), await client.get("/page/main.js"), await client.get("/tasks")]
            found += [await client.post("/", json={"inputs": "a"}), await client.get("/tasks", headers=key)]
            return [response.status_code for response in found]

    try:
        assert asyncio.run(statuses()) == [200, 200, 401, 401, 200]
    finally:
        service.close()
