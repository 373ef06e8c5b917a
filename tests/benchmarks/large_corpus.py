"""Memory, first batch and resume of the data path, against the size of the corpus.

    python -m tests.benchmarks.large_corpus --folder=/tmp/large [--billions=0.5,1,2,20,156,1700] [--picture=FILE]

The stores are synthetic. A document has 20 sentences of 20 tokens on average, log-normal both, and an id is one of
250. Eight shards of 64 million tokens are written, about 90 MB of files each; every further shard of a store is a
link to one of them, so that a store of any size is made in a minute. Each measurement has a process of its own, with
one planner and one loader thread. It opens the store, makes the first batch, walks into the third window, and reports
its peak memory beyond what Python held after its imports. Another process begins in the middle of epoch 2.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from absl import flags

from lm import cli, tasks
from lm.config import DataConfig, ObjectiveConfig
from lm.data import store as stores
from lm.data.batches import Batches, padding_fraction
from lm.data.manifest import Marker, SplitName
from lm.data.store import Store, Text
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece

_folder = flags.DEFINE_string("folder", None, "Where the stores are made, 1 GB; by default a temporary folder.")
_billions = flags.DEFINE_list("billions", ["0.5", "1", "2", "20", "156", "1700"], "Tokens of the stores.")
_kinds = flags.DEFINE_list("kinds", ["nsp", "text", "spans"], "What to measure, at 2 billion tokens.")
_picture = flags.DEFINE_string("picture", "", "Where to draw memory and times of NSP pairs against the size.")
_measure = flags.DEFINE_string("measure", "", "Used by the script itself: STORE KIND EPOCHS.")

_SHARD = 64_000_000  # tokens
_DISTINCT = 8
_VOCABULARY = 400
_OBJECTIVES = {
    "nsp": ObjectiveConfig(nsp=True),
    "text": ObjectiveConfig(nsp=False),
    "spans": ObjectiveConfig(name="span_corruption"),
}


# --- stores


def make_text(rng: np.random.Generator) -> Text:
    """About 64 million tokens of random documents."""
    documents = np.clip(rng.lognormal(np.log(20) - 0.5, 1, _SHARD // 400), 1, 2_000).astype(np.int64)
    sentences = np.clip(rng.lognormal(np.log(20) - 0.18, 0.6, documents.sum()), 1, 400).astype(np.int64)
    return Text(rng.integers(150, _VOCABULARY, sentences.sum(), np.uint16), sentences, documents)


def make_shards(path: str, tokenizer: SentencePiece, count: int = _DISTINCT) -> list[Marker]:
    """Writes a store of some shards, unless they are there, and returns their markers."""
    markers: list[Marker] = []
    nothing = Text(*[np.zeros(0, np.int64)] * 3)
    for index in range(count):
        (kept,) = stores.read_keys(path, [stores.marker_name(index)])
        if kept:
            markers.append(json.loads(kept))
            continue
        splits: dict[SplitName, Text] = {"train": make_text(np.random.default_rng(index)), "heldout": nothing}
        markers.append(stores.write_shard(path, index, splits, _VOCABULARY, "", (0, 0)))
    stores.write_key(path, tokenizer.file_name, tokenizer.to_bytes())
    stores.finish(path, tokenizer, "documents", {}, markers)
    return markers


def make_store(folder: Path, shared: Path, markers: list[Marker], tokens: float) -> None:
    """Makes a store of so many tokens out of the shared shards, with a manifest as `stores.finish` writes it."""
    (folder / "shards").mkdir(parents=True)
    count = max(1, round(tokens / (sum(marker["train"]["tokens"] for marker in markers) / len(markers))))
    for index in range(count):
        (folder / "shards" / f"{index:05d}").symlink_to(shared / "shards" / f"{index % _DISTINCT:05d}")
    manifest = json.loads((shared / "manifest.json").read_text())
    shutil.copy(shared / manifest["tokenizer"]["file"], folder)
    of_store = [markers[index % _DISTINCT] for index in range(count)]
    counts = {name: sum(marker["train"][name] for marker in of_store) for name in ("documents", "sentences", "tokens")}
    manifest["splits"]["train"] = counts
    manifest["shards"] = [marker["train"]["tokens"] for marker in of_store]
    manifest["blocks"]["train"] = stores._packed([marker["blocks"]["train"] for marker in of_store])
    (folder / "manifest.json").write_text(json.dumps(manifest))


# --- one measurement


def measure(path: str, kind: str, epochs: float) -> dict[str, Any]:
    """Takes batches from a point in the training on: of its first window, then of the two after it."""
    process = psutil.Process()
    before = process.memory_info().rss
    began = time.perf_counter()
    store = Store.open(path)
    opened = time.perf_counter() - began
    data = DataConfig(seq_length=512, target_length=114, max_segments=16, batch_size=256)
    row_format = tasks.create_row_format(data, _OBJECTIVES[kind], store.tokenizer.special)
    batches = Batches(store.train, row_format, data, 0)
    counted = time.perf_counter() - began
    start = int(epochs * batches.steps_per_epoch)
    batches(start)
    first = time.perf_counter() - began
    window = data.window_tokens * batches.steps_per_epoch / store.train.num_tokens  # steps
    steps = np.linspace(start + 1, start + 2.6 * window, 60).astype(int).tolist()
    padding = [padding_fraction(batches(step)) for step in steps]
    # Linux adds to ru_maxrss what the parent held when it started this process, but not to VmHWM.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {
        "kind": kind,
        "billions": round(store.train.num_tokens / 1e9, 2),
        "from_epoch": epochs,
        "manifest_MB": round(os.path.getsize(f"{path}/manifest.json") / 1e6, 2),
        "open_s": round(opened, 2),
        "rows_known_s": round(counted, 2),
        "first_batch_s": round(first, 2),
        "cpu_s": round(time.process_time(), 1),
        "peak_MiB": round(int(peak) / 1024 - before / 2**20),
        "imports_MiB": round(before / 2**20),
        "padding": round(float(np.mean(padding)), 5),
    }


def run(path: Path, kind: str, epochs: float) -> dict[str, Any]:
    """Measures in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.large_corpus", f"--measure={path} {kind} {epochs}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    print(result.stdout, end="", flush=True)
    return json.loads(result.stdout)


