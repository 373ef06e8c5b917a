"""Finds the documents of a corpus that are nearly equal to others, and which of these leak a held-out document.

Documents that share the key of a band (`lm.data.minhash`) are taken for near-duplicates, and so are those that such
documents link. Of these the document with the lowest hash stays, and the others are left out. The same hash decides the
split: documents with the lowest hashes are held out. So a held-out document stays, and its near-duplicates leave the
training split: they are leaks. Neither the order of the corpus nor its shards decide what is found; they decide only
which of several equal documents stays.

The keys of a shard are computed by one worker and are written to STORE/near_duplicates, 8 bytes a band and document,
until the store is complete. The main process reads the keys of one band at a time: about 90 bytes a document in memory.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lm import storage
from lm.data import arrays, corpus, minhash
from lm.data.manifest import Removed
from lm.data.pairs import Pair
from lm.data.workers import ParallelMap

FOLDER = "near_duplicates"
REPORT = "leaks.jsonl"
_VERSION = 1  # of the keys
_SHOWN = 200  # characters of a document in the report
_DOCUMENTS_AT_ONCE = 1 << 12


def originals(hashes: np.ndarray, keys: Iterable[np.ndarray]) -> np.ndarray:
    """Returns for each document the one that stays for it, int64 [N]: itself, or one with a lower hash.

    That is the lowest that shares a key with it, or the one that stays for that.

    Args:
        hashes: uint64 [N]. Documents are ordered by them; of equal ones the first is the lowest.
        keys: of each band, uint64 [N].
    """
    order = np.argsort(hashes, kind="stable")
    lowest = np.arange(len(order))  # by rank, a rank
    for of_band in keys:
        ranked = of_band[order]
        by_key = np.argsort(ranked, kind="stable")
        ranked = ranked[by_key]
        begins = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])) if len(ranked) else by_key
        shared = np.repeat(by_key[begins], np.diff(begins, append=len(ranked)))
        lowest[by_key] = np.minimum(lowest[by_key], shared)
    while (lowest[lowest] != lowest).any():
        lowest = lowest[lowest]
    found = np.empty_like(lowest)
    found[order] = order[lowest]
    return found


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
    """The documents that are left out.

    Attributes:
        shards: of the corpus.
        offsets: int64 [shards + 1]; the documents of shard s are `offsets[s]` to `offsets[s + 1]`.
        hashes: uint64 [N], of all documents.
        originals: int64 [N], the document that stays for each: itself, where it is not left out.
    """

    shards: Sequence[corpus.Shard]
    offsets: np.ndarray
    hashes: np.ndarray
    originals: np.ndarray

    def removed(self) -> np.ndarray:
        """Returns the numbers of the documents that are left out, int64 [any]."""
        return np.flatnonzero(self.originals != np.arange(len(self.originals)))

    def kept(self) -> list[corpus.Shard]:
        """Returns the shards without the documents that are left out."""
        removed = self.removed()
        cuts = np.searchsorted(removed, self.offsets[1:-1])
        return [
            dataclasses.replace(shard, left_out=numbers - first) if len(numbers) else shard
            for shard, numbers, first in zip(self.shards, np.split(removed, cuts), self.offsets, strict=False)
        ]

    def report(self, out: str, threshold: int, parallel_map: ParallelMap) -> Removed:
        """Writes the leaks to STORE/leaks.jsonl, a line each with both documents, and counts what is left out.

        Args:
            out: the store's folder.
            threshold: documents with a lower hash are held out.
            parallel_map: reads the documents.
        """
        removed = self.removed()
        is_heldout = self.hashes < threshold
        leaks = removed[is_heldout[self.originals[removed]] & ~is_heldout[removed]]
        texts = self._beginnings(np.union1d(leaks, self.originals[leaks]), parallel_map)
        lines = []
        for leak, heldout in zip(leaks.tolist(), self.originals[leaks].tolist(), strict=True):
            shard, number = self._place(leak)
            line = {"shard": shard, "document": number, "text": texts[leak], "heldout": texts[heldout]}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        storage.write_key(out, REPORT, "".join(lines).encode())
        return {"near_duplicates": len(removed) - len(leaks), "heldout_leaks": len(leaks)}

    def _place(self, document: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.offsets, document, side="right")) - 1
        return shard, document - int(self.offsets[shard])

    def _beginnings(self, documents: np.ndarray, parallel_map: ParallelMap) -> dict[int, str]:
        """Returns the first characters of some documents, by their numbers."""
        cuts = np.searchsorted(documents, self.offsets[1:-1])
        jobs = [
            (shard, numbers - first)
            for shard, numbers, first in zip(self.shards, np.split(documents, cuts), self.offsets, strict=False)
            if len(numbers)
        ]
        found = (text for texts in parallel_map(_read_beginnings, jobs) for text in texts)
        return dict(zip(documents.tolist(), found, strict=True))


def find(threshold: float, out: str, shards: Sequence[corpus.Shard], parallel_map: ParallelMap) -> NearDuplicates:
    """Compares all documents of a corpus.

    Args:
        threshold: the Jaccard similarity from which on documents are near-duplicates; see `minhash.banding`.
        out: the store's folder, in which the keys are kept until `forget`.
        shards: of the corpus.
        parallel_map: computes the keys of the shards.

    Raises:
        InputError: the corpus or the store cannot be read.
    """
    bands, rows = minhash.banding(threshold)
    jobs = [_Job(out, index, shard, bands, rows) for index, shard in enumerate(shards)]
    counts = np.fromiter(parallel_map(_write_keys, jobs), np.int64, len(jobs))
    offsets = np.append(0, np.cumsum(counts))
    if not offsets[-1]:
        return NearDuplicates(shards, offsets, np.zeros(0, np.uint64), np.zeros(0, np.int64))
    some = np.flatnonzero(counts)
    sizes = counts[some]
    column = arrays.Column(
        out, [(FOLDER, f"{index:05d}") for index in some.tolist()], sizes * (1 + bands), np.dtype(np.uint64)
    )
    first = np.cumsum(sizes * (1 + bands)) - sizes * (1 + bands)

    def read(row: int) -> np.ndarray:
        return column.read(first + row * sizes, first + (row + 1) * sizes)

    hashes = read(0)
    return NearDuplicates(shards, offsets, hashes, originals(hashes, map(read, range(1, 1 + bands))))


def forget(out: str) -> None:
    """Deletes the keys."""
    storage.delete_folder(out, FOLDER)


# --- in workers


class _Job(NamedTuple):
    out: str
    index: int
    shard: corpus.Shard
    bands: int
    rows: int


def _write_keys(job: _Job) -> int:
    """Writes the hashes of a shard's documents, then their keys band by band; returns the number of documents."""
    decided_by = f"{_VERSION} {job.shard.digest()} {job.bands} {job.rows}"
    digest = hashlib.sha256(decided_by.encode()).hexdigest()
    marker = f"{FOLDER}/{job.index:05d}.json"
    (found,) = storage.read_keys(job.out, [marker])
    if found and (complete := json.loads(found))["digest"] == digest:
        return complete["documents"]
    hashes: list[int] = []
    keys = [np.zeros((job.bands, 0), np.uint64)]
    texts: list[str] = []
    for document in corpus.read(job.shard):
        hashes.append(corpus.split_hash(document))
        texts.append(f"{document.source}\n{document.target}" if isinstance(document, Pair) else document)
        if len(texts) == _DOCUMENTS_AT_ONCE:
            keys.append(minhash.keys(texts, job.bands, job.rows))
            texts = []
    keys.append(minhash.keys(texts, job.bands, job.rows))
    if hashes:
        values = np.concatenate([np.array(hashes, np.uint64), np.concatenate(keys, axis=1).ravel()])
        with storage.errors(job.out):
            arrays.write(job.out, [FOLDER, f"{job.index:05d}"], values).result()
    storage.write_key(job.out, marker, json.dumps({"digest": digest, "documents": len(hashes)}).encode())
    return len(hashes)


def _read_beginnings(job: tuple[corpus.Shard, np.ndarray]) -> list[str]:
    shard, numbers = job
    wanted = set(numbers.tolist())
    found = (document for number, document in enumerate(corpus.read(shard)) if number in wanted)
    return [" ".join(document[:2] if isinstance(document, Pair) else [document])[:_SHOWN] for document in found]
