"""T5 base writes 64 tokens for each of 32 sources: greedy, and with four beams. Ours; transformers' is in peers.py."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import families, models
from lm.config import ModelConfig
from lm.inference import decode
from lm.inference.decode_state import Shape, TokenIds
from lm.inference.options import Decoding, row_options
from lm.models import Prompts, Sources
from lm.models.layers import Execution
from tests.benchmarks.gpu.turn import SMOKE, attempt, record, seconds, turn

PAD, END, FIRST = 0, 1, 3
COUNT, LENGTH, SOURCE = (2, 8, 8) if SMOKE else (32, 64, 64)


def model_config() -> ModelConfig:
    size: dict[str, Any] = {"d_model": 64, "num_layers": 2, "num_heads": 2, "head_dim": 32, "d_ff": 128}
    if not SMOKE:
        size = {"d_model": 768, "num_layers": 12, "num_heads": 12, "head_dim": 64, "d_ff": 3072}
    rates: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0, "mlp_dropout": 0.0}
    return families.t5(vocab_size=512 if SMOKE else 32_128, **size, **rates)


def sources() -> Sources:
    tokens = np.random.default_rng(0).integers(FIRST, 500, (COUNT, SOURCE)).astype(np.int32)
    tokens[:, -1] = END
    return Sources(tokens, np.ones_like(tokens))


def prepare(beams: int) -> Callable[[], None]:
    """Compiles the decoder, and returns what measures it."""
    config = model_config()
    model, ids = models.build(config, Execution(dtype="bfloat16")), TokenIds(PAD, END, PAD, config.vocab_size)
    params = jax.jit(model.init)(jax.random.key(0))
    generate = jax.jit(functools.partial(decode.generate, model, ids, Shape(beams, LENGTH, prompt=0, source=SOURCE)))
    prompts = Prompts(np.zeros((COUNT, 0), np.int32), np.zeros(COUNT, np.int32))
    decoding = Decoding(max_length=LENGTH, min_length=LENGTH, num_beams=beams)
    options = row_options([decoding] * COUNT, jax.random.split(jax.random.key(0), COUNT))
    given = sources()
    start = time.perf_counter()
    compiled = generate.lower(params, given, prompts, options).compile()
    spent_compiling = time.perf_counter() - start

    def measure() -> None:
        spent = seconds(lambda: compiled(params, given, prompts, options), jax.block_until_ready, calls=2)
        what = "greedy" if beams == 1 else f"beams {beams}"
        record(what, tokens_per_s=COUNT * LENGTH / spent, ms=1e3 * spent, compile_s=spent_compiling)

    return measure


def export(folder: Path) -> None:
    """Writes the random model as a folder that transformers reads."""
    from lm import huggingface

    config = model_config()
    params = jax.jit(models.build(config).init)(jax.random.key(0))
    huggingface.export_folder(folder, config, jax.tree.map(np.asarray, params))


def main() -> None:
    prepared = {beams: attempt(f"beams {beams}", functools.partial(prepare, beams)) for beams in (1, 4)}
    with turn():
        for beams, measure in prepared.items():
            if measure:
                attempt(f"beams {beams}", measure)


if __name__ == "__main__":
    main()
