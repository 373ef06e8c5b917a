"""The JSON records of a token store: a marker for each complete shard, and a manifest for a complete store."""

import json
from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict, cast, get_args

from lm.errors import InputError
from lm.storage import read_keys

FORMAT_VERSION = 2
_READ = (1, 2)  # format versions
MANIFEST = "manifest.json"
SplitName = Literal["train", "heldout"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


Counts = dict[str, int]  # of documents, sentences and tokens


def counted(number: int, things: str) -> str:
    """Returns a number with what is counted, of which the plural is given: `1 document`, `1,200 documents`."""
    return f"{number:,} {things if number != 1 else things.removesuffix('s')}"


class Removed(TypedDict):
    """How many documents were left out because others are nearly equal: of held-out documents, and of all others."""

    near_duplicates: int
    heldout_leaks: int


class Listing(TypedDict):
    """The files of a corpus: their number, their bytes, and a hash of their names, sizes and modification times."""

    files: int
    bytes: int
    digest: str


class Marker(TypedDict):
    """What is known of a complete shard.

    `digest` identifies its content, `skipped` counts the records without text, and each split has its counts and the
    documents, sentences and tokens of each of its blocks.
    """

    digest: str
    lowest_hash: int
    highest_hash: int
    skipped: NotRequired[int]  # absent from older shards
    train: Counts
    heldout: Counts
    blocks: dict[SplitName, list[list[int]]]


class MadeBy(TypedDict):
    """The file, hash and size of the tokenizer that made a store."""

    file: str
    sha256: str
    vocab_size: int


class MostFrequent(TypedDict):
    """The most frequent ordinary token of the training split, and its share of all tokens."""

    id: int
    piece: str
    share: float


class Manifest(TypedDict):
    """What is known of a complete store. Counts are numbers of documents, sentences and tokens.

    `shards` has the tokens of each shard, and `blocks` the blocks of all shards, packed by `lm.data.store`. In format 1
    `shards` has the counts of each split of a shard, and there are no `blocks`.
    """

    format_version: int
    kind: NotRequired[str]  # absent from the oldest stores, which hold documents
    settings: Mapping[str, object]
    tokenizer: MadeBy
    splits: dict[SplitName, Counts]
    most_frequent_token: MostFrequent
    skipped: NotRequired[int]
    removed: NotRequired[Removed]  # with data.near_duplicates
    listing: NotRequired[Listing]  # of a corpus of local files; absent from older stores
    shards: list[int] | list[dict[SplitName, Counts]]
    blocks: NotRequired[dict[SplitName, str]]


def read_manifest(path: str) -> Manifest | None:
    """Returns the manifest of a complete store; None if there is none.

    Raises:
        InputError: the store has another format version, or is damaged.
    """
    (content,) = read_keys(path, [MANIFEST])
    if content is None:
        return None
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise InputError(f"the token store {path!r} is damaged ({MANIFEST} is no JSON object); prepare it again.")
    if manifest.get("format_version") not in _READ:
        raise InputError(
            f"the token store {path!r} has format version {manifest.get('format_version')}; this code reads "
            f"{' and '.join(map(str, _READ))}. Prepare it again in another folder."
        )
    if lost := ", ".join(sorted(Manifest.__required_keys__ - manifest.keys())):
        raise InputError(f"the token store {path!r} is damaged ({MANIFEST} lacks {lost}); prepare it again.")
    return cast(Manifest, manifest)
