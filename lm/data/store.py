"""Stores a tokenised corpus as TensorStore arrays, in a local folder, gs:// or s3://.

    STORE/manifest.json          written last: a store is complete or absent
    STORE/tokenizer.model        the tokenizer that made the ids
    STORE/shards/00017/complete.json, token_counts
    STORE/shards/00017/{train,heldout}/{tokens, sentence_lengths, document_lengths}

One process writes a shard, and a marker when the shard is complete; shards are never merged. `tokens` (uint16, or
uint32 for a large vocabulary) holds ids without special ids; `sentence_lengths` counts tokens, `document_lengths`
counts sentences. Arrays are zarr 3 with the sharding codec: few files, and small inner chunks, so that a random read
decodes little.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorstore as ts

from lm.data import tokenizer as tokenizers
from lm.data.manifest import FORMAT_VERSION, MANIFEST, SPLITS, Manifest, Marker, SplitName, read_manifest
from lm.data.pairs import Pair
from lm.data.tokenizer import Tokenizer
from lm.errors import InputError
from lm.storage import errors, kvstore, read_keys, write_key

_INNER_CHUNK = 1 << 13  # elements that a random read decodes
_OUTER_CHUNK = 1 << 22  # elements in a file
_MEMORY_LIMIT = 2 << 30  # bytes; the tokens of a larger split are not held in memory
_CACHE_BYTES = 512 << 20  # of decoded chunks, for splits that are not held in memory


# --- arrays


def _write_array(path: str, names: Sequence[str], values: np.ndarray) -> ts.WriteFutures:
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 1}},
        {"name": "crc32c"},  # zstd does not notice most flipped bits
    ]
    inner = {"chunk_shape": [_INNER_CHUNK], "codecs": codecs}
    spec = {
        "driver": "zarr3",
        "kvstore": kvstore(path, *names),
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": [len(values)],
            "data_type": values.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [_OUTER_CHUNK]}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        },
    }
    return ts.open(spec, create=True, delete_existing=True).result().write(values)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Names the store in the error when it cannot be read.

    Raises:
        InputError: the storage refuses, or the data is damaged.
    """
    try:
        with errors(path):
            yield
    except ValueError as error:  # TensorStore's error for damaged data
        reason = str(error).partition(" [")[0]
        raise InputError(f"the token store {path!r} is damaged ({reason}); prepare it again.") from error


