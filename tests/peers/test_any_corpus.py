"""Corpora of other scripts go all the way: trained, resumed, evaluated, exported, and read by transformers."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import pipeline

import lm
from lm import families
from lm.config import CheckpointConfig, Config, DataConfig, ObjectiveConfig, OptimConfig, TrainConfig
from lm.huggingface import export_workdir
from lm.training import loop, perplexity
from tests.data.test_any_text import TEXTS

CORPORA = {"a Chinese book": ("Chinese", 1000), "200 Thai lines": ("Thai", 600), "mixed emoji": ("emoji", 420)}


def config_of(corpus: Path, vocab_size: int) -> Config:
    """A ModernBERT of one layer whose vocabulary is the tokenizer's; the same shapes for every corpus but the rows."""
    return Config(
        data=DataConfig(
            source="text",
            path=str(corpus),
            vocab_size=vocab_size,
            seq_length=64,
            batch_size=8,
            max_segments=4,
            heldout_fraction=0.1,
        ),
        model=families.modernbert(vocab_size=0, d_model=32, num_layers=1, num_heads=2, d_ff=32),
        objective=ObjectiveConfig(nsp=False, mask_rate=0.3),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=1),
        train=TrainConfig(steps=1, eval_batches=1),
        checkpoint=CheckpointConfig(every=1),
    )


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_goes_all_the_way(name: str, tmp_path: Path) -> None:
    kind, vocab_size = CORPORA[name]
    (tmp_path / "corpus.txt").write_text("\n\n".join(TEXTS[kind]), encoding="utf-8")
    config, run = config_of(tmp_path / "corpus.txt", vocab_size), str(tmp_path / "run")
    loop.train(config, run)
    loop.train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2)), run)
    found = perplexity.measure(run)
    assert found["step"] == 2
    assert found["predictions"] > 0
    assert 1 < found["mlm_perplexity"] < 10_000

    export_workdir(run, tmp_path / "hf")
    pieces = json.loads((tmp_path / "hf/config.json").read_text())["vocab_size"]
    assert pieces <= vocab_size
    ours = lm.load(run)
    theirs = pipeline("fill-mask", model=str(tmp_path / "hf"), top_k=5)
    assert theirs.tokenizer is not None
    for text in TEXTS[kind][:2]:
        text = text[:30] + "[MASK]" + text[31:50]
        (answer,) = ours.fill_mask([text])
        candidates = theirs(text.replace("[MASK]", str(theirs.tokenizer.mask_token)))
        expected = {each["token"]: each["score"] for each in candidates}
        ids = [ours.loaded.tokenizer.id_to_piece(index) for index in expected]
        assert [each["token"] for each in answer["masks"][0]] == ids
        probabilities = [each["probability"] for each in answer["masks"][0]]
        assert probabilities == pytest.approx(list(expected.values()), abs=1e-5)
