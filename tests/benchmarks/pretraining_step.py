"""One BERT pretraining step (forward, backward, AdamW; masked tokens and next sentences) beside transformers.

    python -m tests.benchmarks.pretraining_step                      # BERT base on the CPU, about half an hour
    python -m tests.benchmarks.pretraining_step --size=tiny --repetitions=1
    python -m tests.benchmarks.pretraining_step --device=gpu --size=large --rows=64

The contenders take turns, repetition after repetition, so that what else the machine does meets them alike, each in a
process of its own; a turn begins with a step that is not timed. The figure is real tokens a second: padding is
computed, not counted. Dropout is 0.1 for all (`--dropout`), sdpa attention and fused AdamW are transformers' own
best, and ours runs the whole `train_step`: masking, clipping and schedule are inside its time and outside of theirs.

Two settings at each length:
    full    rows of exactly that length; both sides compute the same tokens.
    ragged  the NSP pairs of the embedded corpus: ours packs them into rows; theirs gets the very same pairs of
            each step one a row, in micro-batches of at most `--rows`, each padded to its own longest.
"""

import dataclasses
import functools
import itertools
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from lm import accelerators, families, tasks
from lm.config import Config, DataConfig
from lm.data import batches, prepare
from lm.data.store import Store
from lm.data.workers import available_cores
from lm.flops import model_flops
from lm.huggingface import write_config
from lm.sharding import make_mesh
from lm.tasks import members
from lm.training.program import compile_program
from tests.benchmarks import machine
from tests.benchmarks.turns import Contender, apart

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 256},
    "base": {"d_model": 768, "num_layers": 12, "num_heads": 12, "d_ff": 3072},
    "large": {"d_model": 1024, "num_layers": 24, "num_heads": 16, "d_ff": 4096},
}
VOCAB_SIZE = 30_522
MODES = ["float32", "float32 compiled", "bfloat16 compiled"]  # of transformers

_device = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Of both sides.")
_size = flags.DEFINE_enum("size", "base", list(SIZES), "Of the model.")
_settings = flags.DEFINE_list("settings", ["full", "ragged"], "Which to measure.")
_lengths = flags.DEFINE_list("lengths", ["128", "512"], "Tokens in a row.")
_rows = flags.DEFINE_integer("rows", 8, "Rows of one of our batches.", lower_bound=1)
_steps = flags.DEFINE_integer("steps", 3, "Steps in one turn.", lower_bound=1)
_repetitions = flags.DEFINE_integer("repetitions", 5, "Turns of each contender.", lower_bound=1)
_dropout = flags.DEFINE_float("dropout", 0.1, "Of embeddings, sublayers and attention weights.")
_unroll = flags.DEFINE_integer("unroll", 1, "Our train.unroll.")
_dtypes = flags.DEFINE_list("dtypes", ["float32", "bfloat16"], "Our train.dtype.")
_modes = flags.DEFINE_list("modes", MODES, "Of transformers (needs the [peers] extra); empty for none.")
flags.register_validator("modes", lambda modes: set(modes) <= {*MODES, ""}, f"of {', '.join(MODES)}")
_store = flags.DEFINE_string("store", "runs/benchmark/store", "Token store of the embedded corpus; made if missing.")
_output = flags.DEFINE_string("output", None, "JSON lines to append the results to.")

Batch = dict[str, np.ndarray]
Step = Callable[[int], None]


@dataclasses.dataclass
class Case:
    """What is computed: a model, some batches, and how many real tokens they hold."""

    config: Config
    batches: list[Batch]
    objective: tasks.Objective

    @property
    def tokens(self) -> int:
        return sum(batches.count_tokens(batch)[0] for batch in self.batches)


class Facts(NamedTuple):
    """Of one contender's work in a turn: real tokens, padding among all that it computes, FLOPs, and the device's."""

    tokens: int
    padding: float
    flops: float
    peak: float | None


def make_config(length: int, max_segments: int) -> Config:
    model = families.bert(
        **SIZES[_size.value],
        vocab_size=VOCAB_SIZE,
        activation="gelu",
        head_activation="gelu",
        dropout=_dropout.value,
        attention_dropout=_dropout.value,
    )
    data = DataConfig(vocab_size=VOCAB_SIZE, seq_length=length, batch_size=_rows.value, max_segments=max_segments)
    config = Config(model=model, data=data)
    config.train.unroll = _unroll.value
    return config


