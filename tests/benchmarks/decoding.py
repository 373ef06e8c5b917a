"""Decoding with the shapes of T5 small, beside transformers' `generate` and CTranslate2, on the same random weights.

    python -m tests.benchmarks.decoding                       # on the CPU, about a quarter of an hour
    python -m tests.benchmarks.decoding --batches=1,32 --beams=1 --repetitions=1

Every contender writes exactly `--length` tokens for each source (the end is forbidden before), so all do the same
work; greedy outputs must be equal before anything is timed. They take turns, repetition after repetition, each in a
process of its own, and a turn begins with a run that is not timed. The figure is tokens written a second, the best
hypothesis counted only.

transformers: as it comes (eager, dynamic cache), with its static cache, and with the static cache and the forward pass
compiled. CTranslate2 (`pip install ctranslate2`, or `--noctranslate2`) runs in float32. All with as many threads as
there are cores.
"""

import functools
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from lm import families, huggingface, models
from lm.data.workers import available_cores
from lm.inference import decode
from lm.inference.decode_state import Shape, TokenIds
from lm.inference.options import Decoding, row_options
from lm.models import Prompts, Sources
from tests.benchmarks import machine
from tests.benchmarks.turns import Contender, apart

_batches = flags.DEFINE_list("batches", ["1", "8", "32"], "Sources decoded together.")
_beams = flags.DEFINE_list("beams", ["1", "4"], "1: greedy.")
_length = flags.DEFINE_integer("length", 64, "Tokens written for each.", lower_bound=2)
_sources = flags.DEFINE_integer("source_length", 64, "Of the longest source; the shortest has half.", lower_bound=2)
_repetitions = flags.DEFINE_integer("repetitions", 5, "Turns of each contender.", lower_bound=1)
_modes = flags.DEFINE_list("modes", ["eager", "static", "compiled"], "Of transformers; empty for none.")
_ctranslate2 = flags.DEFINE_bool("ctranslate2", True, "Also measure CTranslate2.")
_output = flags.DEFINE_string("output", None, "JSON lines to append the results to.")

PAD, END, UNKNOWN, FIRST = 0, 1, 2, 3
MODEL = families.t5(
    vocab_size=32_128,
    d_model=512,
    num_layers=6,
    num_heads=8,
    head_dim=64,
    d_ff=2048,
    dropout=0.0,
    attention_dropout=0.0,
    mlp_dropout=0.0,
)

Decode = Callable[[], list[list[int]]]


