"""How fast text becomes a store and a store becomes batches, in tokens a second on one core; and the padding.

Beside it, how fast near-duplicates are looked for: megabytes of text a second for the keys, documents a second and
bytes of memory a document for the comparison.

    python -m tests.benchmarks.data_path --store=runs/benchmark/store

The corpus is the embedded one. Writing is timed from a .jsonl file of its documents, with the tokenizer given and
one worker: read, split into sentences, encode, write. Batches are built by one thread from tokens in memory.
CPU seconds are this process's; on a busy machine they tell more than the wall's.
"""

import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from absl import flags

from lm import cli, tasks
from lm.config import DataConfig, ObjectiveConfig
from lm.data import batches, corpus, minhash, near_duplicates, prepare

_store = flags.DEFINE_string("store", "runs/benchmark/store", "Token store of the embedded corpus; made if missing.")
_documents = flags.DEFINE_integer("documents", 10_000_000, "Random documents to compare.", lower_bound=1)
_steps = flags.DEFINE_integer("steps", 200, "Batches to build.", lower_bound=1)


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of `work`, and what it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def report(name: str, tokens: int, took: dict[str, float], **more: Any) -> None:
    rates = {
        "tokens_per_wall_second": round(tokens / took["wall_seconds"]),
        "tokens_per_cpu_second": round(tokens / took["cpu_seconds"]),
    }
    print(json.dumps({"what": name, "tokens": tokens, **rates, **more}), flush=True)


def measure_writing(config: DataConfig) -> None:
    """Writes the whole corpus as a store, from JSON lines and with a given tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "corpus.jsonl"
        with file.open("w", encoding="utf-8") as out:
            for document in corpus.documents(config):
                out.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
        again = DataConfig(source="jsonl", path=str(file), tokenizer=_store.value, vocab_size=config.vocab_size)
        make = lambda: prepare.prepare(again, f"{folder}/store", num_workers=1, progress=False)  # noqa: E731
        store, took = timed(make)
        report("write the store", store.train.num_tokens + store.heldout.num_tokens, took)


def measure_near_duplicates(config: DataConfig, tokens: int) -> None:
    """Computes the keys of the whole corpus at a threshold of 0.8, then compares millions of random keys."""
    bands, rows = minhash.banding(0.8)
    texts = [document for document in corpus.documents(config) if isinstance(document, str)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    keys, took = timed(lambda: minhash.keys(texts, bands, rows))
    hashes = np.array([corpus.split_hash(text) for text in texts], np.uint64)
    left_out = float((near_duplicates.originals(hashes, keys) != np.arange(len(texts))).mean())
    megabytes_per_cpu_second = round(megabytes / took["cpu_seconds"], 1)
    report("keys", tokens, took, megabytes_per_cpu_second=megabytes_per_cpu_second, left_out=round(left_out, 4))
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, _documents.value).astype(np.uint64)
    of_bands = (rng.integers(0, 1 << 63, len(hashes)).astype(np.uint64) for _ in range(bands))
    before = psutil.Process().memory_info().rss
    _, took = timed(lambda: near_duplicates.originals(hashes, of_bands))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {
        "what": "compare random keys",
        "documents": len(hashes),
        "documents_per_cpu_second": round(len(hashes) / took["cpu_seconds"]),
        "bytes_a_document": round((peak - before) / len(hashes)),
    }
    print(json.dumps(figures), flush=True)


def settings() -> Iterator[tuple[str, int, int, ObjectiveConfig]]:
    for length, segments in ((128, 8), (512, 16)):
        yield "NSP pairs", length, segments, ObjectiveConfig(nsp=True)
        yield "running text", length, segments, ObjectiveConfig(nsp=False)


def main() -> None:
    config = DataConfig(vocab_size=8192)
    store = prepare.prepare(config, _store.value)
    measure_near_duplicates(config, store.train.num_tokens + store.heldout.num_tokens)
    measure_writing(config)
    for name, length, segments, objective in settings():
        data = DataConfig(seq_length=length, max_segments=segments, batch_size=32 * 128 // length * 8)
        row_format = tasks.create_row_format(data, objective, store.tokenizer.special)
        build = lambda: batches.Batches(store.train, row_format, data, 0)  # noqa: B023, E731
        source, took = timed(build)
        report(f"plan an epoch, {name}, {length}", store.train.num_tokens, took)
        built, took = timed(lambda: [source(step) for step in range(_steps.value)])  # noqa: B023
        tokens = sum(int((batch["segments"] > 0).sum()) for batch in built)
        padding = float(np.mean([batches.padding_fraction(batch) for batch in built]))
        report(f"build batches, {name}, {length}", tokens, took, padding_fraction=round(padding, 5))


if __name__ == "__main__":
    cli.run(main)
