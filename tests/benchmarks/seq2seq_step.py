"""One training step of T5 small (1.1) beside transformers: forward, backward, AdamW.

    python -m tests.benchmarks.seq2seq_step                  # on the CPU, about half an hour
    python -m tests.benchmarks.seq2seq_step --settings=ragged --source=dates --repetitions=1

On a CPU, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in the environment is worth 15% to ours. Where malloc keeps memory, four
contenders want more than 24 GiB: `--modes="float32 compiled"` measures ours beside one.

As `pretraining_step`, whose other flags hold here too: the contenders take turns, real tokens of both sides are
counted, ours runs the whole `train_step`.

    full    span corruption: rows of 512 and 114 tokens that one text fills.
    ragged  supervised pairs of `--source`: ours packs them into rows of both sides; transformers gets the very same
            pairs one a row, in micro-batches of at most `--pairs`, each padded to its own longest.
"""

import dataclasses
import functools
import itertools
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from lm import families, tasks
from lm.config import Config, DataConfig, ModelConfig, ObjectiveConfig
from lm.data import prepare
from lm.data.store import Store
from lm.data.workers import available_cores
from lm.huggingface import write_config
from lm.tasks import members
from tests.benchmarks import machine
from tests.benchmarks import pretraining_step as shared
from tests.benchmarks.pretraining_step import Case, Step
from tests.benchmarks.turns import apart

_source = flags.DEFINE_enum("source", "docs-questions", ["docs-questions", "dates"], "Of the ragged pairs.")
_pairs = flags.DEFINE_integer("pairs", 32, "Pairs in one of transformers' micro-batches.", lower_bound=1)

VOCAB_SIZE = 32_128
ROWS = {"docs-questions": (320, 72, 12), "dates": (131, 96, 16)}


def model_config() -> ModelConfig:
    dropout = shared._dropout.value
    return families.t5_1_1(
        vocab_size=VOCAB_SIZE,
        d_model=512,
        num_layers=8,
        num_heads=6,
        head_dim=64,
        d_ff=1024,
        dropout=dropout,
        attention_dropout=dropout,
        mlp_dropout=dropout,
    )


def make_case(store: Store, data: DataConfig, objective: str) -> Case:
    data = dataclasses.replace(data, batch_size=shared._rows.value)
    config = Config(model=model_config(), data=data, objective=ObjectiveConfig(name=objective))
    config.train.unroll = shared._unroll.value
    source = members.batches(config, "", store, store.train)
    return Case(
        config, [source(step) for step in range(shared._steps.value)], tasks.create_objective(config, store.tokenizer)
    )


def full_case(folder: str) -> Case:
    """Span corruption of one long text."""
    path = Path(folder) / "text.txt"
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), rng.integers(2, 9))) for _ in range(2000)]
    path.write_text(" ".join(rng.choice(words, 60_000)))
    data = DataConfig(source="text", path=str(path), vocab_size=2048, heldout_fraction=0.0)
    store = prepare.prepare(data, f"{folder}/text", progress=False)
    return make_case(
        store, dataclasses.replace(data, seq_length=512, target_length=114, max_segments=1), "span_corruption"
    )


def ragged_case(folder: str) -> Case:
    """Packed supervised pairs."""
    data = DataConfig(source=_source.value, vocab_size=8192 if _source.value == "docs-questions" else 1024)
    store = prepare.prepare(data, f"{folder}/pairs", progress=False)
    length, target_length, segments = ROWS[_source.value]
    data = dataclasses.replace(data, seq_length=length, target_length=target_length, max_segments=segments)
    return make_case(store, data, "pairs")


def micro_batches(case: Case, index: int) -> list[dict]:
    """The pairs of one of our batches as transformers' inputs, as evenly spread as their number allows."""
    from tests.peers import ragged_pairs

    special = ragged_pairs.SpecialIds()
    batch = case.objective.prepare(jax.device_put(case.batches[index]), jax.random.key(index))
    parts = shared.even_parts(len(ragged_pairs.places(batch["segments"])), _pairs.value)
    return [ragged_pairs.padded(batch, special, part) for part in parts]


def their_step(mode: str, dynamic: bool, case: Case) -> tuple[Step, int]:
    """A mode of transformers' T5, and the places of both sides of its inputs."""
    import torch
    import transformers

    torch.set_num_threads(available_cores())
    config = write_config(case.config.model)
    settings: dict[str, Any] = {name: value for name, value in config.items() if name != "torch_dtype"}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**settings)).train()
    inputs = [micro_batches(case, index) for index in range(len(case.batches))]
    places = sum(batch["input_ids"].numel() + batch["labels"].numel() for batch in itertools.chain(*inputs))
    return shared.make_their_step(model, inputs, mode, dynamic), places


def main(_: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")
    print(f"T5 1.1 small on {apart(machine.describe)}")
    with tempfile.TemporaryDirectory() as folder:
        for setting in shared._settings.value:
            length = 512 if setting == "full" else ROWS[_source.value][0]
            case = functools.partial(full_case if setting == "full" else ragged_case, folder)
            steps = {"ours float32": functools.partial(shared.our_step, "float32")}
            for mode in shared.modes():
                steps[f"transformers {mode}"] = functools.partial(their_step, mode, setting == "ragged")
            shared.report(setting, length, {name: shared.contender(case, step) for name, step in steps.items()})


if __name__ == "__main__":
    app.run(main)