def _open_arrays(path: str, folders: Sequence[Sequence[str]], context: ts.Context) -> list[ts.TensorStore]:
    settings = {"driver": "zarr3", "fill_missing_data_reads": False}  # a lost file is an error, not zeros
    pending = [ts.open({**settings, "kvstore": kvstore(path, *names)}, read=True, context=context) for names in folders]
    return [future.result() for future in pending]


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
    counts = np.bincount(splits["train"].tokens, minlength=vocab_size).astype(np.uint64)
    with errors(path):
        pending = [_write_array(path, [_shard_name(index), "token_counts"], counts)]
        for split, text in splits.items():
            if not len(text.tokens):
                continue
            arrays = {
                "tokens": text.tokens.astype(token_dtype(vocab_size)),
                "sentence_lengths": text.sentence_lengths.astype(np.uint32),
                "document_lengths": text.document_lengths.astype(np.uint32),
            }
            pending += [_write_array(path, [_shard_name(index), split, name], array) for name, array in arrays.items()]
        for future in pending:
            future.result()
    marker: Marker = {
        "digest": digest,
        "lowest_hash": hash_range[0],
        "highest_hash": hash_range[1],
        "skipped": skipped,
        "train": splits["train"].counts(),
        "heldout": splits["heldout"].counts(),
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
) -> None:
    """Writes the manifest, which makes the store complete.

    Args:
        path: of the store, which has its tokenizer and all shards.
        tokenizer: the tokenizer that made the ids.
        kind: `documents`, or `pairs`: documents of two sentences, source and target.
        settings: those that decide the store's content. They are compared when the store is prepared again.
        markers: of every shard, in order.
    """
    with _reading(path):
        arrays = _open_arrays(path, [(_shard_name(i), "token_counts") for i in range(len(markers))], ts.Context())
        pending = [array.read() for array in arrays]
        counts = np.stack([future.result() for future in pending]).astype(np.int64).sum(axis=0)
    total = int(counts.sum())
    counts[tokenizer.special_ids] = 0
    most_frequent = int(counts.argmax())
    shards: list[dict[SplitName, dict[str, int]]] = [{split: marker[split] for split in SPLITS} for marker in markers]
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
            split: {count: sum(shard[split][count] for shard in shards) for count in shards[0][split]}
            for split in SPLITS
        },
        "most_frequent_token": {
            "id": most_frequent,
            "piece": tokenizer.id_to_piece(most_frequent),
            "share": counts[most_frequent] / max(total, 1),
        },
        "skipped": sum(marker.get("skipped", 0) for marker in markers),
        "shards": shards,
    }
    write_key(path, MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


# --- reading


class Split:
    """One split of a corpus. Its boundaries are in memory; its tokens are too, or are read on demand.

    Attributes:
        sentence_offsets: int64 [S+1]; sentence s is tokens `sentence_offsets[s]:sentence_offsets[s+1]`.
        document_offsets: int64 [D+1]; document d is sentences `document_offsets[d]:document_offsets[d+1]`.
    """

    def __init__(
        self,
        tokens: np.ndarray | ts.TensorStore,
        sentence_lengths: np.ndarray,
        document_lengths: np.ndarray,
        path: str = "",
        tokenizer: Tokenizer | None = None,
    ):
        """Wraps arrays as in `Text`. `tokens` may be a TensorStore below `path`, which is read on demand."""
        self._tokens = tokens
        self._path = path
        self._tokenizer = tokenizer
        self.sentence_offsets = _offsets(sentence_lengths)
        self.document_offsets = _offsets(document_lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.sentence_offsets[-1])

    @property
    def num_documents(self) -> int:
        return len(self.document_offsets) - 1

    def starts_word(self, tokens: np.ndarray) -> np.ndarray:
        """Returns whether each token begins a word, bool, of the shape of `tokens`; without a tokenizer each does."""
        return np.ones(tokens.shape, bool) if self._tokenizer is None else self._starts_word[tokens]

    @functools.cached_property
    def _starts_word(self) -> np.ndarray:
        assert self._tokenizer is not None
        return self._tokenizer.starts_word()

    def read(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns the tokens of some spans, one after the other.

        Args:
            starts: int [N], first token of each span.
            lengths: int [N].

        Returns:
            uint16 or uint32 [sum(lengths)].
        """
        lengths = np.asarray(lengths, np.int64)
        ends = np.cumsum(lengths)
        shift = np.asarray(starts, np.int64) - (ends - lengths)
        index = np.repeat(shift, lengths) + np.arange(ends[-1] if len(ends) else 0)
        if isinstance(self._tokens, np.ndarray):
            return self._tokens[index]
        with _reading(self._path):
            return self._tokens[index].read().result()


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


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
    def open(cls, path: str, tokenizer: Tokenizer | None = None, memory_limit: int = _MEMORY_LIMIT) -> "Store":
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
    dtype = token_dtype(manifest["tokenizer"]["vocab_size"])
    shards = [_shard_name(i) for i, shard in enumerate(manifest["shards"]) if shard[split]["tokens"]]
    if not shards:
        return Split(np.zeros(0, dtype), np.zeros(0, np.int64), np.zeros(0, np.int64))
    context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    names = ("tokens", "sentence_lengths", "document_lengths")
    in_memory = manifest["splits"][split]["tokens"] * dtype.itemsize <= memory_limit
    with _reading(path):
        tokens, *lengths = (_open_arrays(path, [(shard, split, name) for shard in shards], context) for name in names)
        sentence_lengths, document_lengths = (_read_all(arrays) for arrays in lengths)
        all_tokens = _read_all(tokens) if in_memory else ts.concat(tokens, axis=0)
    return Split(all_tokens, sentence_lengths, document_lengths, path, tokenizer)


def _read_all(arrays: Sequence[ts.TensorStore]) -> np.ndarray:
    pending = [array.read() for array in arrays]
    return np.concatenate([future.result() for future in pending])
