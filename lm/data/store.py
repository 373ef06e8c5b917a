"""The tokenised corpus, as TensorStore arrays in a local folder, gs:// or s3://.

    STORE/manifest.json          written last: a store is complete or absent
    STORE/tokenizer.model        the tokenizer that made the ids
    STORE/shards/00017/complete.json, token_counts
    STORE/shards/00017/{train,heldout}/{tokens, sentence_lengths, document_lengths}

Every shard is written by one process and complete when its own marker is there; nothing is merged
afterwards. `tokens` (uint16, or uint32 for a large vocabulary) is a plain run of ids without special
ids; `sentence_lengths` counts tokens, `document_lengths` counts sentences. Arrays are zarr 3 with the
sharding codec: few files, and small inner chunks, so that a random read decodes little.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from lm.config import InputError
from lm.data import tokenizer as tokenizers
from lm.data.pairs import Pair

FORMAT_VERSION = 1
SPLITS = ("train", "heldout")
MANIFEST = "manifest.json"

_INNER_CHUNK = 1 << 13  # elements that a random read decodes
_OUTER_CHUNK = 1 << 22  # elements in a file
_MEMORY_LIMIT = 2 << 30  # bytes of a split's tokens that are still held in memory
_CACHE_BYTES = 512 << 20  # of decoded chunks, for splits that are not


# --- keys and arrays below a path


def kvstore(path: str, *names: str) -> dict[str, Any]:
    """The TensorStore key-value spec of a folder below `path`, which is local, gs://... or s3://...

    An S3 endpoint and region other than Amazon's come from AWS_ENDPOINT_URL and AWS_REGION, as in
    Amazon's own tools; TensorStore itself reads neither.

    Raises:
        InputError: another scheme.
    """
    scheme, separator, rest = path.partition("://")
    if not separator:
        return {"driver": "file", "path": "/".join([os.path.abspath(os.path.expanduser(path)), *names]) + "/"}
    bucket, _, prefix = rest.partition("/")
    folder = "/".join(filter(None, [prefix.strip("/"), *names])) + "/"
    if scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": folder}
    if scheme == "s3":
        spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": folder}
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            spec["endpoint"] = endpoint
        if region := os.environ.get("AWS_REGION"):
            spec["aws_region"] = region
        if "AWS_ACCESS_KEY_ID" in os.environ:  # else it complains of every missing ~/.aws file, at every open
            spec["aws_credentials"] = {"type": "environment"}
        return spec
    raise InputError(f"{path!r} is no folder that can be used; accepted: a local path, gs://... or s3://....")


def read_keys(path: str, names: Sequence[str]) -> list[bytes | None]:
    """The contents of some keys below a path, read concurrently; None where there is no such key."""
    folder = ts.KvStore.open(kvstore(path)).result()
    pending = [folder.read(name) for name in names]
    results = [future.result() for future in pending]
    return [result.value if result.state == "value" else None for result in results]


def write_key(path: str, name: str, value: bytes) -> None:
    """Writes a key below a path, atomically."""
    ts.KvStore.open(kvstore(path)).result().write(name, value).result()


def delete_folder(path: str, name: str) -> None:
    """Deletes every key below `path/name/`."""
    ts.KvStore.open(kvstore(path, name)).result().delete_range(ts.KvStore.KeyRange()).result()


def _write_array(path: str, names: Sequence[str], values: np.ndarray) -> Any:
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 1}},
    ]
    inner = {"chunk_shape": [_INNER_CHUNK], "codecs": codecs}
    spec = {
        "driver": "zarr3",
        "kvstore": kvstore(path, *names),
        "metadata": {
            "shape": [len(values)],
            "data_type": values.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [_OUTER_CHUNK]}},
            "codecs": [{"name": "sharding_indexed", "configuration": inner}],
        },
    }
    return ts.open(spec, create=True, delete_existing=True).result().write(values)


def _open_arrays(path: str, folders: Sequence[Sequence[str]], context: ts.Context) -> list[ts.TensorStore]:
    pending = [
        ts.open({"driver": "zarr3", "kvstore": kvstore(path, *names)}, read=True, context=context) for names in folders
    ]
    return [future.result() for future in pending]


# --- shards


@dataclasses.dataclass
class Text:
    """Tokenised documents: `tokens` [T], `sentence_lengths` [S] tokens, `document_lengths` [D] sentences."""

    tokens: np.ndarray
    sentence_lengths: np.ndarray
    document_lengths: np.ndarray

    def counts(self) -> dict[str, int]:
        """How many documents, sentences and tokens there are."""
        return {
            "documents": len(self.document_lengths),
            "sentences": len(self.sentence_lengths),
            "tokens": len(self.tokens),
        }


def _shard_name(index: int) -> str:
    return f"shards/{index:05d}"


def marker_name(index: int) -> str:
    """The key whose presence says that a shard is complete."""
    return f"{_shard_name(index)}/complete.json"


def write_shard(path: str, index: int, splits: Mapping[str, Text], vocab_size: int, extra: dict[str, Any]) -> dict:
    """Writes one shard, its marker last.

    Args:
        path: the store.
        index: of the shard; an incomplete shard of that number is overwritten.
        splits: its text by split.
        vocab_size: bounds the ids and decides their type on disk.
        extra: further fields of the marker.

    Returns:
        The marker: `extra` and the counts of each split.
    """
    pending = []
    for split, text in splits.items():
        if not len(text.tokens):
            continue
        tokens = text.tokens.astype(token_dtype(vocab_size))
        arrays = {
            "tokens": tokens,
            "sentence_lengths": text.sentence_lengths.astype(np.uint32),
            "document_lengths": text.document_lengths.astype(np.uint32),
        }
        pending += [_write_array(path, [_shard_name(index), split, name], array) for name, array in arrays.items()]
    counts = np.bincount(splits["train"].tokens, minlength=vocab_size).astype(np.uint64)
    pending.append(_write_array(path, [_shard_name(index), "token_counts"], counts))
    for future in pending:
        future.result()
    marker = {**extra, **{split: text.counts() for split, text in splits.items()}}
    write_key(path, marker_name(index), json.dumps(marker).encode())
    return marker


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type on disk that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def finish(
    path: str,
    tokenizer: tokenizers.Tokenizer,
    kind: str,
    settings: dict[str, Any],
    markers: Sequence[dict[str, Any]],
) -> None:
    """Writes the manifest, which makes the store complete.

    Args:
        path: the store, with its tokenizer and all shards in place.
        tokenizer: the tokenizer that made the ids.
        kind: `documents`, or `pairs`: documents of two sentences, source and target.
        settings: what the store was made from, compared by name when it is asked for again.
        markers: of every shard, in order.
    """
    arrays = _open_arrays(path, [(_shard_name(i), "token_counts") for i in range(len(markers))], ts.Context())
    pending = [array.read() for array in arrays]
    counts = np.stack([future.result() for future in pending]).astype(np.int64).sum(axis=0)
    total = int(counts.sum())
    counts[tokenizer.special_ids] = 0
    most_frequent = int(counts.argmax())
    shards = [{split: marker[split] for split in SPLITS} for marker in markers]
    manifest = {
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
        "shards": shards,
    }
    write_key(path, MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


# --- reading


class Split:
    """One split of a corpus: boundaries in memory, tokens in memory or read as they are asked for.

    Attributes:
        sentence_offsets: int64 [S+1]; sentence s is tokens `sentence_offsets[s]:sentence_offsets[s+1]`.
        document_offsets: int64 [D+1]; document d is sentences `document_offsets[d]:document_offsets[d+1]`.
    """

    def __init__(self, tokens: np.ndarray | ts.TensorStore, sentence_lengths: np.ndarray, document_lengths: np.ndarray):
        """Wraps arrays as in `Text`; `tokens` may be a TensorStore that is read on demand."""
        self._tokens = tokens
        self.sentence_offsets = _offsets(sentence_lengths)
        self.document_offsets = _offsets(document_lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.sentence_offsets[-1])

    @property
    def num_documents(self) -> int:
        return len(self.document_offsets) - 1

    def read(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The tokens of some spans, one after the other.

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
        return self._tokens[index].read().result()


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclasses.dataclass(frozen=True)
class Store:
    """A complete token store.

    Attributes:
        path: where it is.
        manifest: the contents of `manifest.json`.
        tokenizer: the one that made it.
        train, heldout: its splits; they share no document.
    """

    path: str
    manifest: dict[str, Any]
    tokenizer: tokenizers.Tokenizer
    train: Split
    heldout: Split

    @property
    def kind(self) -> str:
        """`documents` or `pairs`."""
        return self.manifest.get("kind", "documents")

    @classmethod
    def open(
        cls, path: str, tokenizer: tokenizers.Tokenizer | None = None, memory_limit: int = _MEMORY_LIMIT
    ) -> "Store":
        """Opens a complete store.

        Args:
            path: local, gs://... or s3://....
            tokenizer: the one about to be used with it; by default the store's own.
            memory_limit: bytes of a split's tokens up to which they are held in memory.

        Raises:
            InputError: there is no complete store, another version wrote it, or `tokenizer` is not its own.
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
        train, heldout = (_open_split(path, manifest, split, memory_limit) for split in SPLITS)
        return cls(path, manifest, own, train, heldout)


