"""The section `data`: which text, which tokenizer, which rows."""

import dataclasses
from typing import Any

from lm.config.bounds import check, setting
from lm.errors import InputError

_DOCUMENT_SOURCES = ("installed-docs", "text", "jsonl", "parquet")
_PAIR_SOURCES = ("tsv", "gettext", "dates", "docs-questions")
# Fields of a text -> the sources that read them.
_READ_BY = {
    "path": ("text", "jsonl", "parquet", "tsv", "gettext"),
    "field": ("jsonl", "parquet"),
    "target_field": ("jsonl", "parquet"),
    "languages": ("gettext",),
}


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """Which text is read, with which tokenizer, and how it fills the rows of a batch.

    Attributes:
        source: where the text comes from. Documents: `installed-docs` (docstrings of this Python installation, no
            download), `text`, `jsonl` or `parquet`. Pairs of a source and a target: `tsv`, `gettext` (message
            catalogues), `dates` (generated), `docs-questions` (made from installed docstrings), and `jsonl` or
            `parquet` where `target_field` is set.
        path: a file, a folder or a glob, or several separated by commas. Not used by `installed-docs`, `dates` and
            `docs-questions`. `gettext` reads the catalogues of this machine where it is empty.
        field: the JSON or Parquet field that holds a document's text, or a pair's source.
        target_field: the JSON or Parquet field that holds a pair's target; empty where records are documents.
        languages: the target languages of `gettext`, named like its folders and separated by commas: `de,zh_CN`.
        store: the folder of the token store; empty means `WORKDIR/store`. If it is complete, a run takes the settings
            that decide its content from it: text, tokenizer and held-out share.
        tokenizer: an existing tokenizer to use: its file, or a folder with one, such as the WORKDIR of another run.
            Empty means that one is trained on the corpus.
        tokenizer_kind: the kind of tokenizer to train: `unigram` or `bpe`.
        vocab_size: pieces of the tokenizer to train, special ids and byte pieces included: 400 or more.
        split_digits: whether the tokenizer to train makes each digit a piece of its own; otherwise frequent numbers
            become pieces too.
        heldout_fraction: the share of documents kept for evaluation.
        near_duplicates: the Jaccard similarity, 0.5 to 1, from which on documents are near-duplicates. One of several
            stays, a held-out one if there is one: training documents that are nearly equal to a held-out one are
            listed in `STORE/leaks.jsonl`. 0.8 leaves out texts of which one word in forty differs, 1 those that
            differ only in case, spaces and punctuation. 0 leaves nothing out.
        seq_length: tokens in a row, special tokens included. In an encoder-decoder: in a row of the encoder.
        target_length: tokens in a row of an encoder-decoder's decoder.
        begin_with_cls: whether an encoder-decoder's sources and targets begin with [CLS], as BART's do; T5's only
            end with [SEP]. An encoder's inputs always begin with [CLS].
        batch_size: rows in a global batch, summed over all processes and micro-batches.
        max_segments: the largest number of examples in a row. The larger of 8 and seq_length / 32 kept padding under
            1% on every kind of text that we measured.
        window_tokens: tokens of text that are planned, packed and shuffled at a time. A process holds two windows of
            each text in memory. A corpus of at most one and a half times as many tokens is one window.
        short_seq_prob: how often an NSP pair gets a random, shorter target length (BERT: 0.1).
    """

    source: str = setting("installed-docs", one_of=(*_DOCUMENT_SOURCES, *_PAIR_SOURCES))
    path: str = ""
    field: str = "text"
    target_field: str = ""
    languages: str = ""
    store: str = ""
    tokenizer: str = ""
    tokenizer_kind: str = setting("unigram", one_of=("unigram", "bpe"))
    vocab_size: int = setting(8192, at_least=1)
    split_digits: bool = False
    heldout_fraction: float = setting(0.02, within=(0.0, 0.5))
    near_duplicates: float = setting(0.0, within=(0.0, 1.0))
    seq_length: int = setting(128, at_least=8)
    target_length: int = setting(128, at_least=4)
    begin_with_cls: bool = False
    batch_size: int = setting(32, at_least=1)
    max_segments: int = setting(8, at_least=1)
    window_tokens: int = setting(100_000_000, at_least=1)
    short_seq_prob: float = setting(0.1, within=(0.0, 1.0))

    @property
    def pairs(self) -> bool:
        """Whether the corpus holds pairs of a source and a target instead of documents."""
        return self.source in _PAIR_SOURCES or bool(self.target_field)

    def _unread(self) -> dict[str, Any]:
        """Returns the fields that the source does not read but that are set, with their defaults."""
        defaults = {name: DataConfig.__dataclass_fields__[name].default for name in _READ_BY}
        is_unread = lambda name: self.source not in _READ_BY[name] and getattr(self, name) != defaults[name]  # noqa: E731
        return {name: default for name, default in defaults.items() if is_unread(name)}

    def only_read(self) -> "DataConfig":
        """Returns the section without what its source does not read, as a run of an earlier version may have it."""
        return dataclasses.replace(self, **self._unread())

    def validate(self) -> None:
        """Checks every field, and the fields that must agree.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("data", self)
        if self.source in ("text", "jsonl", "parquet", "tsv") and not self.path:
            raise InputError(f"data.path is empty; data.source={self.source} needs a file, folder or glob.")
        for name, default in self._unread().items():
            raise InputError(
                f"data.{name} is {getattr(self, name)!r}, but data.source={self.source} does not read it; leave it "
                f"{repr(default) if default else 'empty'}, or set data.source to {' or '.join(_READ_BY[name])}."
            )
        if 0 < self.near_duplicates < 0.5:
            raise InputError(
                f"data.near_duplicates is {self.near_duplicates}; accepted: a similarity from 0.5 to 1, such as 0.8, "
                "or 0 to leave nothing out."
            )
        if self.source == "gettext" and not self.languages:
            raise InputError("data.languages is empty; data.source=gettext needs target languages, such as 'de,zh_CN'.")