def draw(found: list[dict[str, Any]], path: str) -> None:
    """Peak memory, and seconds to the first batch, of NSP pairs against the size of the corpus."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for epochs, label in ((0.0, "start"), (2.5, "resume in the middle of epoch 2")):
        rows = [row for row in found if row["kind"] == "nsp" and row["from_epoch"] == epochs]
        sizes = [row["billions"] for row in rows]
        panels[0].plot(sizes, [row["peak_MiB"] for row in rows], "o-", label=label)
        panels[1].plot(sizes, [row["first_batch_s"] for row in rows], "o-", label=label)
    for panel, title in zip(panels, ("peak memory, MiB", "first batch, s"), strict=True):
        panel.set(xscale="log", xlabel="tokens of the corpus, billions", title=title, ylim=(0, None))
        panel.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    if _measure.value:
        path, kind, epochs = _measure.value.split()
        print(json.dumps(measure(path, kind, float(epochs))), flush=True)
        return
    folder = Path(_folder.value or tempfile.mkdtemp())
    tokenizer = SentencePiece.train(["a few words for a tokenizer that is never asked"] * 50, vocab_size=400)
    markers = make_shards(f"{folder}/shared", tokenizer)
    found = []
    for billions in map(float, _billions.value):
        path = folder / f"{billions:g}"
        make_store(path, folder / "shared", markers, billions * 1e9)
        for kind in _kinds.value if billions == 2 else _kinds.value[:1]:
            found += [run(path, kind, epochs) for epochs in (0.0, 2.5)]
        shutil.rmtree(path)
    if _picture.value:
        draw(found, _picture.value)


if __name__ == "__main__":
    cli.run(main)
