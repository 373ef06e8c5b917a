"""Scores what a model writes against held-out targets, next to two baselines without a model.

The baseline `copy` returns the source itself. `nearest` is a translation memory: it returns the target of the most
similar training source.
"""

import dataclasses
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
from etils import epath
from scipy import sparse  # comes with jax

from lm import checkpoint
from lm.config import DataConfig
from lm.data import corpus, files, mixture, workers
from lm.data.pairs import QUESTION, TRANSLATION, Pair
from lm.data.store import Store, read_pairs
from lm.errors import InputError
from lm.inference.load import Loaded, load
from lm.inference.metrics import METRICS
from lm.inference.predict import Options, Predictor


class Scores(TypedDict):
    """The number of pairs of one kind, and their scores in percent. `nearest` needs the training pairs of the run."""

    examples: int
    model: dict[str, float]
    copy: dict[str, float]
    nearest: NotRequired[dict[str, float]]


class Shown(TypedDict):
    """A pair, and what the model wrote for its source."""

    source: str
    target: str
    written: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The scores of a model and of the baselines.

    Attributes:
        scores: kind of pair -> scores. A kind is a language, or `all`; in a mixture it is `TASK` or `TASK/LANGUAGE`.
        shown: some of the pairs.
        left_out: for each line of the file that holds no pair, what is wrong with it.
    """

    scores: dict[str, Scores]
    shown: list[Shown]
    left_out: list[str] = dataclasses.field(default_factory=list)


def compare(
    path: str, metric: str, *, input_path: str = "", limit: int = 1000, shown: int = 0, num_beams: int | None = None
) -> Comparison:
    """Writes a text for the source of each held-out pair, and scores it against the target.

    Args:
        path: `WORKDIR` or `WORKDIR/checkpoints/N`.
        metric: `bleu` (with chrF), `chrf`, `rouge` or `exact-match` (with F1).
        input_path: a TSV or .jsonl file of pairs, with sources worded as in training. If it is empty, the pairs are
            those of the run's held-out split.
        limit: how many pairs to use, in a fixed random choice; 0 for all.
        shown: how many of these pairs to return, evenly spread.
        num_beams: the number of beams; 1 is greedy; None is the model's default.

    Raises:
        InputError: checkpoint, store or file cannot be used, or the metric's library is not installed.
    """
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; accepted: {', '.join(METRICS)}.")
    METRICS[metric](["a"], ["a"])  # reports a missing library before anything is written
    if input_path:  # reports a missing file before the model is loaded
        corpus.shards(corpus.on_files(checkpoint.read_config(checkpoint.locate(path)[0]), input_path, "tsv"))
    loaded = load(path)
    write = Predictor(loaded).pipeline("generate", Options(decoding={"num_beams": num_beams}))
    pairs, train, left_out = _pairs(loaded, input_path)
    if not pairs:
        if input_path:
            reason = f" ({left_out[0]})" if left_out else ""
            raise InputError(f"{input_path} holds no pair{reason}; give a file with pairs.")
        raise InputError("the run holds out no pair to evaluate on; give an --input with pairs.")
    if limit and len(pairs) > limit:
        pairs = [pairs[i] for i in np.sort(np.random.default_rng(0).choice(len(pairs), limit, replace=False))]
    sources = [pair.source for pair in pairs]
    if not input_path:
        sources = [mixture.prefixed(loaded.config, pair.group, pair.source) for pair in pairs]
    with workers.announced(f"writing {len(sources):,} texts with {path}"):
        answers = list(write(sources))
    answered = [(pair, answer) for pair, answer in zip(pairs, answers, strict=True) if "error" not in answer]
    left_out += [
        f"{source[:60]!r}: {each['error']}" for source, each in zip(sources, answers, strict=True) if "error" in each
    ]
    if not answered:
        raise InputError(f"no text could be written: {left_out[-1]}")
    pairs, outputs = [pair for pair, _ in answered], [answer["text"] for _, answer in answered]
    shown = min(shown, len(pairs))
    places = [len(pairs) * number // shown for number in range(shown)]
    return Comparison(
        scores=_scores(metric, pairs, outputs, train),
        shown=[{"source": pairs[i].source, "target": pairs[i].target, "written": outputs[i]} for i in places],
        left_out=left_out,
    )


def _pairs(loaded: Loaded, input_path: str) -> tuple[list[Pair], list[Pair], list[str]]:
    """Returns the pairs to score, the run's training pairs, and what is wrong with the lines that hold no pair.

    The pairs are those of a file or of the run's held-out split. A store that is gone has no training pairs.
    """
    folder = checkpoint.store_path(loaded.config, epath.Path(loaded.workdir))
    try:
        stores = mixture.open_to_evaluate(loaded.config, folder, loaded.tokenizer)
    except InputError:
        if not input_path:
            raise
        stores = {}
    train = _stored(stores, "train")
    if not input_path:
        return _stored(stores, "heldout"), train, []
    pairs, left_out = read_lines(corpus.on_files(loaded.config, input_path, "tsv"))
    return pairs, train, left_out


def read_lines(config: DataConfig) -> tuple[list[Pair], list[str]]:
    """Returns the pairs of files, line by line, and what is wrong with each line that holds none.

    Raises:
        InputError: a file cannot be read at all.
    """
    pairs: list[Pair] = []
    left_out: list[str] = []
    for shard in corpus.shards(config):
        for path in shard.files:
            whole = dataclasses.replace(shard, files=(path,))
            if config.source == "parquet":  # it has no lines to read one by one
                pairs += (each for each in corpus.read(whole) if isinstance(each, Pair))
                continue
            found, first = _until_refused(whole)
            if first is None:
                pairs += found
                continue
            stop = shard.stop
            for offset, line in files.lines(path, shard.start):
                if 0 <= stop <= offset:
                    break
                found, wrong = _until_refused(dataclasses.replace(whole, start=offset, stop=offset + len(line)))
                pairs += found
                left_out += [wrong] if wrong else []
    return pairs, left_out


def _until_refused(shard: corpus.Shard) -> tuple[list[Pair], str | None]:
    """Returns the pairs of a shard up to the first that is refused, and the reason; None where none is refused."""
    found: list[Pair] = []
    try:
        found += (each for each in corpus.read(shard) if isinstance(each, Pair))
    except InputError as error:
        return found, str(error)
    return found, None


def _stored(stores: dict[str, Store], split: str) -> list[Pair]:
    """Returns the pairs of a split. In a mixture each pair's group is its task; tasks without pairs are left out."""
    return [
        pair._replace(group=name)
        for name, store in stores.items()
        if not name or store.kind == "pairs"
        for pair in read_pairs(store, getattr(store, split))
    ]


