"""A corpus of a few thousand words and its token store, made once."""

import random

import numpy as np
import pytest

from lm.config import DataConfig
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


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
