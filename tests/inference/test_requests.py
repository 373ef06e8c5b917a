"""Lines become requests, and each line can be read as soon as it is complete."""

import os
import threading

import pytest

from lm.inference.requests import RequestError, field, finite, parse, waiting_lines


def test_lines_that_are_no_request_are_none():
    lines = [b'\xef\xbb\xbf{"text": 1}\r\n', b"plain\r\n", b"{broken", b"\xff\xfe", b'{"a":' * 100_000]
    assert list(parse(lines)) == [{"text": 1}, "plain", None, None, None]


def test_a_field_is_a_string_that_is_not_empty():
    assert field("plain", "text") == field({"text": "plain"}, "text") == "plain"
    assert field({"text": "a \ud83d"}, "text") == "a ?"  # half a character
    assert field({}, "language", "") == field({"language": None}, "language", "") == ""
    for request, message in [
        (None, 'an object with the string "text"'),
        (3, 'an object with the string "text"'),
        ({"text": 3}, 'needs the string "text"'),
        ({"text": None}, 'needs the string "text"'),
        ({"other": "x"}, 'needs the string "text"'),
        (" ", "the text is empty"),
        *(
            (text, "the text is empty")
            for text in ("\u200b", "\ufeff\u200d \u2060", "\x00\n", "\u00ad", "\u3164\ufe0f")
        ),
    ]:
        with pytest.raises(RequestError, match=message):
            field(request, "text")
    with pytest.raises(RequestError, match='"question" is empty'):
        field({"question": " "}, "question")


def test_a_text_of_visible_and_zero_width_characters_is_kept_as_it_is():
    for text in ("a\u200bb", "\u0301", "\ufffd", "\u2764\ufe0f", "\U000e0041x"):
        assert field(text, "text") == text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_an_answer_that_is_not_finite_is_an_error(number):
    for answer in ({"embedding": [0.5, number]}, {"text": "x", "candidates": [{"text": "x", "score": number}]}):
        assert "is nan" in finite(answer)["error"] or "inf" in finite(answer)["error"]
    good = {"text": "nan", "score": -1.5, "masks": [[{"probability": 1.0}]], "truncated": True}
    assert finite(good) is good


def pipe():
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb"), os.fdopen(writer, "wb", buffering=0)


def test_a_line_of_a_pipe_is_given_before_the_next_is_written():
    reader, writer = pipe()
    with reader, writer:
        found = waiting_lines(reader, 10)
        for line in (b"first", b"second"):
            writer.write(line + b"\n")
            assert next(found) == [line]


def test_lines_that_wait_are_given_together_and_a_half_one_later():
    reader, writer = pipe()
    with reader, writer:
        found = waiting_lines(reader, 2)
        writer.write(b"a\n\nc\nbegun")
        assert next(found) == [b"a", b""]
        assert next(found) == [b"c"]
        timer = threading.Timer(0.05, writer.write, [b" and ended\nlast"])
        timer.start()
        assert next(found) == [b"begun and ended"]
        timer.join()
        writer.close()
        assert list(found) == [[b"last"]]


def test_a_file_is_given_in_full_lists(tmp_path):
    lines = [b"x" * 999 + str(n).encode() for n in range(250)]  # several blocks
    (path := tmp_path / "lines.txt").write_bytes(b"\n".join(lines) + b"\n")
    with path.open("rb") as file:
        found = list(waiting_lines(file, 100))
    assert [len(some) for some in found] == [100, 100, 50]
    assert [line for some in found for line in some] == lines
    (path := tmp_path / "empty.txt").write_bytes(b"")
    with path.open("rb") as file:
        assert list(waiting_lines(file, 100)) == []
