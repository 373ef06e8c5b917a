"""How fast batches of NSP pairs come from memory, from a store on disk and from one on S3.

    python -m tests.benchmarks.loader --folder=/tmp/loader [--shards=2] [--window=20] [--places=memory,disk,s3]

The store has synthetic shards of 64 million tokens, as `large_corpus` makes them. One planner thread and one that makes
batches walk through a whole epoch. From disk and from S3 it has windows of 20 million tokens, which are planned and
read on the way; the files on disk are dropped from the system's cache first. From memory it is one window, which is
planned and read before. The server is SeaweedFS on this machine, so its work shares the cores with the loader's.

Each line has the seconds until the rows of every step are known, then tokens a second of the wall's clock and of this
process's CPU. The last lines have the tokens a second at which BERT base and large would use 60% of an H200's peak in
bfloat16.
"""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

import pytest
from absl import flags

from configs import bert_base, bert_large
from lm import cli, tasks
from lm.accelerators import GPUS
from lm.config import DataConfig, ObjectiveConfig
from lm.data.batches import Batches, count_tokens
from lm.data.store import Store
from lm.flops import model_flops
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece
from tests.benchmarks import large_corpus
from tests.storage import servers

_shards = flags.DEFINE_integer("shards", 2, "Of 64 million tokens.", lower_bound=1)
_window = flags.DEFINE_integer("window", 20, "Millions of tokens in a window.", lower_bound=1)
_places = flags.DEFINE_list("places", ["memory", "disk", "s3"], "Where the store is.")

_SHARE = 0.6  # of the chip's peak


def make_store(path: str) -> None:
    """Writes the shards and the manifest of a store, on disk or on S3."""
    tokenizer = SentencePiece.train(["a few words for a tokenizer that is never asked"] * 50, vocab_size=400)
    large_corpus.make_shards(path, tokenizer, _shards.value)


def forget(folder: str) -> None:
    """Drops the files of a folder from the system's cache."""
    os.sync()
    for file in filter(Path.is_file, Path(folder).rglob("*")):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(path: str, place: str, length: int) -> dict[str, object]:
    """Walks through an epoch."""
    began = time.perf_counter()
    in_memory = place == "memory"
    store = Store.open(path, memory_limit=1 << 34 if in_memory else 0)
    data = DataConfig(
        seq_length=length,
        max_segments=max(8, length // 32),
        batch_size=32_768 // length,
        window_tokens=store.train.num_tokens if in_memory else _window.value * 1_000_000,
    )
    row_format = tasks.create_row_format(data, ObjectiveConfig(nsp=True), store.tokenizer.special)
    batches = Batches(store.train, row_format, data, 0)
    known = time.perf_counter() - began
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sum(count_tokens(batches(step))[0] for step in range(int(batches.steps_per_epoch)))
    return {
        "place": place,
        "length": length,
        "rows_known_s": round(known, 2),
        "tokens": tokens,
        "tokens_per_wall_second": round(tokens / (time.perf_counter() - wall)),
        "tokens_per_cpu_second": round(tokens / (time.process_time() - cpu)),
    }


def needed(length: int) -> dict[str, object]:
    """Tokens a second that BERT base and large read at that share of an H200's peak."""
    rates = {}
    for name, config in (("base", bert_base.get_config()), ("large", bert_large.get_config())):
        config.data.seq_length = length
        predicted = config.objective.mask_rate * length
        flops = model_flops(config, predicted) / length
        rates[f"bert_{name}"] = round(_SHARE * GPUS["h200"].peak_flops / flops)
    return {"needed_by": "an H200 at 60%", "length": length, **rates}


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as environment:
        folder = Path(large_corpus._folder.value or temporary)
        for place in _places.value:
            with contextlib.ExitStack() as server:
                path = f"{folder}/store"
                if place == "s3":
                    (folder / "s3").mkdir(parents=True, exist_ok=True)
                    server.enter_context(servers.s3(folder / "s3", environment))
                    path = f"s3://{servers.BUCKET}/store"
                make_store(path)
                for length in (128, 512):
                    if place == "disk":
                        forget(path)
                    print(json.dumps(measure(path, place, length)), flush=True)
    for length in (128, 512):
        print(json.dumps(needed(length)), flush=True)


if __name__ == "__main__":
    cli.run(main)
