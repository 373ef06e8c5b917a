"""The models that are trained, ours and transformers' alike, and batches of full and of packed rows."""

import dataclasses
from typing import Any

import numpy as np

from lm import families, tasks
from lm.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimConfig
from tests.benchmarks.gpu.turn import SMOKE

# Rows of one step; half as many fit transformers beside what we hold on a card of 80 GB.
ROWS = {"bert": 64, "t5": 64, "modernbert": 64}
TINY: dict[str, Any] = {"d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 128}


def make(name: str, rows: int | None = None) -> Config:
    """Returns the config of BERT large, T5 1.1 large or ModernBERT base: dropout as the papers pretrain."""
    optim = OptimConfig(name="adamw", learning_rate=1e-4)
    model, data, objective = {"bert": _bert, "t5": _t5, "modernbert": _modernbert}[name]()
    data = dataclasses.replace(data, batch_size=2 if SMOKE else rows or ROWS[name], vocab_size=model.vocab_size)
    config = Config(model=model, data=data, objective=objective, optim=optim)
    config.train.dtype, config.train.unroll = "bfloat16", 0
    config.train.attention = "auto" if SMOKE else "flash"  # a CPU has no flash attention
    return config


def _bert() -> tuple[ModelConfig, DataConfig, ObjectiveConfig]:
    size: dict[str, Any] = TINY if SMOKE else {"d_model": 1024, "num_layers": 24, "num_heads": 16, "d_ff": 4096}
    model = families.bert(**size, vocab_size=512 if SMOKE else 30_592, attention_dropout=0.0)
    return model, DataConfig(seq_length=64 if SMOKE else 512, max_segments=8), ObjectiveConfig()


def _t5() -> tuple[ModelConfig, DataConfig, ObjectiveConfig]:
    size: dict[str, Any] = (
        TINY if SMOKE else {"d_model": 1024, "num_layers": 24, "num_heads": 16, "head_dim": 64, "d_ff": 2816}
    )
    model = families.t5_1_1(**size, vocab_size=512 if SMOKE else 32_128)
    data = DataConfig(seq_length=64 if SMOKE else 512, target_length=32 if SMOKE else 114, max_segments=8)
    return model, data, ObjectiveConfig(name="span_corruption")


def _modernbert() -> tuple[ModelConfig, DataConfig, ObjectiveConfig]:
    size: dict[str, Any] = TINY if SMOKE else {"d_model": 768, "num_layers": 22, "num_heads": 12, "d_ff": 1152}
    model = families.modernbert(**size, vocab_size=512 if SMOKE else 50_368)
    return (
        model,
        DataConfig(seq_length=128 if SMOKE else 1024, max_segments=8),
        ObjectiveConfig(nsp=False, mask_rate=0.3),
    )


def lengths(config: Config, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens that each segment of `batch` has in the rows of the encoder and in those of the decoder."""
    decoder = config.data.target_length if config.model.architecture == "encoder-decoder" else 0
    segments = config.data.batch_size * parts
    return np.full(segments, config.data.seq_length / parts), np.full(segments, decoder / parts)


def batch(config: Config, parts: int) -> dict[str, np.ndarray]:
    """Returns a batch of rows that `parts` segments of equal length fill; what is predicted is random."""
    rng, rows = np.random.default_rng(0), config.data.batch_size
    found = {}
    for name, spec in tasks.shapes(config).items():
        array = np.zeros((rows, *spec.shape), spec.dtype)
        length = array.shape[1]
        column = np.arange(length)
        if name in ("tokens", "targets"):
            array[:] = rng.integers(200, config.model.vocab_size, array.shape)
        elif name.endswith("segments"):
            array[:] = 1 + column * parts // length
        elif name.endswith("positions") and name != "cls_positions":
            starts = -(-np.arange(parts) * length // parts)
            array[:] = column - starts[column * parts // length]
        elif name == "cls_positions":
            array[:, :parts] = -(-np.arange(parts) * config.data.seq_length // parts)
        elif name == "nsp_labels":
            array[:] = -1
            array[:, :parts] = rng.integers(0, 2, (rows, parts))
        found[name] = array
    return found
