"""Metrics of generated text, in percent: BLEU and chrF, ROUGE, exact match and token F1."""

import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Protocol

import numpy as np

from lm.errors import InputError

# A word, or a single character of a script that writes no spaces.
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]+")
_CJK = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff]")

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


class _Score(Protocol):
    """What is read of sacrebleu's scores."""

    score: float


def _library(name: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this metric needs {install}; pip install -e '.[metrics]'.") from error


def bleu(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Returns sacrebleu's corpus BLEU (Papineni et al., 2002) and chrF (Popović, 2015).

    Where most targets are Chinese, sacrebleu's tokenizer `zh` splits them into characters. Otherwise the tokenizer is
    mteval's `13a`.
    """
    sacrebleu = _library("sacrebleu", "sacrebleu")
    chinese = sum(map(bool, map(_CJK.search, targets))) > len(targets) / 2
    score = sacrebleu.corpus_bleu(list(outputs), [list(targets)], tokenize="zh" if chinese else "13a")
    return {"bleu": _percent(score), "chrf": _percent(sacrebleu.corpus_chrf(list(outputs), [list(targets)]))}


def chrf(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Returns sacrebleu's corpus chrF (Popović, 2015), the F-score of character n-grams. It needs no words."""
    return {"chrf": _percent(_library("sacrebleu", "sacrebleu").corpus_chrf(list(outputs), [list(targets)]))}


def _percent(score: _Score) -> float:
    """Returns a score of sacrebleu, whose geometric mean of four times 100% is 100.00000000000004."""
    return min(score.score, 100.0)


class _Words:
    """The tokenizer for rouge-score, whose own drops all letters but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Returns mean F-measures of ROUGE-1, -2 and -L (Lin, 2004), from rouge-score, over words or CJK characters."""
    scorer = _library("rouge_score.rouge_scorer", "rouge-score").RougeScorer(
        ["rouge1", "rouge2", "rougeL"], tokenizer=_Words()
    )
    scores = [scorer.score(target, output) for output, target in zip(outputs, targets, strict=True)]
    return {name: 100 * float(np.mean([score[name].fmeasure for score in scores])) for name in scores[0]}


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case. Each CJK character counts as a word."""
    return _WORD.findall(text.lower())


def _normal(text: str) -> str:
    """Returns SQuAD's normal form (Rajpurkar et al., 2016): lower case, no punctuation, no English articles.

    As in MLQA (Lewis et al., 2020), punctuation of every script is removed.
    """
    text = "".join(character for character in text.lower() if not _is_punctuation(character))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact_match(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Returns SQuAD's exact match, F1 over words or CJK characters, and `strict_match` of the texts as they are."""
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


METRICS: dict[str, Metric] = {"bleu": bleu, "chrf": chrf, "rouge": rouge, "exact-match": exact_match}
