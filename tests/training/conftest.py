"""A corpus, its store and a config small enough to train in a test."""

import dataclasses
import random
from pathlib import Path

import pytest

from lm import families
from lm.config import CheckpointConfig, Config, DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, TrainConfig
from lm.data import prepare, store
from lm.data.store import Store

WORDS = ["the", "tree", "river", "stone", "walks", "sings", "under", "over", "quickly", "slowly", "green", "old"]
WORDS += ["light", "water", "house", "open", "door", "hand", "bird", "你好", "世界", "河流", "石头", "房子"]


def make_corpus(path: Path, documents: int = 60, seed: int = 0) -> Path:
    """Documents of a few sentences each, separated by blank lines."""
    rng = random.Random(seed)
    text = []
    for _ in range(documents):
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(3, 12))) + "." for _ in range(rng.randint(2, 12))]
        text.append("\n".join(sentences))
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A two-layer BERT over a prepared store; dropout is on."""
    folder = tmp_path_factory.mktemp("corpus")
    corpus = make_corpus(folder / "corpus.txt")
    data = DataConfig(
        source="text",
        path=str(corpus),
        store=str(folder / "store"),
        vocab_size=448,
        seq_length=32,
        batch_size=16,
        max_segments=4,
        heldout_fraction=0.1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "BLOCK_TOKENS", 200)  # so that a run may cut it into windows
        prepare.prepare(data, data.store, num_workers=1, progress=False)
    return Config(
        data=data,
        model=ModelConfig(vocab_size=448, d_model=32, num_layers=2, num_heads=4, d_ff=64, max_length=32),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2),
        train=TrainConfig(steps=12, log_every=1, eval_batches=2),
        checkpoint=CheckpointConfig(every=4, keep=2),
    )


@pytest.fixture(scope="session")
def tiny_seq2seq(tiny_config: Config) -> Config:
    """A T5 of two and two layers on spans of the same store; dropout is on."""
    rates = {"dropout": 0.1, "attention_dropout": 0.1, "mlp_dropout": 0.1}
    model = families.t5_1_1(vocab_size=448, d_model=64, num_layers=2, num_heads=8, d_ff=128, **rates)
    objective = ObjectiveConfig(name="span_corruption", z_loss=1e-4, label_smoothing=0.1)
    return dataclasses.replace(changed(tiny_config, data={"target_length": 16}), model=model, objective=objective)


@pytest.fixture(scope="session")
def tiny_store(tiny_config: Config) -> Store:
    return Store.open(tiny_config.data.store)


def changed(config: Config, **sections: dict) -> Config:
    """A copy of a config with fields of some sections replaced: `changed(config, train={"steps": 3})`."""
    new = {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
    return dataclasses.replace(config, **new)
