"""Stores a tokenised corpus as TensorStore arrays, in a local folder, gs:// or s3://.

    STORE/manifest.json          written last: a store is complete or absent
    STORE/tokenizer.model        the tokenizer that made the ids
    STORE/shards/00017/complete.json, token_counts
    STORE/shards/00017/{train,heldout}/{tokens, sentence_lengths, document_lengths, document_tokens}

One process writes a shard, and a marker when the shard is complete; shards are never merged. `tokens` (uint16, or
uint32 for a large vocabulary) holds ids without special ids. `sentence_lengths` counts the tokens of a sentence,
`document_lengths` the sentences of a document, `document_tokens` its tokens.

The manifest lists the blocks of every shard: runs of whole documents of about two million tokens, the unit in which a
large corpus is shuffled (`lm.data.windows`). Opening a store reads its manifest and its tokenizer. Arrays are opened
when they are read. Stores of format 1 have neither blocks nor `document_tokens`: a shard of theirs is one block.
"""

import base64
import dataclasses
import itertools
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from lm.data import arrays
from lm.data.arrays import Column
from lm.data.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    Counts,
    Listing,
    Manifest,
    Marker,
    Removed,
    SplitName,
    read_manifest,
)
from lm.data.pairs import Pair
from lm.data.split import DOCUMENTS, MEMORY_LIMIT, SENTENCES, TOKENS, Split
from lm.errors import InputError
from lm.storage import errors, read_keys, write_key
from lm.tokenizers import tokenizer as tokenizers
from lm.tokenizers.tokenizer import Tokenizer

BLOCK_TOKENS = 1 << 21  # of a block, about; see `lm.data.windows`
_COUNTED = 1 << 22  # tokens that are counted at a time: numpy makes int64 of them first
_SUMMED = 64  # shards whose counts of tokens are added up at a time


# --- shards


