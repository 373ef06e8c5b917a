"""`~` and environment variables are replaced in every path that a user gives."""

import ast
import re
import sys
from pathlib import Path

import pytest
from etils import epath

from lm import checkpoint, storage
from lm.config import Config, DataConfig
from lm.config.paths import expand, split_step
from lm.data import corpus
from lm.errors import InputError
from lm.tokenizers import tokenizer as tokenizers

ROOT = Path(__file__).parent.parent


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, and a working directory beside it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BUCKET", "mine")
    monkeypatch.delenv("NOWHERE", raising=False)
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_a_path_is_expanded_as_in_a_shell(home: Path):
    assert expand("~/model") == f"{home}/model"
    assert expand("$HOME/a/${BUCKET}") == f"{home}/a/mine"
    assert expand("gs://$BUCKET/run") == "gs://mine/run"
    assert [expand(path) for path in ("-", "", "a/b$", "run~1", "price$1")] == ["-", "", "a/b$", "run~1", "price$1"]


def test_a_path_that_exists_is_taken_as_it_is_written(home: Path):
    (home.parent / "work" / "~draft").touch()
    assert expand("~draft") == "~draft"


@pytest.mark.parametrize(
    ("path", "message"),
    [("$NOWHERE/x", r"\$NOWHERE, but .* variable"), ("~no-such-user/x", "~no-such-user, but there is no such user")],
)
@pytest.mark.usefixtures("home")
def test_what_cannot_be_expanded_is_refused(path: str, message: str):
    with pytest.raises(InputError, match=message):
        expand(path)


def test_a_step_is_what_follows_checkpoints():
    for workdir in ("runs/mine", "gs://b/checkpoints/3/mine", "checkpoints/run"):
        assert split_step(workdir) == (workdir, "")
        assert split_step(f"{workdir}/checkpoints/12") == split_step(f"{workdir}/checkpoints/12/") == (workdir, "12")
    assert split_step("runs/checkpoints/last") == ("runs/checkpoints/last", "")


def test_paths_of_the_config_are_expanded(home: Path):
    (home / "a.txt").write_text("one")
    (home / "b.txt").write_text("two")
    assert list(corpus.documents(DataConfig(source="text", path="~/a.txt, $HOME/b.txt"))) == ["one", "two"]
    config = Config(data=DataConfig(store="~/store"))
    assert checkpoint.store_path(config, epath.Path(home)) == f"{home}/store"
    for read in (tokenizers.load_tokenizer, checkpoint.locate):  # of data.tokenizer and checkpoint.init_from
        with pytest.raises(InputError, match=re.escape(f"{home}/nothing")):
            read("~/nothing")


def test_every_flag_for_a_file_or_folder_is_a_path():
    paths = 0
    for script in [*(ROOT / "launch").rglob("*.py"), ROOT / "lm/cluster/flags.py"]:
        for node in ast.walk(ast.parse(script.read_text())):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            paths += name in ("define_path", "define_picture")
            if isinstance(node, ast.Call) and name == "DEFINE_string":
                help_ = ast.literal_eval(node.args[2])
                assert not re.search(r"\b([Ff]ile|[Ff]older|WORKDIR)\b", help_), f"{script}: {help_}"
    assert paths >= 15


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"])
def test_a_damaged_config_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is not valid JSON|config is list"):
        checkpoint.read_config(tmp_path)


def test_a_path_that_is_not_read_as_utf8_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Python would write its bytes in the encoding of the locale, and TensorStore those of UTF-8: two files."""
    storage.check_path("runs/运行")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "gbk")
    storage.check_path("runs/mine")
    for use in (storage.check_path, storage.as_path, storage.list_keys):
        with pytest.raises(InputError, match=r"/runs/运行' has characters .* gbk here.*; set PYTHONUTF8=1"):
            use("runs/运行")
