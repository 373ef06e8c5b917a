"""Hundreds of random requests, made from /openapi.json: none makes the server fail, and none leaves anything behind."""

import json
import random
from typing import Any

import pytest

from tests.serving.conftest import Running

SEED, REQUESTS = 11, 250
STRINGS = [
    "",
    " ",
    "the tree",
    "[MASK] tree",
    "a" * 300,
    "\ud800",
    "\x00",
    "😀\u202e",
    "你好世界",
    "model",
    "0",
    "null",
]
NUMBERS = [0, 1, -1, 2, 3.5, 1e-9, 1e308, -0.0, 2**31, 2**63, 10**30, True]


def anything(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value of any type."""
    kind = rng.randrange(4 if depth > 2 else 6)
    if kind == 0:
        return rng.choice(STRINGS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind < 4:
        return rng.choice([None, True, False])
    if kind == 4:
        return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(["inputs", "model", "text", "x"]): anything(rng, depth + 1) for _ in range(rng.randrange(3))}


def fitting(schema: dict[str, Any], rng: random.Random) -> Any:
    """A value that fits a schema, or now and then does not."""
    if rng.random() < 0.03:
        return anything(rng)
    if "anyOf" in schema:
        return fitting(rng.choice(schema["anyOf"]), rng)
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema.get("type"):
        case "string":
            return rng.choice(STRINGS[2:] if schema.get("minLength") else STRINGS)
        case "integer":
            least, most = schema.get("minimum", -5), min(schema.get("maximum", 40), 40)
            return rng.choice([least, most, rng.randint(min(least, most), most)])
        case "number":
            return rng.choice([schema.get("minimum", 0.1), schema.get("maximum", 2.0), 0.5])
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case "array":
            return [fitting(schema.get("items", {}), rng) for _ in range(rng.choice([1, 1, 2, 3]))]
        case "object":
            found, required = {}, schema.get("required", [])
            for name, inner in schema.get("properties", {}).items():
                if rng.random() < (0.97 if name in required else 0.15):
                    found[name] = fitting(inner, rng)
            if rng.random() < 0.02:
                found["unknown"] = 1
            return found
    return anything(rng)


def bodies(running: Running) -> dict[str, dict[str, Any]]:
    """The schema of the request of each route."""
    paths = running.client.get("/openapi.json").json()["paths"]
    return {
        path: each["post"]["requestBody"]["content"]["application/json"]["schema"]
        for path, each in paths.items()
        if "post" in each
    }


def test_the_routes_are_described(running: Running):
    found = bodies(running)
    assert {"/v1/embeddings", "/v1/completions", "/v1/chat/completions", "/embed", "/tasks/{task}", "/"} <= found.keys()
    for schema in found.values():
        assert schema["type"] == "object"
        assert set(schema.get("required", [])) <= schema["properties"].keys()


@pytest.mark.parametrize("part", range(2))
def test_no_request_makes_the_server_fail(running: Running, part):
    rng, schemas, statuses = random.Random(SEED + part), bodies(running), {}
    tasks = ["fill-mask", "next-sentence", "embed", "generate", "translate", "answer", "nothing"]
    for _ in range(REQUESTS):
        template = rng.choice(list(schemas))
        path, body = template.replace("{task}", rng.choice(tasks)), fitting(schemas[template], rng)
        if isinstance(body, dict):
            body.update({name: 6 for name in ("max_tokens", "max_length") if name in schemas[template]["properties"]})
        response = running.client.post(path, content=json.dumps(body))
        status = response.status_code
        assert status < 500, (path, body, response.text)
        if "event-stream" not in response.headers["content-type"]:
            assert status == 200 or response.json()["error"], (path, body)
        statuses[status] = statuses.get(status, 0) + 1
    assert statuses[200] > REQUESTS / 5
    assert sum(statuses.values()) - statuses[200] > REQUESTS / 10