def read_pairs(store: Store, split: Split, index: Sequence[int] | np.ndarray | None = None) -> list[Pair]:
    """Pairs of a split as text.

    Args:
        store: of pairs.
        split: `store.train` or `store.heldout`.
        index: which pairs; by default all.

    Raises:
        InputError: the store is of documents.
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


def read_manifest(path: str) -> dict[str, Any] | None:
    """The manifest of a complete store, or None.

    Raises:
        InputError: it is of another format version.
    """
    (content,) = read_keys(path, [MANIFEST])
    if content is None:
        return None
    manifest = json.loads(content)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"the token store {path!r} has format version {manifest.get('format_version')}; this code reads "
            f"{FORMAT_VERSION}. Prepare it again in another folder."
        )
    return manifest


def _open_split(path: str, manifest: dict[str, Any], split: str, memory_limit: int) -> Split:
    dtype = token_dtype(manifest["tokenizer"]["vocab_size"])
    shards = [_shard_name(i) for i, shard in enumerate(manifest["shards"]) if shard[split]["tokens"]]
    if not shards:
        return Split(np.zeros(0, dtype), np.zeros(0, np.int64), np.zeros(0, np.int64))
    context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    names = ("tokens", "sentence_lengths", "document_lengths")
    tokens, *lengths = (_open_arrays(path, [(shard, split, name) for shard in shards], context) for name in names)
    in_memory = manifest["splits"][split]["tokens"] * dtype.itemsize <= memory_limit
    sentence_lengths, document_lengths = (_read_all(arrays) for arrays in lengths)
    return Split(_read_all(tokens) if in_memory else ts.concat(tokens, axis=0), sentence_lengths, document_lengths)


def _read_all(arrays: Sequence[ts.TensorStore]) -> np.ndarray:
    pending = [array.read() for array in arrays]
    return np.concatenate([future.result() for future in pending])
