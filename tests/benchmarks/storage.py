"""Throughput of store, loader and checkpoint on a disk and on an S3 server, at one and at ten times a size.

python -m tests.benchmarks.storage [--folder=DIR] [--megabytes=64] [--scales=1,10] [--picture=FILE]

The server is SeaweedFS on this machine. Prints a JSON object a line: MB/s of writing
and reading a token store, rows a second of the loader, and of a checkpoint: seconds that the loop waits in a save,
MB/s until it is complete and of its restoration, files, and bytes sent to the reader per byte restored, onto the mesh
it was saved from and onto another.
"""

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import checkpoint, cli, storage
from lm.config import CheckpointConfig
from lm.data import store as stores
from lm.data.store import Store, Text
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece
from tests.storage import servers
from tests.storage.proxy import PASS, running

_folder = flags.DEFINE_string("folder", None, "Where to write on disk; by default a temporary folder.")
_megabytes = flags.DEFINE_integer("megabytes", 64, "Of tokens and of parameters, at scale 1.", lower_bound=1)
_scales = flags.DEFINE_list("scales", ["1", "10"], "Multiples of that size.")

_picture = flags.DEFINE_string("picture", "", "Where to draw the rates.")

_ROW = 512  # tokens that the loader reads at once


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def time_store(path: str, megabytes: int) -> dict[str, float]:
    """Writes and opens a store of uint16 tokens in shards of 32 MB, then reads rows at random from storage."""
    tokenizer = SentencePiece.train(["a few words for a tokenizer that is never asked"] * 50, vocab_size=400)
    rng = np.random.default_rng(0)
    count = max(1, megabytes // 32)
    lengths = np.full((megabytes << 19) // count // 64, 64)
    texts = [Text(rng.integers(10, 390, lengths.sum()), lengths, np.full(len(lengths) // 8, 8)) for _ in range(count)]
    nothing = Text(*[np.zeros(0, np.int64)] * 3)

    def write() -> None:
        stores.write_key(path, tokenizer.file_name, tokenizer.to_bytes())
        markers = [
            stores.write_shard(path, index, {"train": text, "heldout": nothing}, 400, "", (0, 0))
            for index, text in enumerate(texts)
        ]
        stores.finish(path, tokenizer, "documents", {}, markers)

    written = _seconds(write)
    opened = _seconds(lambda: Store.open(path))
    split = Store.open(path, memory_limit=0).train
    starts = rng.integers(0, split.num_tokens - _ROW, (20, 32))
    rows = _seconds(lambda: [split.read(batch, np.full(32, _ROW)) for batch in starts])
    return {
        "store write MB/s": megabytes / written,
        "store read MB/s": megabytes / opened,
        "random rows/s": starts.size / rows,
        "store files": len(storage.list_keys(path)),
    }


def time_checkpoint(path: str, megabytes: int, sent: Callable[[Callable[[], object]], int] | None) -> dict[str, float]:
    """Saves and restores parameters and two moments of them, split over eight devices; then over two by four.

    Args:
        sent: the bytes that a server sends while something is done.
    """
    devices = np.array(jax.devices())
    mesh, other = Mesh(devices, ("a",)), Mesh(devices.reshape(2, 4), ("b", "c"))
    width = 2048
    rows = (megabytes << 20) // (3 * 4 * width * 4)  # three trees of four arrays of float32
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((rows // 8 * 8, width), np.float32) for _ in range(4)]
    place = NamedSharding(mesh, PartitionSpec("a"))
    tree = {str(index): jax.device_put(value, place) for index, value in enumerate(values)}
    state = {"params": tree, "opt": {"m": tree, "v": tree}, "step": np.int32(1)}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    saved = checkpoint.Checkpoints(path, CheckpointConfig(keep=1))
    saved.save(1, state)  # compiles the checksums
    saved.close()
    saved = checkpoint.Checkpoints(path, CheckpointConfig(keep=1))
    began = time.perf_counter()
    saved.save(2, state)
    stall = time.perf_counter() - began
    saved.close()
    complete = time.perf_counter() - began
    folder = f"{path}/checkpoints/2"
    files = storage.list_keys(folder)
    found = {
        "checkpoint MB": size,
        "save: loop waits s": stall,
        "save MB/s": size / complete,
        "checkpoint files": len(files),
    }
    stored = sum(storage.size(f"{folder}/{name}") for name in files)
    replicated = NamedSharding(mesh, PartitionSpec())
    for name, split in ("restore", place), ("reshard", NamedSharding(other, PartitionSpec("b", "c"))):
        shardings = jax.tree.map(lambda leaf, to=split: to if np.ndim(leaf) else replicated, state)
        abstract = checkpoint.abstract_like(state, shardings)
        saved = checkpoint.Checkpoints(path, CheckpointConfig(keep=1))
        restore = functools.partial(
            lambda saved, abstract: jax.block_until_ready(saved.restore(abstract)), saved, abstract
        )
        found[f"{name} MB/s"] = size / _seconds(restore)
        if sent:
            found[f"{name}: bytes read per byte stored"] = sent(restore) / stored
        saved.close()
    return found


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[tuple[str, Callable[[Callable[[], object]], int]]]:
    """An S3 folder, and what counts the bytes that it sends while something is done; that is slower."""
    (folder / "server").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        port = stack.enter_context(servers.s3(folder / "server", patch))
        proxy = stack.enter_context(running(port, lambda head: PASS))

        def sent(work: Callable[[], object]) -> int:
            before = proxy.sent
            with pytest.MonkeyPatch.context() as inner:
                inner.setenv("AWS_ENDPOINT_URL", proxy.url)
                work()
            return proxy.sent - before

        yield f"s3://{servers.BUCKET}", sent


def draw(found: list[dict[str, Any]], path: str) -> None:
    """A panel for each place, MB/s at each size, and one of the loader's rows."""
    import matplotlib.pyplot as plt

    names = ["store write MB/s", "store read MB/s", "save MB/s", "restore MB/s", "reshard MB/s"]
    places = list(dict.fromkeys(each["on"] for each in found))
    sizes = list(dict.fromkeys(each["megabytes"] for each in found))
    figure, panels = plt.subplots(
        1, len(places) + 1, figsize=(10, 3.2), layout="constrained", width_ratios=[2] * len(places) + [1]
    )
    for index, size in enumerate(sizes):
        of_size = {each["on"]: each for each in found if each["megabytes"] == size}
        for panel, place in zip(panels, places, strict=False):
            at = np.arange(len(names)) + (0.8 * index + 0.4) / len(sizes) - 0.4
            panel.bar(at, [of_size[place][name] for name in names], 0.72 / len(sizes), label=f"{size} MB")
        at = np.arange(len(places)) + (0.8 * index + 0.4) / len(sizes) - 0.4
        panels[-1].bar(at, [of_size[place]["random rows/s"] for place in places], 0.72 / len(sizes))
    for panel, place in zip(panels, places, strict=False):
        panel.set_xticks(range(len(names)), [name.removesuffix(" MB/s").replace(" ", "\n") for name in names])
        panel.set(title=f"on {place}", ylabel="MB/s")
    panels[0].legend(frameon=False)
    panels[-1].set_xticks(range(len(places)), places)
    panels[-1].set(title=f"loader, rows of {_ROW}", ylabel="rows/s")
    figure.savefig(path, dpi=150)


def main() -> None:
    folder = Path(_folder.value or tempfile.mkdtemp())
    everything = []
    with _server(folder) as (url, sent):
        for place, path, counting in (("disk", str(folder / "disk"), None), ("s3", url, sent)):
            for scale in map(int, _scales.value):
                megabytes = scale * _megabytes.value
                at = f"{path}/{scale}"
                found = {**time_store(f"{at}/store", megabytes), **time_checkpoint(at, megabytes, counting)}
                everything.append({"on": place, "megabytes": megabytes, **{k: round(v, 3) for k, v in found.items()}})
                print(json.dumps(everything[-1]), flush=True)
                storage.delete_folder(path, str(scale))
    shutil.rmtree(folder / "server")
    if _picture.value:
        draw(everything, _picture.value)


if __name__ == "__main__":
    cli.run(main)
