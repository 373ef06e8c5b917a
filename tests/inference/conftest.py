"""Fixtures: working directories of small models with random weights."""

import random
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from lm import checkpoint, models
from lm.config import CheckpointConfig, Config, DataConfig, ModelConfig, ObjectiveConfig
from lm.data import prepare
from lm.data.pairs import translation_source
from lm.data.store import Store
from lm.tokenizers.tokenizer import Tokenizer
from tests.training.conftest import WORDS, changed, tiny_config, tiny_seq2seq  # noqa: F401


def make_workdir(
    folder: epath.PathLike, config: Config, tokenizer: Tokenizer, params: models.Params | None = None
) -> str:
    """What a run leaves behind: the config, the tokenizer and a checkpoint, of random weights if none are given."""
    params = params or jax.jit(models.build(config.model).init)(jax.random.key(0))
    checkpoint.write_atomically(epath.Path(folder) / tokenizer.file_name, tokenizer.to_bytes())
    saved = checkpoint.Checkpoints(folder, CheckpointConfig(asynchronous=False))
    saved.save(0, {"params": params, "step": np.int32(0)})
    saved.close()
    checkpoint.write_config(folder, config)
    return str(folder)


@pytest.fixture(scope="session")
def pairs_workdir(tiny_seq2seq: Config, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F811
    """An encoder-decoder beside a store of sentences to be copied, under the names of two languages."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = random.Random(0)
    lines = []
    for _ in range(150):
        for language, space, words in (("de", " ", WORDS[:19]), ("zh_CN", "", WORDS[19:])):
            text = space.join(rng.choices(words, k=rng.randint(4, 6)))
            lines.append(f"{translation_source(text, language)}\t{text}\n")
    (folder / "pairs.tsv").write_text("".join(lines))
    pairs = DataConfig(source="tsv", path=str(folder / "pairs.tsv"), vocab_size=tiny_seq2seq.data.vocab_size)
    store = prepare.prepare(pairs, str(folder / "store"), num_workers=1, progress=False)
    data = {"source": "gettext", "path": "", "store": store.path, "languages": "de,zh_CN"}
    config = changed(tiny_seq2seq, data=data, objective={"name": "pairs"}, model={"num_layers": 1})
    return make_workdir(folder / "run", config, store.tokenizer)


@pytest.fixture(scope="session")
def decoder_workdir(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: F811
    """A decoder with 32 learned positions."""
    shape: dict[str, Any] = {"vocab_size": 448, "d_model": 32, "num_layers": 1, "num_heads": 4, "d_ff": 64}
    model = ModelConfig(architecture="decoder", max_length=32, token_types=0, pooler=False, init_std=0.2, **shape)
    data = DataConfig(vocab_size=448, seq_length=32)
    config = Config(data=data, model=model, objective=ObjectiveConfig(name="causal_lm"))
    return make_workdir(tmp_path_factory.mktemp("decoder"), config, Store.open(tiny_config.data.store).tokenizer)
