"""How well a model writes: BLEU, chrF, ROUGE, exact match and token F1, beside two baselines that know no model.

`copy` gives the source itself; `nearest` is a translation memory: the target of the training source most like the
one that is asked.
"""

import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lm import checkpoint
from lm.config import DataConfig
from lm.data import corpus, mixture
from lm.data.pairs import QUESTION, TRANSLATION, Pair
from lm.data.store import Store, read_pairs
from lm.errors import InputError
from lm.inference import requests
from lm.inference.write import Writer, with_defaults

# A word, or a character of a language that writes none apart.
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+")
_CJK = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]")

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def evaluate(
    path: str,
    metric: str,
    *,
    input_path: str = "",
    limit: int = 1000,
    shown: int = 0,
    num_beams: int = 1,
) -> dict[str, Any]:
    """Writes from the sources of held-out pairs and compares with their targets.

    Args:
        path: `WORKDIR` or `WORKDIR/checkpoints/N`.
        metric: `bleu` (and chrF), `rouge` or `exact-match` (and F1).
        input_path: pairs in a TSV or .jsonl file, their sources worded as in training; empty for the held-out split
            of the run's store.
        limit: pairs to use, a fixed random choice; 0 for all.
        shown: so many of them are returned, evenly spread over all.
        num_beams: hypotheses of beam search; 1 is greedy.

    Returns:
        For every language, or `all`, and in a mixture for every task, as `TASK` or `TASK/LANGUAGE`, `{"examples",
        "model", "copy", "nearest"}`, each of the last three the values of the metric in percent; `nearest` only for
        held-out pairs of a store. And `shown`.

    Raises:
        InputError: checkpoint, store or file cannot be used, or the metric's library is not installed.
    """
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; accepted: {', '.join(METRICS)}.")
    compute = METRICS[metric]
    compute(["a"], ["a"])  # if its library is missing it says so now, not after everything is written
    workdir, config, params, tokenizer = requests.load(path)
    writer = Writer(config, params, tokenizer)
    train: list[Pair] = []
    if input_path:
        pairs = _read(input_path, config.data)
    else:
        stores = mixture.open_stores(config, checkpoint.store_path(config, workdir), tokenizer)
        pairs, train = _stored(stores, "heldout"), _stored(stores, "train")
    if not pairs:
        where = f"{input_path} holds no pair" if input_path else "the run holds out no pair"
        raise InputError(f"{where} to evaluate on; set data.heldout_fraction above 0, or give an --input with pairs.")
    if limit and len(pairs) > limit:
        pairs = [pairs[i] for i in np.sort(np.random.default_rng(0).choice(len(pairs), limit, replace=False))]
    sources = [pair.source if input_path else mixture.prefixed(config, pair.group, pair.source) for pair in pairs]
    written = writer.write(sources, with_defaults(writer, num_beams=num_beams))
    outputs = [answer.get("text", "") for answer in written]

    found: dict[str, Any] = {}
    kinds = [_kind(pair) for pair in pairs]
    for kind in dict.fromkeys(kinds):
        index = [i for i, each in enumerate(kinds) if each == kind]
        sources, targets = [pairs[i].source for i in index], [pairs[i].target for i in index]
        copies = [QUESTION.sub("", TRANSLATION.sub("", source)) for source in sources]
        candidates = {"model": [outputs[i] for i in index], "copy": copies}
        memory = [pair for pair in train if _kind(pair) == kind]
        if memory:
            candidates["nearest"] = nearest(sources, memory)
        scores = {name: compute(texts, targets) for name, texts in candidates.items()}
        found[kind] = {"examples": len(index), **scores}
    shown = min(shown, len(pairs))
    places = [len(pairs) * number // shown for number in range(shown)]
    found["shown"] = [
        {"source": pairs[place].source, "target": pairs[place].target, "written": outputs[place]} for place in places
    ]
    return found


def _read(path: str, data: DataConfig) -> list[Pair]:
    if ".jsonl" in path:
        config = DataConfig(source="jsonl", path=path, field=data.field, target_field=data.target_field or "target")
    else:
        config = DataConfig(source="tsv", path=path)
    documents = corpus.documents(config)
    return [each for each in documents if isinstance(each, Pair)]


def _stored(stores: dict[str, Store], split: str) -> list[Pair]:
    """The pairs of a run, their group being the task; a mixture's other tasks have none."""
    return [
        pair._replace(group=name)
        for name, store in stores.items()
        if not name or store.kind == "pairs"
        for pair in read_pairs(store, getattr(store, split))
    ]


def _kind(pair: Pair) -> str:
    match = TRANSLATION.match(pair.source)
    return "/".join(filter(None, (pair.group, match and match[1]))) or "all"


def nearest(sources: Sequence[str], memory: Sequence[Pair]) -> list[str]:
    """The target of the training source most like each source, by the cosine of TF-IDF over character trigrams."""
    from scipy import sparse  # comes with jax

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


# ---- Metrics ----------------------------------------------------------------------------------


def _library(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this metric needs {install}; pip install 'lm[metrics]'.") from error


def bleu(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU (Papineni et al., 2002) and chrF (Popović, 2015) as sacrebleu computes them.

    Chinese targets are cut into characters (sacrebleu's tokenizer `zh`), others as mteval's 13a does.
    """
    sacrebleu = _library("sacrebleu", "sacrebleu")
    chinese = sum(map(bool, map(_CJK.search, targets))) > len(targets) / 2
    score = sacrebleu.corpus_bleu(list(outputs), [list(targets)], tokenize="zh" if chinese else "13a")
    return {"bleu": score.score, "chrf": sacrebleu.corpus_chrf(list(outputs), [list(targets)]).score}


class _Words:
    """The tokenizer that ROUGE is given: its own knows no letters but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, -2 and -L (Lin, 2004) by Google's rouge-score, over words or CJK characters."""
    scorer = _library("rouge_score.rouge_scorer", "rouge-score").RougeScorer(
        ["rouge1", "rouge2", "rougeL"], tokenizer=_Words()
    )
    scores = [scorer.score(target, output) for output, target in zip(outputs, targets, strict=True)]
    return {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in scores[0]}


def words(text: str) -> list[str]:
    """Lower-case words; CJK characters one by one."""
    return _WORD.findall(text.lower())


def _normal(text: str) -> str:
    """SQuAD's normal form (Rajpurkar et al., 2016): lower case, no punctuation, no English articles.

    As in MLQA (Lewis et al., 2020) the punctuation of every script counts.
    """
    text = "".join(character for character in text.lower() if not _is_punctuation(character))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact_match(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact match and token F1, the latter over words or CJK characters; and equality to the letter."""
    overlaps = []
    for output, target in zip(outputs, targets, strict=True):
        said, meant = Counter(words(_normal(output))), Counter(words(_normal(target)))
        shared = sum((said & meant).values())
        total = sum(said.values()) + sum(meant.values())
        overlaps.append(2 * shared / total if total else float(_normal(output) == _normal(target)))
    matches = [_normal(output) == _normal(target) for output, target in zip(outputs, targets, strict=True)]
    strict = [output == target for output, target in zip(outputs, targets, strict=True)]
    return {
        name: 100 * float(np.mean(values))
        for name, values in (("exact_match", matches), ("f1", overlaps), ("strict_match", strict))
    }


METRICS: dict[str, Metric] = {"bleu": bleu, "rouge": rouge, "exact-match": exact_match}
