"""A file of answers belongs to one command, is not the file of the requests, and is kept until there is an answer."""

import types
from pathlib import Path
from typing import Any

import pytest

from lm.errors import InputError
from lm.inference import output


def flag(name: str, path: Path | str) -> Any:
    return types.SimpleNamespace(name=name, value=str(path))


def test_the_old_answers_stay_until_the_first_new_one(tmp_path: Path) -> None:
    target, source = tmp_path / "out.jsonl", flag("input", "-")
    target.write_text("old\n")
    with pytest.raises(KeyboardInterrupt), output.opened(flag("output", target), source):
        raise KeyboardInterrupt
    assert target.read_text() == "old\n"
    with output.opened(flag("output", target), source) as out:
        out.write([{"text": "好"}])
        out.write([{"text": "b"}])
    assert target.read_text(encoding="utf-8") == '{"text": "好"}\n{"text": "b"}\n'
    with output.opened(flag("output", target), source):
        pass  # there was no request
    assert target.read_text() == ""


def test_two_commands_do_not_write_to_one_file(tmp_path: Path) -> None:
    target = flag("output", tmp_path / "out.jsonl")
    with output.opened(target, flag("input", "-")) as out:
        out.write([{"text": "a"}])
        with pytest.raises(InputError, match="another command writes to"), output.opened(target, flag("input", "-")):
            pass
    assert (tmp_path / "out.jsonl").read_text() == '{"text": "a"}\n'


def test_the_requests_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a")
    (tmp_path / "link").symlink_to("in.txt")
    with (
        pytest.raises(InputError, match="--output and --input are both"),
        output.opened(flag("output", tmp_path / "link"), flag("input", tmp_path / "in.txt")),
    ):
        pass
    assert (tmp_path / "in.txt").read_text() == "a"


def test_stdout_is_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    with output.opened(flag("output", "-"), flag("input", "-")) as out:
        out.write([{"text": "a"}])
    assert capsys.readouterr().out == '{"text": "a"}\n'