def full_case(store: Store, length: int) -> Case:
    """Rows of one pair that fills them."""
    config = make_config(length, max_segments=1)
    special = store.tokenizer.special
    rng = np.random.default_rng(0)
    made = []
    for _ in range(_steps.value):
        tokens = rng.integers(int(store.tokenizer.special_ids.max()) + 1, VOCAB_SIZE, (_rows.value, length))
        tokens[:, [0, length // 2, -1]] = special.cls, special.sep, special.sep
        position = np.broadcast_to(np.arange(length), tokens.shape)
        rows = {"tokens": tokens, "segments": np.ones_like(tokens), "positions": position}
        rows["token_types"] = position > length // 2
        rows["cls_positions"] = np.zeros((_rows.value, 1))
        rows["nsp_labels"] = rng.integers(0, 2, (_rows.value, 1))
        made.append({name: np.ascontiguousarray(array, np.int32) for name, array in rows.items()})
    return Case(config, made, tasks.create_objective(config, store.tokenizer))


def ragged_case(store: Store, length: int) -> Case:
    """Packed pairs of the embedded corpus."""
    config = make_config(length, max_segments=DataConfig.max_segments)
    source = members.batches(config, "", store, store.train)
    return Case(config, [source(step) for step in range(_steps.value)], tasks.create_objective(config, store.tokenizer))


def contender(make_case: Callable[[], Case], make_step: Callable[[Case], tuple[Step, int]]) -> Contender:
    """A process that takes steps of a case: `--steps` of them, or the first alone.

    Args:
        make_case: makes the case, in that process.
        make_step: of a case, the function that takes the step of a number, and the places, tokens or padding, that
            all steps compute.
    """

    def make() -> Callable[[int], Facts]:
        case = make_case()
        step, places = make_step(case)
        flops = len(case.batches) * _rows.value * model_flops(case.config, case.objective.max_positions)
        peak = accelerators.peak_flops(jax.devices()[0].device_kind)

        def run(steps: int) -> Facts:
            for index in range(steps):
                step(index)
            return Facts(case.tokens, 1 - case.tokens / places, flops, peak)

        return run

    return Contender(make)


def our_step(dtype: str, case: Case) -> tuple[Step, int]:
    """The training step as `lm.training.loop` runs it, and the places of its batches."""
    config = dataclasses.replace(case.config, train=dataclasses.replace(case.config.train, dtype=dtype))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    program = compile_program(config, case.objective, mesh)
    state = program.init()

    def step(index: int) -> None:
        nonlocal state
        state, _ = program.step(state, program.put(case.batches[index]))
        jax.block_until_ready(state)

    return step, sum(batches.count_tokens(batch)[1] for batch in case.batches)


def micro_batches(case: Case, index: int) -> list[dict]:
    """The segments of one of our batches as transformers' inputs, as evenly spread as their number allows."""
    from tests.peers import ragged

    examples = jax.jit(case.objective.prepare)(case.batches[index], jax.random.key(index))
    parts = even_parts(len(ragged.places(examples)), _rows.value)
    return [ragged.padded(examples, part) for part in parts]


def their_step(mode: str, dynamic: bool, case: Case) -> tuple[Step, int]:
    """A mode of transformers' BertForPreTraining, and the places of its inputs."""
    import torch
    import transformers

    torch.set_num_threads(available_cores())
    config = write_config(case.config.model)
    settings: dict[str, Any] = {name: value for name, value in config.items() if name != "torch_dtype"}
    settings["attn_implementation"] = "sdpa"
    hf_config = transformers.BertConfig(**settings)
    model: Any = transformers.BertForPreTraining(hf_config).train()
    model = model.to("cuda" if _device.value == "gpu" else "cpu")
    inputs = [micro_batches(case, index) for index in range(len(case.batches))]
    places = sum(micro_batch["input_ids"].numel() for micro_batch in itertools.chain(*inputs))
    return make_their_step(model, inputs, mode, dynamic), places


def make_their_step(model: Any, inputs: list[list[dict]], mode: str, dynamic: bool) -> Step:
    """The training step of a model of transformers.

    Args:
        model: on its device.
        inputs: the micro-batches of each step, of which the gradients are averaged.
        mode: of `MODES`: as it is, compiled, or compiled under bfloat16 autocast.
        dynamic: whether the shapes of micro-batches differ.
    """
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    for micro_batch in itertools.chain(*inputs):
        for name, tensor in micro_batch.items():
            if dynamic:
                for dim in range(tensor.ndim):
                    torch._dynamo.mark_dynamic(tensor, dim)
            micro_batch[name] = tensor.to(model.device)
    forward = torch.compile(model, dynamic=dynamic) if "compiled" in mode else model

    def step(index: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        for micro_batch in inputs[index]:
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled="bfloat16" in mode):
                loss = forward(**micro_batch).loss / len(inputs[index])
            loss.backward()
        optimizer.step()
        loss.item()

    return step


def even_parts(count: int, most: int) -> list[slice]:
    """`count` things in as few parts of at most `most` as will do, as evenly spread as their number allows."""
    parts = -(-count // most)
    bounds = [round(part * count / parts) for part in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def measure(contenders: dict[str, Contender]) -> tuple[dict[str, Facts], dict[str, list[float]]]:
    """What each contender does in a turn, and the seconds of its turns, after one that compiles.

    A turn begins with a step that is not timed: it meets caches and pages that the others have driven out.
    """
    facts: dict[str, Facts] = {}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for name, run in contenders.items():
        facts[name], spent = run(_steps.value)
        print(f"  {name}: ready after {spent:.0f} s", flush=True)
    for _ in range(_repetitions.value):
        for name, run in contenders.items():
            run(1)
            seconds[name].append(run(_steps.value)[1])
    return facts, seconds


def report(setting: str, length: int, contenders: dict[str, Contender]) -> None:
    """Measures, prints a table, and appends a line of JSON for each contender."""
    facts, seconds = measure(contenders)
    for each in contenders.values():
        each.end()
    ours = [name for name in seconds if name.startswith("ours")]
    tokens = facts[ours[0]].tokens
    print(f"\n{setting}, {length} tokens in a row, {tokens / _steps.value:.0f} real tokens a step")
    print("| contender | padding | tokens/s, median | best |" + "".join(f" {name} over it |" for name in ours))
    print("|---|---|---|---|" + "---|" * len(ours))
    for name, times in seconds.items():
        middle, best = statistics.median(times), min(times)
        ratios = "".join(f" {middle / statistics.median(seconds[each]):.2f} |" for each in ours)
        print(f"| {name} | {facts[name].padding:.0%} | {tokens / middle:.0f} | {tokens / best:.0f} |{ratios}")
        result = {
            "setting": setting,
            "length": length,
            "contender": name,
            "tokens_per_second": tokens / middle,
            "best_tokens_per_second": tokens / best,
            "padding_fraction": facts[name].padding,
            "seconds": times,
        }
        if (peak := facts[name].peak) and name in ours:
            result["mfu"] = facts[name].flops / middle / peak
            print(f"MFU of {name}: {result['mfu']:.1%}")
        if _output.value:
            with open(_output.value, "a") as file:
                print(json.dumps(result), file=file)
    print(flush=True)


def modes() -> list[str]:
    """Those of transformers that are measured; on a GPU its best alone."""
    return [mode for mode in _modes.value if mode and (_device.value == "cpu" or mode == MODES[-1])]


def main(_: list[str]) -> None:
    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[_device.value])
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # contenders share a GPU's memory
    data = DataConfig(source="installed-docs", vocab_size=VOCAB_SIZE)
    Path(_store.value).parent.mkdir(parents=True, exist_ok=True)
    store = prepare.prepare(data, _store.value)
    print(f"BERT {_size.value} on {apart(machine.describe)}")
    for length in map(int, _lengths.value):
        for setting in _settings.value:
            case = functools.partial({"full": full_case, "ragged": ragged_case}[setting], store, length)
            steps = {f"ours {dtype}": functools.partial(our_step, dtype) for dtype in _dtypes.value}
            for mode in modes():
                steps[f"transformers {mode}"] = functools.partial(their_step, mode, setting == "ragged")
            report(setting, length, {name: contender(case, step) for name, step in steps.items()})


if __name__ == "__main__":
    app.run(main)
