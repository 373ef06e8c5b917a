"""What the schemas accept, and what a refusal says."""

import json

import pytest

from lm.serving import schema
from lm.serving.refusals import Refusal
from lm.serving.schema import boolean, choice, either, fields, inputs, integer, number, optional, several, text

BODY = fields(
    {"input": inputs(3, least_text=1)},
    {
        "n": optional(integer(1, 8)),
        "rate": number(0, 2, default=1.0),
        "kind": choice("a", "b", default="a"),
        "flag": boolean(default=False),
        "stop": optional(either(text(1), several(text(1), most=4))),
    },
)


@pytest.mark.parametrize("given", ["a text", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_defaults_are_filled_in(given):
    found = schema.check(BODY, {"input": given, "n": 2.0})
    assert found == {"input": given, "n": 2, "rate": 1.0, "kind": "a", "flag": False, "stop": None}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], ["the body is a list", "an object"]),
        ({}, ["input is missing", "a text, or a list of 1 to 3 texts"]),
        ({"input": ""}, ["input is empty"]),
        ({"input": []}, ["input is a list of 0"]),
        ({"input": ["a"] * 4}, ["input is a list of 4", "at most 3"]),
        ({"input": ["a", 1]}, ["input[1] is a whole number"]),
        ({"input": [[1], []]}, ["input[1] is a list of 0"]),
        ({"input": [-1]}, ["input[0] is -1", "at least 0"]),
        ({"input": None}, ["input is null"]),
        ({"input": "a", "n": 0}, ["n is 0", "at least 1"]),
        ({"input": "a", "n": True}, ["n is true or false"]),
        ({"input": "a", "n": 1.5}, ["n is a number", "a whole number"]),
        ({"input": "a", "n": 10**400}, ["n is too large"]),
        ({"input": "a", "rate": "1"}, ["rate is a string", "a number (at least 0, at most 2)"]),
        ({"input": "a", "kind": "c"}, ["kind is 'c'", '"a", "b"']),
        ({"input": "a", "kind": "c" * 99}, ["kind is a string"]),
        ({"input": "a", "stop": ["b"] * 5}, ["stop is a list of 5"]),
        ({"input": "a", "more": 1}, ["unknown field 'more'", "input, n, rate"]),
    ],
    ids=str,
)
def test_a_refusal_names_the_field_and_what_is_accepted(body, words):
    with pytest.raises(Refusal) as caught:
        schema.check(BODY, body)
    assert [word for word in words if word not in str(caught.value)] == []
    assert caught.value.kind == "invalid"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"a": 1} 2', '{"a": "ö"}'.encode("latin-1")], ids=repr
)
def test_what_is_no_json_is_refused(body):
    with pytest.raises(Refusal, match="the body is"):
        schema.parse(body)


def test_a_name_that_is_nearly_the_missing_one_is_said():
    with pytest.raises(Refusal, match="inputs is missing, and there is 'input'; accepted: a string"):
        schema.check(schema.fields({"inputs": schema.text()}, strict=False), {"input": "a"})


def test_a_text_of_a_user_is_not_repeated():
    with pytest.raises(Refusal) as caught:
        schema.check(BODY, {"input": "a", "kind": "my secret sentence, which is longer than a name"})
    assert "secret" not in str(caught.value)


def test_lone_surrogates_are_json():
    assert schema.parse(json.dumps({"a": "\ud800"}).encode()) == {"a": "\ud800"}
