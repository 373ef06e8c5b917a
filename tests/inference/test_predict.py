"""Answers equal what the model computes for each request alone; bad requests do not stop the others."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import models
from lm.errors import InputError
from lm.inference.predict import Predictor
from lm.training import loop
from tests.training.conftest import changed, tiny_config  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workdir(tiny_config, tmp_path_factory) -> str:  # noqa: F811
    path = str(tmp_path_factory.mktemp("trained") / "run")
    loop.train(changed(tiny_config, train={"steps": 2}), path)
    return path


@pytest.fixture(scope="module")
def predictor(workdir) -> Predictor:
    return Predictor.load(workdir)


def hidden_alone(predictor: Predictor, ids: list[int], types: list[int]):
    """The encoder on one unpadded row."""
    model = models.build(predictor.config.model)
    row = lambda values: jnp.asarray([values], jnp.int32)  # noqa: E731
    rows = row(ids), row([1] * len(ids)), row(range(len(ids))), row(types)
    compute = jax.jit(lambda params, *rows: model.merge(params)(*rows))
    return model.merge(predictor._params), compute(predictor._params, *rows)


def test_fill_mask_is_the_softmax_at_each_mask(predictor):
    text = "the [MASK] walks over the [MASK]."
    (answer,) = predictor.fill_mask([text], top=3)
    tokens = predictor.tokenizer
    ids = [tokens.special.cls, *tokens.encode_with_masks(text), tokens.special.sep]
    model, hidden = hidden_alone(predictor, ids, [0] * len(ids))
    at = [i for i, token in enumerate(ids) if token == tokens.special.mask]
    logits = np.asarray(model.mlm_logits(hidden, jnp.asarray([at])), np.float64)[0, :, : tokens.vocab_size]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert len(answer["masks"]) == 2
    for candidates, expected in zip(answer["masks"], probabilities, strict=True):
        best = np.sort(expected)[::-1][:3]
        np.testing.assert_allclose([c["probability"] for c in candidates], best, rtol=1e-4)
        assert candidates[0]["token"] == tokens.id_to_piece(int(expected.argmax()))


def test_embeddings_do_not_depend_on_the_batch(predictor):
    texts = ["river.", "the old stone house over the water.", "你好 世界", *["tree " * n for n in (1, 2, 5, 14, 40)]]
    together = [answer["embedding"] for answer in predictor.embed(texts)]
    for text, vector in zip(texts, together, strict=True):
        special = predictor.tokenizer.special
        ids = [special.cls, *predictor.tokenizer.encode([text])[0], special.sep][:32]
        ids[-1] = special.sep
        _, hidden = hidden_alone(predictor, ids, [0] * len(ids))
        np.testing.assert_allclose(vector, np.asarray(hidden[0]).mean(axis=0), atol=2e-5)


def test_cls_and_normalized_embeddings(predictor):
    (plain,), (unit,) = predictor.embed(["river"], pooling="cls"), predictor.embed(["river"], "cls", normalize=True)
    vector = np.array(plain["embedding"])
    np.testing.assert_allclose(unit["embedding"], vector / np.linalg.norm(vector), rtol=1e-5)


def test_next_sentence_is_the_heads_first_class(predictor):
    pair = {"text": "the river.", "text_pair": "old stone."}
    (answer,) = predictor.next_sentence([pair])
    special = predictor.tokenizer.special
    first, second = predictor.tokenizer.encode([pair["text"], pair["text_pair"]])
    ids = [special.cls, *first, special.sep, *second, special.sep]
    types = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    model, hidden = hidden_alone(predictor, ids, types)
    logits = np.asarray(model.nsp_logits(hidden, jnp.zeros((1, 1), jnp.int32)))[0, 0]
    assert answer["is_next"] == pytest.approx(1 / (1 + np.exp(logits[1] - logits[0])), abs=1e-5)


def test_a_bad_request_gets_an_error_and_the_rest_go_on(predictor):
    good = "the [MASK]."
    requests = [good, "no mask here", "", None, {"text": 3}, {"text": good, "text_pair": ["x"]}, good]
    answers = list(predictor.fill_mask(requests))
    assert ["error" in answer for answer in answers] == [False, True, True, True, True, True, False]
    assert answers[0] == answers[-1]


def test_long_input_is_cut_and_says_so(predictor):
    (answer,) = predictor.embed(["the river " * 100])
    assert answer["truncated"] is True
    (answer,) = predictor.fill_mask(["the river " * 100 + "[MASK]"])
    assert "32 tokens" in answer["error"]
    row = predictor._row({"text": "river " * 100, "text_pair": "house " * 3})
    assert len(row.tokens) == 32
    assert (row.types == 1).sum() > 3  # the shorter text is whole


def test_a_model_without_the_head_is_refused(predictor):
    config = changed(predictor.config, model={"pooler": False}, objective={"nsp": False})
    other = Predictor(config, predictor._params, predictor.tokenizer)
    with pytest.raises(InputError, match="no next-sentence head"):
        other.next_sentence(["x"])


def test_the_script_reads_lines_and_writes_lines(workdir, tmp_path):
    source, target = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_bytes(b"the [MASK].\n{broken\n" + b"\xff\xfe\n" + '{"text": "你好[MASK]"}'.encode())
    command = [sys.executable, str(ROOT / "launch/predict.py"), f"--checkpoint={workdir}", "--task=fill-mask"]
    result = subprocess.run([*command, f"--input={source}", f"--output={target}"], cwd=ROOT, check=False)
    assert result.returncode == 0
    answers = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    assert ["error" in answer for answer in answers] == [False, True, True, False]
