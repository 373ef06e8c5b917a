"""A corpus of a few thousand words and its token store, made once."""

import random
from pathlib import Path

import numpy as np
import pytest

from lm.config import Config, DataConfig, MixtureConfig, ModelConfig, ObjectiveConfig, TaskConfig
from lm.data import prepare
from lm.data.store import Store

_ENGLISH = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "number",
    "night",
]
_CHINESE = "天地玄黄宇宙洪荒日月盈昃辰宿列张"


def make_documents(count: int, seed: int = 0) -> list[str]:
    """Documents of 1 to 12 sentences, one in ten Chinese."""
    random_ = random.Random(seed)
    documents = []
    for index in range(count):
        sentences = []
        for _ in range(random_.randint(1, 12)):
            if index % 10 == 9:
                sentences.append("".join(random_.choices(_CHINESE, k=random_.randint(4, 12))) + "。")
            else:
                sentences.append(" ".join(random_.choices(_ENGLISH, k=random_.randint(3, 14))).capitalize() + ". ")
        documents.append("".join(sentences) + f"Number {index}.")
    return documents


def make_mixture(tasks: dict[str, TaskConfig], **sections) -> Config:
    data = {"vocab_size": 600, "seq_length": 48, "target_length": 24, "batch_size": 16, **sections.pop("data", {})}
    return Config(
        data=DataConfig(**data),
        model=ModelConfig(architecture="encoder-decoder", vocab_size=640),
        objective=ObjectiveConfig(name="span_corruption"),
        mixture=MixtureConfig(tasks=tasks, **sections.pop("mixture", {})),
        **sections,
    )


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return make_documents(400)


@pytest.fixture(scope="session")
def corpus_file(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def data_config(corpus_file: str) -> DataConfig:
    return DataConfig(
        source="text", path=corpus_file, vocab_size=600, heldout_fraction=0.1, seq_length=64, batch_size=8
    )


@pytest.fixture(scope="session")
def made(data_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return prepare.prepare(data_config, str(tmp_path_factory.mktemp("store")), num_workers=1, progress=False)


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("".join(f"Night {i} of the year\tday {i}\n" for i in range(300)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pairs(made: Store, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of pairs with the tokenizer of the documents."""
    data = DataConfig(source="tsv", path=str(pairs_file), vocab_size=600, heldout_fraction=0.1)
    out = str(tmp_path_factory.mktemp("store"))
    return prepare.prepare(data, out, num_workers=1, progress=False, tokenizer=made.tokenizer)


@pytest.fixture(scope="session")
def mixture_config(made: Store, pairs: Store) -> Config:
    """Spans, infilling of the same text, and pairs with a prefix: 5:3:2."""
    return make_mixture(
        {
            "spans": TaskConfig(store=made.path, rate=0.5),
            "infill": TaskConfig(store=made.path, objective="infilling", rate=0.3),
            "nights": TaskConfig(store=pairs.path, objective="pairs", prefix="count the days: ", rate=0.2),
        }
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