def _scores(metric: str, pairs: Sequence[Pair], outputs: Sequence[str], train: Sequence[Pair]) -> dict[str, Scores]:
    compute = METRICS[metric]
    kinds = [_kind(pair) for pair in pairs]
    found: dict[str, Scores] = {}
    for kind in dict.fromkeys(kinds):
        index = [i for i, each in enumerate(kinds) if each == kind]
        sources, targets = [pairs[i].source for i in index], [pairs[i].target for i in index]
        copies = [QUESTION.sub("", TRANSLATION.sub("", source)) for source in sources]
        found[kind] = {
            "examples": len(index),
            "model": compute([outputs[i] for i in index], targets),
            "copy": compute(copies, targets),
        }
        if memory := [pair for pair in train if _kind(pair) == kind] or train:
            found[kind]["nearest"] = compute(nearest(sources, memory), targets)
    return found


def _kind(pair: Pair) -> str:
    match = TRANSLATION.match(pair.source)
    return "/".join(filter(None, (pair.group, match and match[1]))) or "all"


def nearest(sources: Sequence[str], memory: Sequence[Pair]) -> list[str]:
    """Returns for each source the target of the most similar training source.

    Similarity is the cosine of TF-IDF vectors over character trigrams.
    """
    ids: dict[str, int] = {}

    def counts(texts: Sequence[str], learn: bool) -> sparse.csr_matrix:
        rows, columns = [], []
        for row, text in enumerate(texts):
            text = f"  {TRANSLATION.sub('', text).lower()} "
            for start in range(len(text) - 2):
                trigram = text[start : start + 3]
                column = ids.setdefault(trigram, len(ids)) if learn else ids.get(trigram)
                if column is not None:
                    rows.append(row)
                    columns.append(column)
        return sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(len(texts), len(ids)))

    known = counts([pair.source for pair in memory], learn=True)
    rarity = np.log(len(memory) / np.maximum(np.bincount(known.indices, minlength=len(ids)), 1)).astype(np.float32) + 1

    def weighted(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
        matrix = matrix.multiply(rarity[None]).tocsr()
        norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        return sparse.diags(1 / np.maximum(norms, 1e-9)) @ matrix

    known = weighted(known).T.tocsr()
    found: list[str] = []
    for start in range(0, len(sources), 64):  # a block at a time: the product is nearly dense
        asked = weighted(counts(sources[start : start + 64], learn=False))
        found += [memory[int(i)].target for i in np.asarray((asked @ known).argmax(axis=1)).ravel()]
    return found
