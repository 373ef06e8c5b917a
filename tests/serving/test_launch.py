"""launch/serve.py: its flags, what it prints, and how it ends."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from lm.config.paths import named_models
from lm.errors import InputError
from lm.serving.server import serve
from lm.serving.settings import Settings, keep_programs, read_keys

ROOT = Path(__file__).parent.parent.parent


def test_it_serves_until_sigterm(workdirs):
    command = [sys.executable, "launch/serve.py", f"--checkpoint={workdirs['reader']}", "--port=0", "--tasks=embed"]
    process = subprocess.Popen([*command, "--drain_seconds=0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:")
        url = line.split()[-1]
        assert len(httpx.post(f"{url}/embed", json={"inputs": ["a", "b"]}, timeout=60).json()) == 2
        assert httpx.post(f"{url}/tasks/fill-mask", json={"inputs": ["[MASK]"]}).status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_models_are_named_by_the_flag_or_by_their_folder():
    assert named_models("runs/mine/") == [("mine", "runs/mine/")]
    assert named_models("gs://b/runs/mine/checkpoints/3") == [("mine", "gs://b/runs/mine/checkpoints/3")]
    assert named_models("a=x,b=s3://y/z") == [("a", "x"), ("b", "s3://y/z")]
    assert named_models("runs/lr=1e-4,a=runs/lr=1") == [("lr=1e-4", "runs/lr=1e-4"), ("a", "runs/lr=1")]


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("one\n\n two \n")
    monkeypatch.delenv("LM_API_KEYS", raising=False)
    assert read_keys("") == ()
    monkeypatch.setenv("LM_API_KEYS", "three,,four")
    assert read_keys(str(tmp_path / "keys")) == ("one", "two", "three", "four")


@pytest.mark.parametrize("value", ["", ",", " , "])
def test_a_variable_without_a_key_opens_no_server(value, tmp_path, monkeypatch):
    monkeypatch.setenv("LM_API_KEYS", value)
    with pytest.raises(InputError, match="LM_API_KEYS is set, but has no key"):
        read_keys("")
    (tmp_path / "keys").write_text("one")
    with pytest.raises(InputError, match="LM_API_KEYS is set, but has no key"):
        read_keys(str(tmp_path / "keys"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda path: named_models("a=x,a=y"), "two models named 'a'"),
        (lambda path: named_models("=x"), "accepted: PATH"),
        (lambda path: read_keys(f"{path}/none"), "cannot be read"),
        (lambda path: keep_programs("/proc/none"), "--compilation_cache is '/proc/none': No such file"),
        (lambda path: Settings(cors_origins=("foo",)), "--cors_origins has 'foo'; accepted: origins such as"),
        (lambda path: Settings.of({"beams": ["0"], "tasks": [], "cors_origins": []}, ()), "numbers from 1 on"),
        (lambda path: serve([("a", f"{path}/none")], Settings(), "127.0.0.1", 0), "has no config.json"),
        (lambda path: serve([("a", str(path))], Settings(), "192.0.2.1", 0), "choose another"),
    ],
    ids=range(8),
)
def test_wrong_settings_are_named(call, words, tmp_path):
    with pytest.raises(InputError, match=words):
        call(tmp_path)


def test_tasks_that_a_model_cannot_do(workdirs):
    with pytest.raises(InputError, match=r"can do fill-mask, .*, and --tasks has generate"):
        serve([("a", workdirs["reader"])], Settings(tasks=("generate",)), "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tasks": ("embed", "sing")}, "--tasks has 'sing'; accepted: fill-mask"),
        ({"slots": 0}, "--slots is 0; accepted: a number from 1 on"),
        ({"watch_seconds": -1.0}, "--watch_seconds is -1.0"),
        ({"deadline": float("inf")}, "--deadline is inf"),
        ({"deadline": float("nan")}, "--deadline is nan"),
    ],
    ids=str,
)
def test_settings_without_meaning_are_refused_before_a_model_is_read(wrong: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        Settings(**wrong)
