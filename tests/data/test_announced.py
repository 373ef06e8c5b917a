"""Work that takes long is announced within a second."""

import sys
import threading

import pytest

from lm.data import workers


def test_what_takes_long_is_announced(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert workers._ANNOUNCED_AFTER < 1
    said = threading.Event()
    monkeypatch.setattr("builtins.print", lambda *words, **_: (sys.stderr.write(words[0]), said.set()))
    with workers.announced("quick work"):
        pass
    monkeypatch.setattr(workers, "_ANNOUNCED_AFTER", 0.0)
    with workers.announced("reading the corpus"):
        assert said.wait(timeout=30)
    with workers.announced("silent work", enabled=False):
        pass
    assert capfd.readouterr().err == "reading the corpus"
