"""Checks JSON against the schemas that /openapi.json shows: one description of a request, for the code and its readers.

The schemas use a part of JSON Schema: type, enum, anyOf, items, properties, required, additionalProperties, default,
minimum, exclusiveMinimum, maximum, minLength, minItems and maxItems. A description takes the place of what a refusal
would say is accepted.
"""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from lm.errors import nearest
from lm.serving.refusals import Refusal

JSON = Any  # a value of a JSON text
Schema = Mapping[str, JSON]

_NAMES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


class _Misfit(Refusal):
    """A value does not fit a schema, though it may have the right type."""

    def __init__(self, message: str, path: str, has_right_type: bool):
        super().__init__("invalid", message, param=path)
        self.has_right_type = has_right_type


def parse(body: bytes) -> JSON:
    """Returns the value of a JSON text.

    Raises:
        Refusal: it is no JSON, or nested too deeply.
    """

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    if not body.strip():
        raise Refusal("invalid", "the body is empty; accepted: a JSON object.")
    try:
        return json.loads(body, parse_constant=constant)
    except RecursionError:
        raise Refusal("invalid", "the body is nested too deeply.") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is not UTF-8, or has NaN"
        raise Refusal("invalid", f"the body is not valid JSON ({reason}).") from None


def check(schema: Schema, value: JSON, path: str = "") -> JSON:
    """Returns the value, with defaults for the fields of objects that are missing.

    Raises:
        Refusal: it does not fit; names the field and what is accepted.
    """
    if "anyOf" in schema:
        return _check_any(schema, value, path)
    if "type" in schema and _kind(value) != schema["type"]:
        if schema["type"] == "number" and _kind(value) == "integer":
            pass
        elif schema["type"] == "integer" and isinstance(value, float) and value.is_integer():
            value = int(value)
        else:
            _refuse(path, _NAMES[_kind(value)], schema)
    if "enum" in schema and value not in schema["enum"]:
        shown = repr(value) if len(repr(value)) <= 40 else _NAMES[_kind(value)]
        _refuse(path, shown, schema)
    match value:
        case bool():
            return value
        case int() | float():
            return _check_number(schema, value, path)
        case str():
            if len(value) < schema.get("minLength", 0):
                _refuse(path, "empty", schema, True)
        case list():
            return _check_list(schema, value, path)
        case dict():
            return _check_object(schema, value, path)
    return value


def _check_any(schema: Schema, value: JSON, path: str) -> JSON:
    """Returns what the first fitting alternative makes of the value; else tells what the nearest one lacks."""
    nearest: _Misfit | None = None
    for alternative in schema["anyOf"]:
        try:
            return check(alternative, value, path)
        except _Misfit as error:
            is_near = error.has_right_type or error.param != path
            if is_near and (nearest is None or (error.has_right_type and not nearest.has_right_type)):
                nearest = error
    if nearest is not None:
        raise nearest
    _refuse(path, _NAMES[_kind(value)], schema)


def _check_number(schema: Schema, value: float, path: str) -> float:
    least, most = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    if abs(value) >= 1 << 64 if isinstance(value, int) else not math.isfinite(value):
        _refuse(path, "too large a number", schema, True)
    if (least is not None and value < least) or (most is not None and value > most):
        _refuse(path, str(value), schema, True)
    if above is not None and value <= above:
        _refuse(path, str(value), schema, True)
    return value


def _check_list(schema: Schema, value: list[JSON], path: str) -> list[JSON]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        _refuse(path, f"a list of {len(value)}", schema, True)
    items = schema.get("items")
    return value if items is None else [check(items, item, f"{path}[{i}]") for i, item in enumerate(value)]


def _check_object(schema: Schema, value: dict[str, JSON], path: str) -> dict[str, JSON]:
    fields: Mapping[str, Schema] = schema.get("properties", {})
    name = lambda field: f"{path}.{field}" if path else field  # noqa: E731
    if schema.get("additionalProperties") is False and (unknown := sorted(value.keys() - fields.keys())):
        extra = unknown[0][:40]
        raise _Misfit(f"unknown field {extra!r}; accepted: {', '.join(fields)}.", extra, True)
    for field in schema.get("required", ()):
        if field not in value:
            near = nearest(field, value.keys() - fields.keys(), 1)
            found = f", and there is {near[0][:40]!r}" if near else ""
            raise _Misfit(f"{name(field)} is missing{found}; accepted: {accepted(fields[field])}.", name(field), True)
    found = dict(value)
    for field, inner in fields.items():
        if field in value:
            found[field] = check(inner, value[field], name(field))
        elif "default" in inner:
            found[field] = inner["default"]
    return found


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def accepted(schema: Schema) -> str:
    """Returns in words what a schema accepts."""
    if "description" in schema:
        return schema["description"]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(accepted(alternative) for alternative in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"])
    text = _NAMES[schema["type"]] if "type" in schema else "any value"
    if schema.get("minLength"):
        text += " that is not empty"
    if "items" in schema:
        text += f", each {accepted(schema['items'])}"
    limits = [
        f"{words} {schema[key]}"
        for key, words in (
            ("minItems", "at least"),
            ("maxItems", "at most"),
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
        )
        if key in schema
    ]
    return " ".join([text, *([f"({', '.join(limits)})"] if limits else [])])


def _refuse(path: str, given: str, schema: Schema, has_right_type: bool = False) -> NoReturn:
    raise _Misfit(f"{path or 'the body'} is {given}; accepted: {accepted(schema)}.", path, has_right_type)


# ---- Shorthands, with which the routes describe their requests ------------------------------------


def text(least: int = 0, **more: JSON) -> Schema:
    return {"type": "string", **({"minLength": least} if least else {}), **more}


def integer(least: int | None = None, most: int | None = None, **more: JSON) -> Schema:
    return _number("integer", least, most, more)


def number(least: float | None = None, most: float | None = None, **more: JSON) -> Schema:
    return _number("number", least, most, more)


def _number(kind: str, least: float | None, most: float | None, more: Schema) -> Schema:
    limits = {name: value for name, value in (("minimum", least), ("maximum", most)) if value is not None}
    return {"type": kind, **limits, **more}


def boolean(**more: JSON) -> Schema:
    return {"type": "boolean", **more}


def choice(*values: object, **more: JSON) -> Schema:
    return {"enum": list(values), **more}


def several(items: Schema, least: int = 1, most: int | None = None, **more: JSON) -> Schema:
    return {"type": "array", "items": items, "minItems": least, **({"maxItems": most} if most else {}), **more}


def either(*schemas: Schema, **more: JSON) -> Schema:
    return {"anyOf": list(schemas), **more}


def optional(schema: Schema, **more: JSON) -> Schema:
    """Returns a schema that also accepts null, which is its default unless another is given."""
    return {"anyOf": [schema, {"type": "null"}], "default": None, **more}


def fields(
    required: Mapping[str, Schema], others: Mapping[str, Schema] = MappingProxyType({}), *, strict: bool = True
) -> Schema:
    """Returns the schema of an object. A strict one has no other fields."""
    closed = {"additionalProperties": False} if strict else {}
    properties = {**required, **others}
    return {"type": "object", "properties": properties, "required": list(required), **closed}


def inputs(most: int, least_text: int = 0) -> Schema:
    """Returns the schema of one text or token array, or of a list of them."""
    ids = several(integer(0, (1 << 31) - 1))
    what = f"a text, or a list of 1 to {most} texts; a text may also be a list of token ids"
    if least_text:
        what += ", and none may be empty"
    return either(
        text(least_text), several(text(least_text), most=most), ids, several(ids, most=most), description=what
    )
