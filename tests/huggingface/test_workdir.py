"""launch/convert.py converts a Hugging Face folder to a working directory and back."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm import checkpoint, families, models
from lm.data import sentence_encoder
from lm.data.sentence_encoder import SentenceEncoder
from lm.errors import InputError
from lm.huggingface import export_folder, export_workdir, import_folder, import_workdir
from lm.huggingface.tokenizer import read_tokenizer
from lm.inference.load import load
from lm.inference.predict import READING, Predictor
from lm.inference.prompts import Embed
from lm.inference.requests import RequestError
from lm.tasks import heads
from lm.tokenizers.tokenizer import load_tokenizer
from tests.weights import random_params

ROOT = Path(__file__).parents[2]
CONFIG = families.bert(vocab_size=400, d_model=16, num_layers=2, num_heads=2, d_ff=24, max_length=32)
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Hello", "world", "##s", *map("piece{}".format, range(392))]


WRITTEN = """{}: 2 layers, vocabulary 400
embeddings as the folder says: pooling cls, at most 24 tokens, similarity cosine
"""


@pytest.fixture
def folder(tmp_path):
    """A cased BERT with WordPiece, which pools as a sentence encoder."""
    folder = tmp_path / "bert"
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    files = [tmp_path / "vocab.txt", tmp_path / "tokenizer_config.json"]
    export_folder(folder, CONFIG, random_params(models.build(CONFIG)), tokenizer=files)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    (folder / "modules.json").write_text(
        '[{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "1_Pooling"}]'
    )
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24}')
    return folder


def convert(*flags):
    command = [sys.executable, ROOT / "launch/convert.py", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_there_and_back(folder, tmp_path):
    done = convert(f"--from_huggingface={folder}", f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stdout) == (0, WRITTEN.format(tmp_path / "run"))
    config = checkpoint.read_config(tmp_path / "run")
    assert (config.model, config.data.seq_length, config.data.vocab_size) == (CONFIG, 24, 400)
    assert sentence_encoder.read(str(tmp_path / "run")) == SentenceEncoder(("cls",), max_length=24)

    done = convert(f"--checkpoint={tmp_path / 'run'}", f"--to_huggingface={tmp_path / 'back'}")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'back'}: written\n")
    there, back = import_folder(folder), import_folder(tmp_path / "back")
    assert there.config == back.config
    assert there.sentence_encoder == back.sentence_encoder
    jax.tree.map(np.testing.assert_array_equal, there.params, back.params)
    assert json.loads((tmp_path / "back/config.json").read_text())["sep_token_id"] == 3


def test_the_case_of_a_word_piece_vocabulary_is_kept(folder, tmp_path):
    import_workdir(folder, tmp_path / "run")
    vocabulary = json.loads((tmp_path / "run/tokenizer.json").read_text())
    assert vocabulary["normalizer"]["lowercase"] is False


def test_wrong_combinations_of_flags_are_refused(folder):
    done = convert(f"--from_huggingface={folder}", "--to_huggingface=elsewhere")
    assert done.returncode == 2
    assert "given: --from_huggingface, --to_huggingface; accepted: --from_huggingface with --workdir" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_working_directory_in_use_is_left_alone(folder, tmp_path):
    import_workdir(folder, tmp_path / "run")
    with pytest.raises(InputError, match=r"already holds a config.json; choose a new --workdir"):
        import_workdir(folder, tmp_path / "run")


def test_an_interrupted_import_is_not_repeated_over_its_checkpoint(folder, tmp_path):
    import_workdir(folder, tmp_path / "run")
    (tmp_path / "run/config.json").unlink()  # which is written last
    with pytest.raises(InputError, match=r"has checkpoints but no config.json, as an interrupted import leaves it"):
        import_workdir(folder, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize(
    "remote", ["gs://bucket/x", "s3://bucket/x", "gs:/bucket/x", Path("s3://bucket/x"), "hf://a/b"]
)
def test_a_hugging_face_folder_is_local(folder, remote, tmp_path, monkeypatch):
    """Nothing is read or written first: there is no checkpoint to export."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    for convert_one in (import_folder, lambda remote: import_workdir(remote, "run")):
        with pytest.raises(InputError, match=r"is in object storage; accepted|one slash after|unknown scheme"):
            convert_one(remote)
    for export in (lambda remote: export_workdir("absent", remote), lambda remote: export_folder(remote, CONFIG, {})):
        with pytest.raises(InputError, match=r"is in object storage; accepted|one slash after|unknown scheme"):
            export(remote)
    assert sorted(tmp_path.iterdir()) == before