def make_sources(count: int) -> list[list[int]]:
    rng = np.random.default_rng(count)
    lengths = rng.integers(_sources.value // 2, _sources.value + 1, count)
    lengths[0] = _sources.value
    return [[*rng.integers(FIRST, 32_000, length - 1).tolist(), END] for length in lengths]


def padded(sources: list[list[int]]) -> Sources:
    tokens = np.full((len(sources), max(map(len, sources))), PAD, np.int32)
    segments = np.zeros_like(tokens)
    for row, source in enumerate(sources):
        tokens[row, : len(source)] = source
        segments[row, : len(source)] = 1
    return Sources(tokens, segments)


def random_params() -> models.Params:
    return jax.jit(models.build(MODEL).init)(jax.random.key(0))


def ours(sources: list[list[int]], beams: int) -> Decode:
    length, params, count = _length.value, random_params(), len(sources)
    model, ids = models.build(MODEL), TokenIds(PAD, END, PAD, MODEL.vocab_size)
    shape = Shape(beams, length, prompt=0, source=padded(sources).tokens_BS.shape[1])

    function = jax.jit(functools.partial(decode.generate, model, ids, shape))
    prompts = Prompts(np.zeros((count, 0), np.int32), np.zeros(count, np.int32))
    decoding = Decoding(max_length=length, min_length=length, num_beams=beams)
    options = row_options([decoding] * count, jax.random.split(jax.random.key(0), count))
    return lambda: np.asarray(function(params, padded(sources), prompts, options).tokens_BNT[:, 0]).tolist()


def theirs(folder: Path, sources: list[list[int]], beams: int, mode: str) -> Decode:
    import torch
    import transformers

    torch.set_num_threads(available_cores())
    model: Any = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokens, segments = (torch.from_numpy(array).long() for array in padded(sources))
    options = {} if mode == "eager" else {"cache_implementation": "static"}
    if mode == "compiled":
        model.forward = torch.compile(model.forward)
    settings = transformers.GenerationConfig(
        max_new_tokens=_length.value,
        min_new_tokens=_length.value - 1,
        num_beams=beams,
        do_sample=False,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        disable_compile=mode != "compiled",
        **options,
    )

    def decode() -> list[list[int]]:
        with torch.inference_mode():
            return model.generate(tokens, attention_mask=segments, generation_config=settings)[:, 1:].tolist()

    return decode


def with_ctranslate2(folder: Path, sources: list[list[int]], beams: int) -> Decode:
    import ctranslate2

    converted = folder / "ctranslate2"
    if not converted.exists():
        write_tokenizer(folder)
        ctranslate2.converters.TransformersConverter(str(folder)).convert(str(converted))
    translator = ctranslate2.Translator(
        str(converted), device="cpu", compute_type="float32", intra_threads=available_cores()
    )
    tokens = [[piece(index) for index in source] for source in sources]

    def decode() -> list[list[int]]:
        found = translator.translate_batch(
            tokens,
            beam_size=beams,
            max_decoding_length=_length.value,
            min_decoding_length=_length.value,
            max_input_length=0,
            max_batch_size=0,
        )
        return [[index_of(name) for name in result.hypotheses[0]] for result in found]

    return decode


def piece(index: int) -> str:
    return {PAD: "<pad>", END: "</s>", UNKNOWN: "<unk>"}.get(index, f"t{index}")


def index_of(name: str) -> int:
    return {"<pad>": PAD, "</s>": END, "<unk>": UNKNOWN}[name] if name.startswith("<") else int(name[1:])


def write_tokenizer(folder: Path) -> None:
    """A vocabulary of names, which CTranslate2 asks for."""
    import tokenizers
    import transformers

    vocabulary = {piece(index): index for index in range(MODEL.vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def agreement(found: list[list[int]], expected: list[list[int]]) -> float:
    return float(np.mean(np.asarray([row[: _length.value - 1] for row in found]) == np.asarray(expected)[:, :-1]))


def export(folder: Path) -> None:
    huggingface.export_folder(folder, MODEL, jax.tree.map(np.asarray, random_params()))


def main(_: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")
    print(f"T5 small, {_length.value} tokens each, on {apart(machine.describe)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        apart(export, folder)
        for beams in map(int, _beams.value):
            for count in map(int, _batches.value):
                sources = make_sources(count)
                makers = {"ours": functools.partial(ours, sources, beams)}
                for mode in filter(None, _modes.value):
                    makers[f"transformers {mode}"] = functools.partial(theirs, folder, sources, beams, mode)
                if _ctranslate2.value:
                    makers["CTranslate2"] = functools.partial(with_ctranslate2, folder, sources, beams)
                run({name: Contender(make) for name, make in makers.items()}, beams, count)


def run(contenders: dict[str, Contender], beams: int, count: int) -> None:
    """Checks, times and reports the contenders of one case."""
    seconds: dict[str, list[float]] = {}
    expected: list[list[int]] = []
    for name, contender in contenders.items():
        try:
            found, _ = contender()
        except RuntimeError as error:  # a mode that a library does not support on this machine is named, not hidden
            print(f"  {name}: does not run: {str(error).splitlines()[0][:150]}")
            continue
        expected = expected or found
        share = agreement(found, expected)
        print(f"  {name}: {share:.1%} of the tokens as ours", flush=True)
        assert beams > 1 or share > 0.99, name
        seconds[name] = []
    for _ in range(_repetitions.value):
        for name in seconds:
            contenders[name]()
            seconds[name].append(contenders[name]()[1])
    for each in contenders.values():
        each.end()
    print(f"\nbeams {beams}, batch {count}")
    print("| contender | tokens/s, median | best | ours over it, median | best |\n|---|---|---|---|---|")
    tokens = count * _length.value
    for name, times in seconds.items():
        middle, best = statistics.median(times), min(times)
        ratios = middle / statistics.median(seconds["ours"]), best / min(seconds["ours"])
        print(f"| {name} | {tokens / middle:.0f} | {tokens / best:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
        if _output.value:
            with open(_output.value, "a") as file:
                print(json.dumps({"beams": beams, "batch": count, "contender": name, "seconds": times}), file=file)
    print(flush=True)


if __name__ == "__main__":
    app.run(main)
