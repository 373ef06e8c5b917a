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

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from lm.data import tokenizer as tokenizers
from lm.data.pairs import Pair
from lm.data.tokenizer import Tokenizer
from lm.errors import InputError
from lm.storage import errors, kvstore, read_keys, write_key

FORMAT_VERSION = 1
SPLITS = ("train", "heldout")
MANIFEST = "manifest.json"

_INNER_CHUNK = 1 << 13  # elements that a random read decodes
_OUTER_CHUNK = 1 << 22  # elements in a file
_MEMORY_LIMIT = 2 << 30  # bytes of a split's tokens that are still held in memory
_CACHE_BYTES = 512 << 20  # of decoded chunks, for splits that are not


# --- arrays


def _write_array(path: str, names: Sequence[str], values: np.ndarray) -> Any:
    codecs = [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "zstd", "configuration": {"level": 1}},
        {"name": "crc32c"},  # zstd decodes most flipped bits without complaint
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
    """Says which store it is that cannot be read.

    Raises:
        InputError: where the storage refuses, or what it holds is not what was written.
    """
    try:
        with errors(path):
            yield
    except ValueError as error:  # TensorStore's for whatever is wrong with the data
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
    marker = {**extra, **{split: text.counts() for split, text in splits.items()}}
    write_key(path, marker_name(index), json.dumps(marker).encode())
    return marker


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type on disk that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def finish(
    path: str,
    tokenizer: Tokenizer,
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
    with _reading(path):
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

    def __init__(
        self,
        tokens: np.ndarray | ts.TensorStore,
        sentence_lengths: np.ndarray,
        document_lengths: np.ndarray,
        path: str = "",
    ):
        """Wraps arrays as in `Text`; `tokens` may be a TensorStore below `path` that is read on demand."""
        self._tokens = tokens
        self._path = path
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
        path: where it is.
        manifest: the contents of `manifest.json`.
        tokenizer: the one that made it.
        train, heldout: its splits; they share no document.
    """

    path: str
    manifest: dict[str, Any]
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
    in_memory = manifest["splits"][split]["tokens"] * dtype.itemsize <= memory_limit
    with _reading(path):
        tokens, *lengths = (_open_arrays(path, [(shard, split, name) for shard in shards], context) for name in names)
        sentence_lengths, document_lengths = (_read_all(arrays) for arrays in lengths)
        all_tokens = _read_all(tokens) if in_memory else ts.concat(tokens, axis=0)
    return Split(all_tokens, sentence_lengths, document_lengths, path)


def _read_all(arrays: Sequence[ts.TensorStore]) -> np.ndarray:
    pending = [array.read() for array in arrays]
    return np.concatenate([future.result() for future in pending])
