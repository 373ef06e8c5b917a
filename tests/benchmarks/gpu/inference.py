"""BERT base embeds texts: tokens a second at one length, and at mixed lengths that are packed into the same rows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import accelerators, families, models, sharding
from lm.config import Config, DataConfig, ObjectiveConfig
from lm.flops import needed_flops
from lm.models.layers import Execution
from tests.benchmarks.gpu.turn import SMOKE, record, seconds, turn

ROWS, LENGTH = (2, 64) if SMOKE else (128, 512)


def config() -> Config:
    size: dict[str, Any] = {"d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 128}
    if not SMOKE:
        size = {"d_model": 768, "num_layers": 12, "num_heads": 12, "d_ff": 3072}
    model = families.bert(**size, vocab_size=512 if SMOKE else 30_592)
    data = DataConfig(seq_length=LENGTH, batch_size=ROWS, vocab_size=model.vocab_size)
    return Config(model=model, data=data, objective=ObjectiveConfig())


def rows(lengths: list[list[int]]) -> list[jax.Array]:
    """Returns tokens, segments, positions and token types of rows that hold texts of these lengths."""
    segments, positions = np.zeros((2, ROWS, LENGTH), np.int32)
    for row, sizes in enumerate(lengths):
        at = 0
        for number, size in enumerate(sizes, 1):
            segments[row, at : at + size], positions[row, at : at + size] = number, np.arange(size)
            at += size
    tokens = np.random.default_rng(0).integers(200, 500, (ROWS, LENGTH))
    return [jnp.asarray(array, jnp.int32) for array in (tokens, segments, positions, np.zeros_like(tokens))]


def mixed() -> list[list[int]]:
    """Returns texts of 16 to 256 tokens, in the rows that they fit, as the packing of a server puts them."""
    rng, found = np.random.default_rng(1), []
    for _ in range(ROWS):
        sizes, left = [], LENGTH
        while left >= 16:
            size = min(int(rng.integers(16, max(17, LENGTH // 2))), left)
            sizes.append(size)
            left -= size
        found.append(sizes)
    return found


def main() -> None:
    made = config()
    model = models.build(made.model, Execution(dtype="bfloat16", unroll=0))

    @functools.partial(jax.jit, compiler_options=sharding.compiler_options())
    def embed(params, tokens, segments, positions, types):
        hidden_BLD = model.merge(params)(tokens, segments, positions, types)
        # The mean of each text, as products: a text is a segment of its row.
        texts_BPL = (segments[:, None] == jnp.arange(1, 33)[None, :, None]).astype(hidden_BLD.dtype)
        return jnp.einsum("BPL,BLD->BPD", texts_BPL, hidden_BLD) / jnp.maximum(texts_BPL.sum(2), 1)[:, :, None]

    params = jax.jit(model.init)(jax.random.key(0))
    jax.block_until_ready(embed(params, *rows([[LENGTH]] * ROWS)))
    with turn():
        peak, rate = accelerators.peak_flops(jax.devices()[0].device_kind), 0.0
        for what, lengths in (("fixed", [[LENGTH]] * ROWS), ("mixed", mixed())):
            given = rows(lengths)
            spent = seconds(functools.partial(embed, params, *given), jax.block_until_ready)
            sizes = np.concatenate([np.asarray(row) for row in lengths])
            figures = {"tokens_per_s": float(sizes.sum()) / spent, "texts_per_s": len(sizes) / spent}
            if peak:  # a third of the operations of forward and backward
                figures["mfu"] = needed_flops(made, sizes, np.zeros_like(sizes), 0) / 3 / spent / peak
            rate = rate or figures["tokens_per_s"]
            record(what, **figures, of_fixed=figures["tokens_per_s"] / rate)


if __name__ == "__main__":
    main()
