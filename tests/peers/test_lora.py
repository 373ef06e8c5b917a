"""transformers reads the export of a run with adapters, and computes what the merged model does."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import transformers
from etils import epath

from lm import checkpoint, families, models
from lm.config import CheckpointConfig, OptimConfig
from lm.huggingface import export_folder, export_workdir, import_workdir
from lm.inference.load import load
from lm.training import adapters
from tests.weights import random_params

pytestmark = pytest.mark.peers

BERT = families.bert(vocab_size=64, d_model=16, num_layers=2, num_heads=2, d_ff=24, max_length=32)
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map("piece{}".format, range(59))]


def test_an_export_is_the_merged_model(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    export_folder(tmp_path / "bert", BERT, random_params(models.build(BERT)), tokenizer=[tmp_path / "vocab.txt"])
    base, run = epath.Path(tmp_path / "base"), epath.Path(tmp_path / "run")
    import_workdir(tmp_path / "bert", base)
    optim = OptimConfig(lora_rank=2, lora_targets=".*/layers/.*kernel")
    config = dataclasses.replace(checkpoint.read_config(base), optim=optim)
    partition = functools.partial(adapters.partition, config=optim)
    saved = checkpoint.Checkpoints(run, CheckpointConfig(asynchronous=False), partition)
    saved.save(1, {"params": random_params(adapters.adapted(models.build(config.model), optim)), "step": np.int32(1)})
    saved.close()
    name = load(str(base)).tokenizer.file_name
    (run / name).write_bytes((base / name).read_bytes())
    checkpoint.write_config(run, config)

    export_workdir(str(run), tmp_path / "exported")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "exported").eval()
    tokens = np.random.default_rng(0).integers(5, 64, (2, 10), np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).prediction_logits.numpy()
    module = models.build(config.model).merge(load(str(run)).params)
    ones, positions = np.ones_like(tokens), np.broadcast_to(np.arange(10, dtype=np.int32), tokens.shape)
    hidden = module(tokens, ones, positions, np.zeros_like(tokens))
    np.testing.assert_allclose(module.mlm_logits(hidden, positions), expected, atol=1e-5, rtol=1e-5)
    plain = models.build(config.model).merge(load(str(base)).params)
    assert np.abs(plain(tokens, ones, positions, np.zeros_like(tokens)) - hidden).max() > 0.1
