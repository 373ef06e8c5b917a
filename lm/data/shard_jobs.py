"""What a worker of `lm.data.prepare` does: it reads, tokenises and writes one shard of the corpus."""

import functools
import socket
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lm.data import corpus, store
from lm.data.manifest import SPLITS, Marker, SplitName
from lm.data.pairs import Pair
from lm.data.sentences import sentences
from lm.errors import InputError
from lm.tokenizers import tokenizer as tokenizers
from lm.tokenizers.tokenizer import Tokenizer

HASHES = 1 << 64  # a document's hash is below it; below a job's threshold the document is held out
_BATCH_CHARACTERS = 1 << 20  # encoded at once; limits the memory of a worker


class Job(NamedTuple):
    out: str
    index: int
    shard: corpus.Shard
    digest: str
    threshold: int
    tokenizer_name: str
    tokenizer_fingerprint: str


def write(job: Job) -> Marker:
    """Reads, tokenises and writes one shard. Runs in a worker."""
    tokenizer = load_tokenizer(job.out, job.tokenizer_name, job.tokenizer_fingerprint)
    parts: dict[SplitName, list[store.Text]] = {split: [] for split in SPLITS}
    hashes: list[int] = []
    nulls: list[None] = []
    for batch in _batches_of(corpus.read(job.shard, lambda: nulls.append(None))):
        segmented: dict[SplitName, list[list[str]]] = {split: [] for split in SPLITS}
        for document in batch:
            hashes.append(corpus.split_hash(document))
            segmented["heldout" if hashes[-1] < job.threshold else "train"].append(segments(document))
        for split, found in segmented.items():
            parts[split].append(_encode(tokenizer, found))
            if isinstance(batch[0], Pair):
                _refuse_halves(tokenizer, parts[split][-1], found)
    splits: dict[SplitName, store.Text] = {split: _concatenate(texts) for split, texts in parts.items()}
    hash_range = (min(hashes, default=HASHES), max(hashes, default=-1))
    return store.write_shard(job.out, job.index, splits, tokenizer.vocab_size, job.digest, hash_range, len(nulls))


@functools.lru_cache(maxsize=1)
def load_tokenizer(out: str, name: str, fingerprint: str) -> Tokenizer:
    (model,) = store.read_keys(out, [name])
    if model is None:
        raise InputError(
            f"{out}/{name} is not seen on {socket.gethostname()}; every node has to see the store: give gs://..., "
            "s3://... or a folder that the nodes share."
        )
    tokenizer = tokenizers.load(model, name)
    assert tokenizer.fingerprint == fingerprint, "the tokenizer changed while the store was being made"
    return tokenizer


def _batches_of(documents: Iterator[str | Pair]) -> Iterator[list[str | Pair]]:
    batch: list[str | Pair] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document) if isinstance(document, str) else len(document.source) + len(document.target)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, documents: list[list[str]]) -> store.Text:
    """Encodes documents that are lists of sentences. Sentences and documents without a token are dropped."""
    ids = tokenizer.encode([sentence for document in documents for sentence in document])
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    document_of = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    document_lengths = np.bincount(document_of[lengths > 0], minlength=len(documents))
    return store.Text(
        np.concatenate(ids or [np.zeros(0, np.int32)]).astype(store.token_dtype(tokenizer.vocab_size)),
        lengths[lengths > 0],
        document_lengths[document_lengths > 0],
    )


def _refuse_halves(tokenizer: Tokenizer, text: store.Text, pairs: list[list[str]]) -> None:
    """Refuses pairs with a half for which the tokenizer has no token. Imported tokenizers may have none."""
    if len(text.sentence_lengths) != 2 * len(pairs):
        source, target = next(pair for pair in pairs if not all(map(len, tokenizer.encode(pair))))
        raise InputError(
            f"the tokenizer has no token for one half of the pair {source[:80]!r}, {target[:80]!r}; remove the pair, "
            "or use another data.tokenizer."
        )


def _concatenate(texts: list[store.Text]) -> store.Text:
    columns = zip(*((text.tokens, text.sentence_lengths, text.document_lengths) for text in texts), strict=True)
    arrays = [np.concatenate(column) for column in columns] or [np.zeros(0, np.int32)] * 3
    return store.Text(*arrays)


def segments(document: str | Pair) -> list[str]:
    """Returns the sentences of a document, or the two halves of a pair."""
    return [document.source, document.target] if isinstance(document, Pair) else sentences(document)
