"""Work that takes long is announced within a second, and again while it goes on."""

import queue
import re

import pytest

from lm.data import workers


def test_what_takes_long_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers._ANNOUNCED_AFTER < 1
    said: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr("builtins.print", lambda *words, **_: said.put(words[0]))
    with workers.announced("quick work"):
        pass
    with workers.announced("work that is announced at once", at_once=True):
        assert said.get_nowait() == "work that is announced at once"
    monkeypatch.setattr(workers, "_ANNOUNCED_AFTER", 0.0)
    monkeypatch.setattr(workers, "_REPEATED_AFTER", 0.01)
    with workers.announced("silent work", enabled=False), workers.announced("reading the corpus"):
        assert said.get(timeout=30) == "reading the corpus"
        assert re.fullmatch(r"reading the corpus: \d+ s so far", said.get(timeout=30))
