"""The same work by transformers in bfloat16: training steps compiled, T5's `generate` eager and with a static cache.

python -m tests.benchmarks.gpu.peers bert|t5|decoding
"""

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tests.benchmarks.gpu import cases, decoding
from tests.benchmarks.gpu.turn import SMOKE, attempt, record, seconds, turn

DEVICE = "cpu" if SMOKE else "cuda"


def settle(_: object) -> None:
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()


def training(name: str) -> Callable[[], None]:
    """Compiles a step: forward, backward and fused AdamW, bfloat16 autocast, half of our rows.

    Returns what measures it.
    """
    import torch
    import transformers

    from lm.huggingface import write_config

    rows = cases.ROWS[name] // 2
    config = cases.make(name, rows)
    settings: dict[str, Any] = {key: value for key, value in write_config(config.model).items() if key != "torch_dtype"}
    kind, make = {
        "bert": (transformers.BertConfig, transformers.BertForPreTraining),
        "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
    }[name]
    model: Any = make(kind(**settings)).to(DEVICE).train()
    batch = {key: torch.from_numpy(array).long().to(DEVICE) for key, array in cases.batch(config, 1).items()}
    if name == "bert":
        labels = torch.where(torch.rand(batch["tokens"].shape, device=DEVICE) < 0.15, batch["tokens"], -100)
        inputs = {"input_ids": batch["tokens"], "labels": labels, "next_sentence_label": batch["nsp_labels"][:, 0]}
    else:
        inputs = {"input_ids": batch["tokens"], "labels": batch["targets"]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=DEVICE == "cuda")
    forward = torch.compile(model, backend="eager" if SMOKE else "inductor")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = forward(**inputs).loss
        loss.backward()
        optimizer.step()

    start = time.perf_counter()
    step()
    settle(None)
    compiled = time.perf_counter() - start
    torch.cuda.empty_cache()  # for the parts that measure first

    def measure() -> None:
        spent = seconds(step, settle, calls=5, turns=4)
        gib = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
        record("step", rows=rows, per_s=rows / spent, ms=1e3 * spent, gib=gib, compile_s=compiled)

    return measure


def generate(folder: Path, beams: int, mode: str) -> Callable[[], None]:
    """Generates once, which compiles what is compiled. Returns what measures it."""
    import torch
    import transformers

    model: Any = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    model = model.to(DEVICE).eval()
    given = decoding.sources()
    tokens, mask = (torch.from_numpy(array).long().to(DEVICE) for array in given)
    static = {"cache_implementation": "static"} if mode == "static" else {}
    settings = transformers.GenerationConfig(
        max_new_tokens=decoding.LENGTH,
        min_new_tokens=decoding.LENGTH - 1,
        num_beams=beams,
        do_sample=False,
        pad_token_id=decoding.PAD,
        eos_token_id=decoding.END,
        decoder_start_token_id=decoding.PAD,
        disable_compile=mode == "eager",
        **static,
    )

    def run() -> None:
        with torch.inference_mode():
            model.generate(tokens, attention_mask=mask, generation_config=settings)

    start = time.perf_counter()
    run()
    settle(None)
    first = time.perf_counter() - start

    def measure() -> None:
        spent = seconds(run, settle, calls=1, turns=2)
        what = f"{'greedy' if beams == 1 else f'beams {beams}'} {mode}"
        record(what, tokens_per_s=decoding.COUNT * decoding.LENGTH / spent, ms=1e3 * spent, first_s=first)

    return measure


def main() -> None:
    what = sys.argv[1]
    # JAX is only asked for the weights.
    jax.config.update("jax_platforms", "cpu")
    if what == "decoding":
        with tempfile.TemporaryDirectory() as name:
            decoding.export(folder := Path(name) / "model")
            prepared = [
                attempt(f"beams {beams} {mode}", functools.partial(generate, folder, beams, mode))
                for mode, beams in (("eager", 1), ("eager", 4), ("static", 1))
            ]
    else:
        prepared = [training(what)]
    with turn():
        for measure in filter(None, prepared):
            measure()


if __name__ == "__main__":
    main()
