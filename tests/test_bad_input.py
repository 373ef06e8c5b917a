"""Wrong input to a launch script gives one clear line and exit code 2, and leaves no partial files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lm import config as config_lib
from tests.training.conftest import changed, tiny_config  # noqa: F401

ROOT = Path(__file__).parent.parent


@pytest.fixture
def config_file(tiny_config, tmp_path) -> str:  # noqa: F811
    """The tiny config as a file, its store not yet made."""
    config = changed(tiny_config, data={"store": ""}, train={"steps": 1})
    values = json.loads(config_lib.to_json(config))
    path = tmp_path / "tiny.py"
    path.write_text(f"from lm import config\n\ndef get_config():\n    return config.from_dict({values!r})\n")
    return str(path)


def launch(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch" / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def assert_refused(result: subprocess.CompletedProcess, *fragments: str) -> None:
    """Exit code 2 and a single line on stderr that names what is wrong, after what a slow start says."""
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("loading ")]
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("error: ")
    for fragment in fragments:
        assert fragment in errors[0]


def corpus_cases(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Name -> (overrides, what the error must say)."""
    (folder / "empty.txt").write_text("\n\n")
    (folder / "bad.jsonl").write_text('{"text": "one"}\n{"body": "two"}\n')
    (folder / "latin.txt").write_bytes("first line\nse\xf1or\n".encode("latin-1"))
    source = "--config.data.source="
    path = f"--config.data.path={folder}/"
    return {
        "missing corpus": ([path + "nowhere.txt"], ["nowhere.txt"]),
        "empty corpus": ([path + "empty.txt"], ["empty.txt", "no document"]),
        "JSON line without the field": ([source + "jsonl", path + "bad.jsonl"], ["bad.jsonl", "2", "'text'"]),
        "invalid UTF-8": ([path + "latin.txt"], ["latin.txt", "2", "UTF-8"]),
        "unknown config field": (["--config.model.layers=3"], ["model.layers", "model.num_layers"]),
        "batch not divisible by the mesh": (["--config.data.batch_size=12"], ["12", "8", "nearest: 8 or 16"]),
        "mesh larger than the machine": (["--config.mesh.fsdp=16"], ["8"]),
        "contradiction": (["--config.model.pooler=false"], ["objective.nsp", "model.pooler"]),
    }


CASES = [
    "missing corpus",
    "empty corpus",
    "JSON line without the field",
    "invalid UTF-8",
    "unknown config field",
    "batch not divisible by the mesh",
    "mesh larger than the machine",
    "contradiction",
]


@pytest.mark.parametrize("case", CASES)
def test_training_refuses(config_file, tmp_path, case):
    overrides, fragments = corpus_cases(tmp_path)[case]
    workdir = tmp_path / "run"
    result = launch("train.py", f"--config={config_file}", f"--workdir={workdir}", *overrides)
    assert_refused(result, *fragments)
    assert not (workdir / "config.json").exists()  # the directory is not claimed: the corrected command may use it
    assert not (workdir / "store" / "manifest.json").exists()


def test_a_store_with_another_tokenizer_is_refused(tiny_config, config_file, tmp_path):  # noqa: F811
    """The store of one tokenizer, the config of another."""
    other = tmp_path / "other.model"
    from lm.tokenizers.sentencepiece_tokenizer import SentencePiece

    other.write_bytes(SentencePiece.train(["a b c d", "e f g h"] * 20, vocab_size=400).to_bytes())
    result = launch(
        "train.py",
        f"--config={config_file}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.store={tiny_config.data.store}",
        f"--config.data.tokenizer={other}",
    )
    assert_refused(result, tiny_config.data.store, "tokenizer")


@pytest.mark.parametrize("script", ["evaluate.py", "predict.py"])
def test_a_checkpoint_that_is_not_there_is_refused(tmp_path, script):
    task = ["--task=embed"] if script == "predict.py" else []
    assert_refused(launch(script, f"--checkpoint={tmp_path}", *task), str(tmp_path), "config.json")