def test_a_token_without_a_row_is_an_error_of_its_request(folder, tmp_path):
    """The tokenizer has one piece more than the model has embeddings, as those of BART for summaries."""
    (folder / "vocab.txt").write_text("\n".join([*PIECES, "more"]))
    import_workdir(folder, tmp_path / "run", vocab_multiple=128)
    config, tokenizer = checkpoint.read_config(tmp_path / "run"), load_tokenizer(str(tmp_path / "run"))
    assert (config.model.vocab_size, config.data.vocab_size, tokenizer.vocab_size) == (512, 400, 401)
    prompt = Embed(tokenizer, longest=24)
    assert prompt.row("Hello worlds").tokens.tolist() == [2, 5, 6, 7, 3]
    with pytest.raises(RequestError, match=r"'more' with the id 400, but the model's table of embeddings has 400 rows"):
        prompt.row("Hello more")


def test_a_small_vocabulary_and_a_missing_mask_are_no_reason_to_refuse(folder, tmp_path):
    (folder / "vocab.txt").write_text("\n".join([*PIECES[:4], "A", "B"]))
    import_workdir(folder, tmp_path / "run")
    tokenizer = load_tokenizer(str(tmp_path / "run"))
    assert tokenizer.encode(["A B"])[0].tolist() == [4, 5]
    assert tokenizer.special.mask == 6  # added behind the vocabulary, as transformers adds it


@pytest.mark.parametrize(("side", "kept"), [("right", [5, 6, 6]), ("left", [6, 6, 7])])
def test_a_long_text_is_cut_on_the_side_that_the_tokenizer_names(folder, side, kept):
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "truncation_side": side}))
    prompt = Embed(read_tokenizer(folder), longest=5)
    row = prompt.row("Hello world worlds")
    assert (row.tokens.tolist(), row.truncated) == ([2, *kept, 3], True)
    pair = prompt.row({"text": "Hello worlds", "text_pair": "Hello"}).tokens.tolist()
    assert pair == [2, 5 if side == "right" else 7, 3, 5, 3]
    assert not Embed(prompt.tokenizer, longest=9).row("Hello world worlds").truncated


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    (folder / "vocab.txt").unlink()
    with pytest.raises(
        InputError, match=r"has no tokenizer: neither tokenizer.json nor vocab.txt, which BertTokenizer"
    ):
        import_workdir(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_export_has_the_family_and_the_ids_of_the_import(folder, tmp_path):
    settings = json.loads((folder / "config.json").read_text())
    ids = {"pad_token_id": 0, "eos_token_id": 7}
    (folder / "config.json").write_text(
        json.dumps({**settings, "model_type": "electra", "embedding_size": 16, "architectures": [], **ids})
    )
    weights = load_file(folder / "model.safetensors")
    named = {name.replace("bert.", "electra."): array for name, array in weights.items() if "pooler" not in name}
    save_file(named, folder / "model.safetensors")
    import_workdir(folder, tmp_path / "run")
    export_workdir(str(tmp_path / "run"), tmp_path / "back")
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert (back["model_type"], back["eos_token_id"]) == ("electra", 7)


@pytest.mark.parametrize(
    ("lacking", "kept"), [((), ("fill-mask", "next-sentence", "embed")), (("cls.", "bert.pooler."), ("embed",))]
)
def test_a_task_needs_a_head_that_was_trained(folder, tmp_path, lacking, kept):
    weights = load_file(folder / "model.safetensors")
    named = {name: array for name, array in weights.items() if not name.startswith(lacking)}
    save_file(named, folder / "model.safetensors")
    import_workdir(folder, tmp_path / "run")
    predictor = Predictor(load(str(tmp_path / "run")))
    assert tuple(task for task in READING if predictor.can(task)) == kept
    if lacking:
        with pytest.raises(InputError, match="'mlm', which the imported folder lacks"):
            predictor.fill_mask(["[MASK]"])
        assert heads.read_untrained(str(tmp_path / "run"), 1) == ()  # a run has trained them
