"""/openapi.json: the routes, described by the schemas that check their requests."""

import re
from collections.abc import Sequence

from lm import __version__
from lm.serving.routes import Endpoint

_ERRORS = {
    "400": "The request is wrong.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model or task.",
    "413": "The request is larger than this server ever takes.",
    "422": "A field is wrong.",
    "424": "The computation failed, or the model cannot do it.",
    "429": "The queue is full; Retry-After says when to try again.",
    "500": "The server failed.",
    "503": "The server is not ready, or stops.",
    "504": "The answer was not ready in time.",
}


def describe(endpoints: Sequence[Endpoint], with_keys: bool) -> dict[str, object]:
    """Returns the OpenAPI description of the routes."""
    paths: dict[str, dict[str, object]] = {}
    for endpoint in endpoints:
        operation: dict[str, object] = {
            "summary": endpoint.summary,
            "operationId": endpoint.method.lower() + re.sub(r"\W+", "_", endpoint.path).rstrip("_"),
            "responses": {"200": {"description": "The answer.", "content": _json(endpoint.answer)}}
            | {status: {"description": text, "content": _json({"type": "object"})} for status, text in _ERRORS.items()},
        }
        if endpoint.request is not None:
            operation["requestBody"] = {"required": True, "content": _json(endpoint.request)}
        if names := re.findall(r"\{(\w+)\}", endpoint.path):
            operation["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
            ]
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    found: dict[str, object] = {
        "openapi": "3.1.0",
        "info": {"title": "lm", "version": __version__},
        "paths": paths,
    }
    if with_keys:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"key": []}]
    return found


def _json(schema: object) -> dict[str, object]:
    return {"application/json": {"schema": schema}}
