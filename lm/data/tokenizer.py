"""The interface of a tokenizer, which turns text into ids and back, and the loading of one from its file.

Tokenizers trained here are sentencepiece models (`sentencepiece_tokenizer`). Those of imported models are files of
sentencepiece or of the `tokenizers` library (`huggingface_tokenizer`).
"""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from lm import storage
from lm.config.paths import expand
from lm.data.huggingface_tokenizer import HuggingFace
from lm.data.sentencepiece_tokenizer import SentencePiece
from lm.data.special_ids import SpecialIds
from lm.errors import InputError


class Tokenizer(Protocol):
    """Turns text into ids and back.

    Attributes:
        special: the ids of the special tokens.
        special_ids: int32, sorted: the ids of all special tokens, sentinels included.
        vocab_size: ids run from 0 to vocab_size - 1.
        fingerprint: hex SHA-256 of the model file.
        file_name: name of the model file inside a store or a working directory.
    """

    special: SpecialIds
    special_ids: np.ndarray
    vocab_size: int
    fingerprint: str
    file_name: str

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32, without [CLS] and [SEP]. Names of special tokens in a text are text."""
        ...

    def encode_with_masks(self, text: str) -> np.ndarray:
        """Returns the ids of a text in which each "[MASK]", with the space before it, becomes the mask id."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of the ids without the special tokens."""
        ...

    def id_to_piece(self, index: int) -> str:
        """Returns the piece with its word mark (`▁`, `##` or `Ġ`), as the model file spells it."""
        ...

    def starts_word(self) -> np.ndarray:
        """Returns bool [V]: whether each piece begins a word, for whole-word masking."""
        ...

    def to_bytes(self) -> bytes:
        """Returns the content of the model file."""
        ...


def load(model: bytes, name: str) -> Tokenizer:
    """Returns the tokenizer of a model file.

    Args:
        model: the content of the file.
        name: of the file; its suffix tells the kind of tokenizer.

    Raises:
        InputError: the file cannot be read, or lacks special tokens.
    """
    if name.endswith(".json"):
        return HuggingFace(model)
    if name.endswith(".txt"):
        return HuggingFace.from_wordpiece(model)
    return SentencePiece(model)


def load_tokenizer(path: str) -> Tokenizer:
    """Returns the tokenizer of a file or a folder, local or in object storage.

    Args:
        path: `tokenizer.model`, `tokenizer.json`, `vocab.txt`, `spiece.model`, or a folder with one of them.

    Raises:
        InputError: there is no tokenizer, or it cannot be used.
    """
    path = expand(path)
    accepted = ("tokenizer.model", "tokenizer.json", "vocab.txt", "spiece.model")
    folder, _, name = path.rstrip("/").rpartition("/")
    places = [(folder or ".", (name,)), (path, accepted)]
    if not storage.is_remote(path):
        places = places[os.path.isdir(path) :][:1]
    for place, names in places:
        for name, content in zip(names, storage.read_keys(place, names), strict=True):
            if content is not None:
                return load(content, name)
    raise InputError(f"no tokenizer at {path!r}; give one of {', '.join(accepted)}, or a folder that holds one.")
