"""The interface of a tokenizer, which turns text into ids and back, and the loading of one from its file.

Tokenizers trained here are sentencepiece models (`sentencepiece_tokenizer`). Those of imported models are files of
sentencepiece or of the `tokenizers` library (`huggingface_tokenizer`).
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from lm import storage
from lm.config.paths import expand
from lm.errors import InputError
from lm.tokenizers.frame import Frame
from lm.tokenizers.huggingface_tokenizer import HuggingFace
from lm.tokenizers.piece_tokenizer import PieceTokenizer
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece
from lm.tokenizers.special_ids import SpecialIds

FILES = (SentencePiece.file_name, HuggingFace.file_name, PieceTokenizer.file_name)  # of a store or a working directory
_OF_FOLDERS = ("vocab.txt", "spiece.model")  # of imported models, converted when they are read


class Tokenizer(Protocol):
    """Turns text into ids and back.

    Attributes:
        special: the ids of the special tokens.
        special_ids: int32, sorted: the ids of all special tokens, sentinels included.
        vocab_size: ids run from 0 to vocab_size - 1. Not all of them need to be in use.
        fingerprint: hex SHA-256 of the model file.
        file_name: name of the model file inside a store or a working directory.
    """

    special: SpecialIds
    special_ids: np.ndarray
    vocab_size: int
    fingerprint: str
    file_name: str

    @property
    def longest(self) -> int | None:
        """The most tokens of an input, special tokens included; None if the tokenizer sets no limit."""
        ...

    @property
    def cuts_left(self) -> bool:
        """Whether a text that is too long loses its beginning and not its end."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32, without the special tokens that a model's input begins and ends with.

        In a tokenizer trained here, the name of a special token in a text is text. In an imported one it is the token,
        as in transformers.

        Raises:
            InputError: a text holds a token that has no row in the model's table of embeddings.
        """
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

    def frame(self, texts: int) -> Frame:
        """Returns the special tokens around one text or two, as an encoder reads them."""
        ...

    def to_bytes(self) -> bytes:
        """Returns the content of the model file."""
        ...


def load(model: bytes, name: str) -> Tokenizer:
    """Returns the tokenizer of a model file.

    Args:
        model: the content of the file.
        name: of the file; it tells the kind of tokenizer.

    Raises:
        InputError: the file cannot be read, or lacks special tokens.
    """
    if name == PieceTokenizer.file_name:
        return PieceTokenizer(model)
    if name.endswith(".json"):
        return HuggingFace(model)
    if name in _OF_FOLDERS:
        from lm.tokenizers import folders  # which imports `tokenizers`, slow to import

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, name).write_bytes(model)
            return folders.read(Path(folder))
    return SentencePiece(model)


def load_tokenizer(path: str) -> Tokenizer:
    """Returns the tokenizer of a file or a folder, local or in object storage.

    Args:
        path: `tokenizer.model`, `tokenizer.json`, `vocab.txt`, `spiece.model`, or a folder with one of them. The other
            files of a local Hugging Face folder count too.

    Raises:
        InputError: there is no tokenizer, or it cannot be used.
    """
    path = expand(path)
    folder, _, name = path.rstrip("/").rpartition("/")
    places = [(folder or ".", (name,)), (path, (*FILES, *_OF_FOLDERS))]
    if storage.is_remote(path):
        (settings,) = storage.read_keys(path, ["tokenizer_config.json"])
        if settings is not None:
            raise InputError(f"{path} is a Hugging Face folder; copy it to this machine, and give the local folder.")
    else:
        from lm.tokenizers import folders

        places = places[os.path.isdir(path) :][:1]
        whole = Path(path if os.path.isdir(path) else folder or ".")
        if folders.is_folder(whole) and (os.path.isdir(path) or name in _OF_FOLDERS):
            return folders.read(whole)
    for place, names in places:
        for name, content in zip(names, storage.read_keys(place, names), strict=True):
            if content is not None:
                return load(content, name)
    accepted = ", ".join([*FILES[:2], *_OF_FOLDERS])
    raise InputError(f"no tokenizer at {path!r}; give one of {accepted}, or a folder that holds one.")