@dataclasses.dataclass
class Text:
    """Tokenised documents: `tokens` [T], `sentence_lengths` [S] tokens, `document_lengths` [D] sentences."""

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray

    def counts(self) -> dict[str, int]:
        """Returns the numbers of documents, sentences and tokens."""
        return {
            "documents": len(self.document_lengths),
            "sentences": len(self.sentence_lengths),
            "tokens": len(self.tokens),
        }

    def document_tokens(self) -> np.ndarray:
        """Returns the tokens of each document, int64 [D]."""
        bounds = np.append(0, np.cumsum(self.sentence_lengths))[np.append(0, np.cumsum(self.document_lengths))]
        return np.diff(bounds)

    def blocks(self) -> list[list[int]]:
        """Returns the documents, sentences and tokens of each block: documents that begin in the same 2 M tokens."""
        tokens = self.document_tokens()
        first = np.unique((np.cumsum(tokens) - tokens) // BLOCK_TOKENS, return_index=True)[1]
        if not len(first):
            return []
        sums = [np.add.reduceat(values, first) for values in (np.ones_like(tokens), self.document_lengths, tokens)]
        return np.stack(sums, axis=1).tolist()


def _shard_name(index: int) -> str:
    return f"shards/{index:05d}"


def marker_name(index: int) -> str:
    """Returns the key of a shard's marker. It exists if the shard is complete."""
    return f"{_shard_name(index)}/complete.json"


def write_shard(
    path: str,
    index: int,
    splits: Mapping[SplitName, Text],
    vocab_size: int,
    digest: str,
    hash_range: tuple[int, int],
    skipped: int = 0,
) -> Marker:
    """Writes one shard, its marker last.

    Args:
        path: of the store.
        index: number of the shard; an incomplete shard of that number is overwritten.
        splits: the text of each split.
        vocab_size: bounds the ids and decides their type on disk.
        digest: a hash of everything that the shard's content depends on.
        hash_range: the lowest and the highest hash of its documents.
        skipped: how many records were left out because a field was null.

    Returns:
        The marker.
    """
    parts = np.array_split(splits["train"].tokens, 1 + len(splits["train"].tokens) // _COUNTED)
    counts = np.sum([np.bincount(part, minlength=vocab_size) for part in parts], axis=0).astype(np.uint64)
    with errors(path):
        pending = [arrays.write(path, [_shard_name(index), "token_counts"], counts)]
        for split, text in splits.items():
            if not len(text.tokens):
                continue
            found = {
                "tokens": text.tokens.astype(token_dtype(vocab_size)),
                "sentence_lengths": text.sentence_lengths.astype(np.uint32),
                "document_lengths": text.document_lengths.astype(np.uint32),
                "document_tokens": text.document_tokens().astype(np.uint32),
            }
            pending += [arrays.write(path, [_shard_name(index), split, name], array) for name, array in found.items()]
        for future in pending:
            future.result()
    marker: Marker = {
        "digest": digest,
        "lowest_hash": hash_range[0],
        "highest_hash": hash_range[1],
        "skipped": skipped,
        "train": splits["train"].counts(),
        "heldout": splits["heldout"].counts(),
        "blocks": {split: text.blocks() for split, text in splits.items()},
    }
    write_key(path, marker_name(index), json.dumps(marker).encode())
    return marker


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned type that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def finish(
    path: str,
    tokenizer: Tokenizer,
    kind: str,
    settings: Mapping[str, object],
    markers: Sequence[Marker],
    removed: Removed | None = None,
    listing: Listing | None = None,
) -> None:
    """Writes the manifest, which makes the store complete.

    Args:
        path: of the store, which has its tokenizer and all shards.
        tokenizer: the tokenizer that made the ids.
        kind: `documents`, or `pairs`: documents of two sentences, source and target.
        settings: those that decide the store's content. They are compared when the store is prepared again.
        markers: of every shard, in order.
        removed: how many near-duplicates were left out; None where none were looked for.
        listing: the files of the corpus; None where it has none.
    """
    counts = _token_counts(path, len(markers))
    total = int(counts.sum())
    counts[tokenizer.special_ids] = 0
    most_frequent = int(counts.argmax())
    manifest: Manifest = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "settings": settings,
        "tokenizer": {
            "file": tokenizer.file_name,
            "sha256": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "splits": {
            split: {count: sum(marker[split][count] for marker in markers) for count in markers[0][split]}
            for split in SPLITS
        },
        "most_frequent_token": {
            "id": most_frequent,
            "piece": tokenizer.id_to_piece(most_frequent),
            "share": counts[most_frequent] / max(total, 1),
        },
        "skipped": sum(marker.get("skipped", 0) for marker in markers),
        "shards": [sum(marker[split]["tokens"] for split in SPLITS) for marker in markers],
        "blocks": {split: _packed([marker["blocks"][split] for marker in markers]) for split in SPLITS},
    }
    if removed is not None:
        manifest["removed"] = removed
    if listing is not None:
        manifest["listing"] = listing
    write_key(path, MANIFEST, (json.dumps(manifest, ensure_ascii=False) + "\n").encode())


def _token_counts(path: str, num_shards: int) -> np.ndarray:
    """Returns how often the shards hold each token, int64 [V]."""
    total = np.zeros((), np.int64)
    with arrays.reading(path):
        for first in range(0, num_shards, _SUMMED):
            folders = [(_shard_name(i), "token_counts") for i in range(first, min(first + _SUMMED, num_shards))]
            for future in [array.read() for array in arrays.open_all(path, folders)]:
                total = total + future.result().astype(np.int64)
    return total


def _packed(blocks: Sequence[Sequence[Sequence[int]]]) -> str:
    """Returns the blocks of each shard as text: uint32 [4, N], shard, documents, sentences and tokens, compressed."""
    shards = np.repeat(np.arange(len(blocks)), [len(of_shard) for of_shard in blocks])
    counts = np.array([block for of_shard in blocks for block in of_shard], np.int64).reshape(-1, 3)
    columns = np.concatenate([shards[:, None], counts], axis=1).T.astype("<u4")
    return base64.b64encode(zlib.compress(columns.tobytes())).decode()


def _unpacked(text: str) -> np.ndarray:
    """Returns the blocks of `_packed`, int64 [N, 4]."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").reshape(4, -1).T.astype(np.int64)


# --- reading


@dataclasses.dataclass(frozen=True)
class Store:
    """A complete token store.

    Attributes:
        path: of its folder.
        manifest: the content of `manifest.json`.
        tokenizer: the tokenizer that made the ids.
        train, heldout: its splits, which share no document.
    """

    path: str
    manifest: Manifest
    tokenizer: Tokenizer
    train: Split
    heldout: Split

    @property
    def kind(self) -> str:
        """`documents` or `pairs`."""
        return self.manifest.get("kind", "documents")

    @classmethod
    def open(cls, path: str, tokenizer: Tokenizer | None = None, memory_limit: int = MEMORY_LIMIT) -> "Store":
        """Opens a complete store.

        Args:
            path: local, gs://... or s3://....
            tokenizer: the tokenizer that will be used with the store; by default the store's own.
            memory_limit: bytes; the tokens of a larger split are read on demand.

        Raises:
            InputError: there is no complete store, it has another format version, or `tokenizer` did not make it.
        """
        manifest = read_manifest(path)
        if manifest is None:
            raise InputError(f"no complete token store at {path!r}; make one with launch/prepare.py --out={path}.")
        made_by = manifest["tokenizer"]
        (model,) = read_keys(path, [made_by["file"]])
        if model is None:
            raise InputError(f"the token store {path!r} has lost {made_by['file']}; prepare it again.")
        own = tokenizers.load(model, made_by["file"])
        for found in filter(None, (own, tokenizer)):
            if found.fingerprint != made_by["sha256"]:
                raise InputError(
                    f"tokenizer and store do not belong together: {path!r} was made with {made_by['sha256'][:12]}, "
                    f"the tokenizer is {found.fingerprint[:12]}; prepare the store again with this tokenizer, or use "
                    f"the store's own {made_by['file']}."
                )
        train, heldout = (_open_split(path, manifest, split, memory_limit, own) for split in SPLITS)
        return cls(path, manifest, own, train, heldout)


def read_pairs(store: Store, split: Split, index: Sequence[int] | np.ndarray | None = None) -> list[Pair]:
    """Returns the pairs of a split as text.

    Args:
        store: a store of pairs.
        split: `store.train` or `store.heldout`.
        index: numbers of the pairs; by default all.

    Raises:
        InputError: the store holds documents.
    """
    if store.kind != "pairs":
        raise InputError(
            f"the token store {store.path!r} holds {store.kind}, not pairs; prepare one with data.source=tsv, gettext, "
            "dates or docs-questions, or with data.target_field."
        )
    which = np.arange(split.num_documents) if index is None else np.asarray(index, np.int64)
    halves = (split.document_offsets[which][:, None] + np.arange(2)).reshape(-1)
    starts, stops = split.sentence_offsets[halves], split.sentence_offsets[halves + 1]
    ids = split.read(starts, stops - starts)
    bounds = itertools.pairwise([0, *np.cumsum(stops - starts).tolist()])
    texts = [store.tokenizer.decode(ids[start:stop]) for start, stop in bounds]
    return list(itertools.starmap(Pair, zip(texts[::2], texts[1::2], strict=True)))


def _open_split(path: str, manifest: Manifest, split: SplitName, memory_limit: int, tokenizer: Tokenizer) -> Split:
    """Returns a split of which nothing is read yet."""
    blocks = _blocks(path, manifest, split)
    shards, first = np.unique(blocks[:, 0], return_index=True)
    sizes = np.add.reduceat(blocks[:, 1:], first) if len(shards) else np.zeros((0, 3), np.int64)
    names = {"document_lengths": DOCUMENTS, "sentence_lengths": SENTENCES, "tokens": TOKENS}
    if manifest["format_version"] > 1:
        names["document_tokens"] = DOCUMENTS
    columns = {
        name: Column(
            path,
            [(_shard_name(shard), split, name) for shard in shards.tolist()],
            sizes[:, kind],
            token_dtype(manifest["tokenizer"]["vocab_size"]) if name == "tokens" else np.dtype(np.uint32),
        )
        for name, kind in names.items()
    }
    return Split(tokenizer=tokenizer, blocks=blocks[:, 1:], memory_limit=memory_limit, **columns)


def _blocks(path: str, manifest: Manifest, split: SplitName) -> np.ndarray:
    """Returns shard, documents, sentences and tokens of the blocks that hold a token, int64 [N, 4].

    Raises:
        InputError: the manifest is damaged.
    """
    try:
        if "blocks" in manifest:
            blocks = _unpacked(manifest["blocks"][split])
        else:  # format 1
            shards = cast(list[dict[SplitName, Counts]], manifest["shards"])
            counts = [[shard[split][name] for name in ("documents", "sentences", "tokens")] for shard in shards]
            blocks = np.array([[index, *found] for index, found in enumerate(counts)], np.int64).reshape(-1, 4)
    except (ValueError, LookupError, TypeError, zlib.error) as error:
        raise InputError(f"the token store {path!r} is damaged ({MANIFEST}: no blocks); prepare it again.") from error
    return blocks[blocks[:, 1 + TOKENS] > 0]
