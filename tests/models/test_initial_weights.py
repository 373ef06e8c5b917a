"""Weights begin with the standard deviations of the authors' code."""

import dataclasses

import jax
import numpy as np
import pytest

from lm import families, models
from lm.config import ModelConfig

TRUNCATED = 0.8796  # the standard deviation of a normal distribution that is cut at two of its own
SIZES = {"vocab_size": 512, "d_model": 64, "num_layers": 22, "num_heads": 4, "d_ff": 96}


def stds(config: ModelConfig) -> dict[str, float]:
    params = models.build(config).init(jax.random.key(0))
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): float(np.std(leaf)) for path, leaf in leaves}


def test_modernberts_residual_weights_and_head_begin_smaller():
    """By sqrt(2 layers), 6.6 at 22 layers; all others with 0.02."""
    config = families.modernbert(**SIZES)
    found = stds(config)
    small = ["encoder/layers/attention/out/kernel", "encoder/layers/mlp/down/kernel", "mlm/dense/kernel"]
    large = [f"encoder/layers/{name}/kernel" for name in ("attention/query", "attention/value", "mlp/up", "mlp/gate")]
    for name in small:
        assert found[name] == pytest.approx(TRUNCATED * 0.02 / np.sqrt(44), rel=0.03), name
    for name in [*large, "encoder/embedding/token"]:
        assert found[name] == pytest.approx(TRUNCATED * 0.02, rel=0.03), name
    other = stds(dataclasses.replace(config, init="normal"))
    for name in small:
        assert other[name] == pytest.approx(TRUNCATED * 0.02, rel=0.03), name


def test_t5s_relative_bias_begins_fan_avg_uniform():
    """Of variance 1 / mean(32 rows, 12 heads): 0.213, within the limits of a uniform distribution."""
    config = families.t5(vocab_size=64, d_model=768, num_layers=1, num_heads=12, head_dim=2, d_ff=8)
    bound = np.sqrt(3 / 22)
    for stack in ("encoder", "decoder"):
        table = np.asarray(models.build(config).init(jax.random.key(0))[stack]["relative_bias"])
        assert table.std() == pytest.approx(1 / np.sqrt(22), rel=0.08)
        assert 0.95 * bound < np.abs(table).max() <= bound
    other = stds(dataclasses.replace(config, relative_init="init"))
    assert other["encoder/relative_bias"] == pytest.approx(768**-0.5, rel=0.1)
