"""A model of every architecture loads on one device and on a mesh, and gives the same answers on both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from etils import epath

import lm
from lm import checkpoint, models, sharding
from lm.config import MeshConfig
from lm.data.sentence_encoder import Normalize, SentenceEncoder
from lm.data.store import Store
from lm.errors import InputError
from lm.inference.load import load
from tests.inference.conftest import make_workdir
from tests.weights import random_params

ROOT = Path(__file__).parents[2]
MESH = MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def encoder_workdir(tiny_config, tmp_path_factory) -> str:
    tokenizer = Store.open(tiny_config.data.store).tokenizer
    params = random_params(models.build(tiny_config.model))
    return make_workdir(tmp_path_factory.mktemp("encoder"), tiny_config, tokenizer, params)


def test_importing_lm_loads_no_jax():
    subprocess.run([sys.executable, "-c", "import lm, sys; assert 'jax' not in sys.modules"], check=True, cwd=ROOT)


def test_one_line_of_python_fills_a_mask(encoder_workdir):
    code = f"import lm; print(lm.load({encoder_workdir!r}).fill_mask(['the [MASK] of stone.'])[0]['masks'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("probability") == 5


def test_every_kind_of_model_is_read(encoder_workdir, pairs_workdir, decoder_workdir):
    for path, architecture in [
        (encoder_workdir, "encoder"),
        (f"{pairs_workdir}/checkpoints/0", "encoder-decoder"),
        (decoder_workdir, "decoder"),
    ]:
        loaded = load(path)
        assert loaded.config == checkpoint.read_config(loaded.workdir)
        assert loaded.config.model.architecture == architecture
        assert loaded.is_encoder == (architecture == "encoder")
        assert loaded.tokenizer.vocab_size > 105
        assert loaded.sentence_encoder == SentenceEncoder()
    with pytest.raises(InputError, match="has the steps 0"):
        load(f"{pairs_workdir}/checkpoints/7")


def test_pooling_is_that_of_the_workdir(encoder_workdir, tiny_config, tmp_path):
    loaded = load(encoder_workdir)
    workdir = make_workdir(tmp_path, tiny_config, loaded.tokenizer, loaded.params)
    pooling = {"mode": "cls", "normalize": True, "max_length": None}
    (epath.Path(workdir) / "pooling.json").write_text(json.dumps(pooling))
    assert load(workdir).sentence_encoder == SentenceEncoder(("cls",), steps=(Normalize(),))
    (vector,) = (answer["embedding"] for answer in lm.load(workdir).embed(["the river"]))
    (expected,) = (answer["embedding"] for answer in lm.load(encoder_workdir).embed(["the river"], "cls", True))
    np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_a_mesh_holds_the_parameters_and_answers_alike(encoder_workdir, pairs_workdir):
    mesh = sharding.make_mesh(MESH)
    texts = ["the river", "old stone", "tree " * 20]
    model, sharded = lm.load(encoder_workdir), lm.load(encoder_workdir, mesh)
    kernel = sharded.loaded.params["encoder"]["layers"]["mlp"]["up"]["kernel"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 4  # fsdp x tensor
    for found, expected in zip(sharded.embed(texts), model.embed(texts), strict=True):
        np.testing.assert_allclose(found["embedding"], expected["embedding"], atol=2e-5)
    model, sharded = lm.load(pairs_workdir), lm.load(pairs_workdir, mesh)
    ways: list[dict[str, Any]] = [{"num_beams": 2}, {"temperature": 1.0}]
    for options in ways:
        answers = [each.generate(texts, max_length=4, **options) for each in (sharded, model)]
        for found, expected in zip(*answers, strict=True):
            assert found["text"] == expected["text"]
            assert found["score"] == pytest.approx(expected["score"], abs=1e-4)


def test_a_mesh_that_does_not_divide_the_model_is_refused(encoder_workdir):
    mesh = sharding.make_mesh(MeshConfig(tensor=8))
    with pytest.raises(InputError, match=r"model\.num_heads is 4, which mesh tensor = 8 does not divide"):
        load(encoder_workdir, mesh)
