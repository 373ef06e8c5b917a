"""Text to ids and back, with special ids that never move.

A tokenizer trained here is a sentencepiece model with byte fallback: every string has ids, and its
ids decode to the same string (but for U+2581, which stands for a space). The first ids are fixed:

    0 [PAD]   1 [UNK]   2 [CLS]   3 [SEP]   4 [MASK]   5..104 <extra_id_99>..<extra_id_0>

Sentinel k is 104 - k, so the sentinels descend as T5's do. All but [UNK] are control symbols, which no
text can produce; [UNK] cannot appear because of the byte fallback.

T5's own models (`spiece.model`) are read too; to them the 100 sentinels are appended. Tokenizers of other imported
models (`tokenizer.json`, `vocab.txt`) go through the `tokenizers` library behind the same interface; there the
special ids are looked up by name.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import sentencepiece

from lm import storage
from lm.errors import InputError

NUM_SENTINELS = 100
FIRST_ORDINARY_ID = 5 + NUM_SENTINELS

# Characters that a training sample needs for each piece to learn; more only takes longer.
SAMPLE_CHARACTERS_PER_PIECE = 1200

_CONTROL = ["[CLS]", "[SEP]", "[MASK]", *(f"<extra_id_{k}>" for k in reversed(range(NUM_SENTINELS)))]
_MASK = re.compile(r" ?\[MASK\]")
_PLACEHOLDER = "\x01"  # stands for [MASK] inside text; a byte piece, so no other piece contains it


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids with a meaning of their own; -1 for what a tokenizer has not.

    Attributes:
        pad, unk, cls, sep, mask: [PAD], [UNK], [CLS], [SEP] (which also ends what a decoder writes) and [MASK].
        first_sentinel, num_sentinels: of <extra_id_0>, and how many there are, their ids descending.
    """

    pad: int = 0
    unk: int = 1
    cls: int = 2
    sep: int = 3
    mask: int = 4
    first_sentinel: int = 4 + NUM_SENTINELS
    num_sentinels: int = NUM_SENTINELS

    def start(self, decoder_start: str) -> int:
        """The id that a decoder is given first, `ModelConfig.decoder_start` being its field here."""
        return getattr(self, decoder_start)


# What T5's own models have, from which the sentinels follow.
_T5_PIECES = ["<pad>", "</s>", "<unk>"]

# What the special tokens are called in imported models: BERT's names, then RoBERTa's, BART's and T5's.
_SPECIAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


def require(special: SpecialIds, *fields: str, use: str) -> None:
    """Refuses a tokenizer that lacks a special token, one of `SpecialIds`, that some use of it needs.

    Raises:
        InputError: naming the token and the use.
    """
    for field in fields:
        if getattr(special, field) < 0:
            names = " or ".join(_SPECIAL_NAMES[field])
            raise InputError(
                f"the tokenizer has no {names}, which {use} needs; use another tokenizer, or leave data.tokenizer "
                "empty to train one."
            )


class Tokenizer(Protocol):
    """What the rest of the code asks of a tokenizer.

    Attributes:
        special: the ids with a meaning of their own.
        special_ids: int32, sorted: every id that is no ordinary piece, sentinels included.
        vocab_size: ids run from 0 to vocab_size - 1.
        fingerprint: hex SHA-256 of the model file.
        file_name: what the model file is called inside a store or a checkpoint.
    """

    special: SpecialIds
    special_ids: np.ndarray
    vocab_size: int
    fingerprint: str
    file_name: str

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32, without [CLS] and [SEP]; markup in the text stays text."""
        ...

    def encode_with_masks(self, text: str) -> np.ndarray:
        """As `encode`, but each literal "[MASK]" (with the space before it) becomes the mask id."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids, special ids left out."""
        ...

    def id_to_piece(self, index: int) -> str:
        """The piece, with its word mark (`▁`, `##`, `Ġ`) as the model file has it."""
        ...

    def starts_word(self) -> np.ndarray:
        """bool [V]: whether a piece begins a word, for whole-word masking."""
        ...

    def to_bytes(self) -> bytes:
        """The model file."""
        ...


def _is_cjk(character: str) -> bool:
    code = ord(character)
    return (
        0x2E80 <= code <= 0x9FFF or 0xAC00 <= code <= 0xD7AF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF
    )


class SentencePiece:
    """A sentencepiece model with the fixed special ids, or T5's; see `Tokenizer` for the methods."""

    file_name = "tokenizer.model"

    def __init__(self, model: bytes):
        """Loads a serialized model.

        Raises:
            InputError: the bytes are no sentencepiece model, or one with other special ids than this module's or T5's.
        """
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"the tokenizer is no sentencepiece model ({error}); give a .model file.") from error
        self._model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self._num_pieces = size = self._processor.get_piece_size()
        expected = ["[PAD]", "[UNK]", *_CONTROL]
        pieces = [self._processor.id_to_piece(i) for i in range(min(len(expected), size))]
        if pieces == expected:
            self.special, self.vocab_size = SpecialIds(), size
            self.special_ids = np.arange(FIRST_ORDINARY_ID, dtype=np.int32)
        elif pieces[: len(_T5_PIECES)] == _T5_PIECES:
            self.vocab_size = size + NUM_SENTINELS
            last = self.vocab_size - 1
            self.special = SpecialIds(pad=0, unk=2, cls=-1, sep=1, mask=-1, first_sentinel=last)
            self.special_ids = np.array([0, 1, 2, *range(size, self.vocab_size)], np.int32)
        else:
            raise InputError(
                f"the tokenizer's first pieces are {', '.join(pieces[:6])}, ...; accepted: models that lm trained, "
                f"which begin with {', '.join(expected[:6])}, ..., and T5's, with {', '.join(_T5_PIECES)}. Leave "
                "data.tokenizer empty to train one."
            )

    @classmethod
    def train(
        cls, texts: Iterable[str], *, vocab_size: int, kind: str = "unigram", split_digits: bool = False
    ) -> "SentencePiece":
        """Trains on sentences (no line breaks); the result depends on the texts alone.

        Text is taken as it is: no Unicode normalisation, which would turn `，` into `,`, and no
        whitespace removed, so that decoding gives back the text. A small corpus gives fewer pieces
        than `vocab_size`.

        Args:
            texts: sentences; longer than 16 KiB are ignored.
            vocab_size: pieces wanted, with the 105 special and 256 byte pieces.
            kind: `unigram` or `bpe`.
            split_digits: every digit is a piece of its own.

        Raises:
            InputError: there is too little text for any piece, or `texts` raised it.
        """
        buffer = io.BytesIO()
        unreadable: list[InputError] = []

        def watched() -> Iterator[str]:  # the trainer turns any error of its iterator into a RuntimeError
            try:
                yield from texts
            except InputError as error:
                unreadable.append(error)
                raise

        # A given option is written into the model, and so changes its hash, even where it is the default.
        written_only_if_set: dict[str, Any] = {"split_digits": True} if split_digits else {}
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=watched(),
                model_writer=buffer,
                model_type=kind,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                pad_id=0,
                unk_id=1,
                bos_id=-1,
                eos_id=-1,
                pad_piece="[PAD]",
                unk_piece="[UNK]",
                control_symbols=_CONTROL,
                byte_fallback=True,
                character_coverage=0.9995,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                max_sentence_length=1 << 14,
                num_threads=16,  # fixed: the number of threads enters the rounding, and so the model
                minloglevel=2,
                **written_only_if_set,
            )
        except RuntimeError as error:
            if unreadable:
                raise unreadable[0] from None
            raise InputError(f"no tokenizer can be trained on this corpus ({error}); give more text.") from error
        return cls(buffer.getvalue())

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self._processor.encode(list(texts), return_type="numpy", num_threads=1)

    def encode_with_masks(self, text: str) -> np.ndarray:
        if "[MASK]" in text:
            require(self.special, "mask", use="a text with [MASK]")
        marked = _MASK.sub(_PLACEHOLDER, text.replace(_PLACEHOLDER, ""))
        (ids,) = self.encode([marked])
        masked = np.where(ids == self._placeholder_id, self.special.mask, ids).astype(np.int32)
        # A text that begins with [MASK] leaves the word mark of the missing word.
        return masked[1:] if marked.startswith(_PLACEHOLDER) else masked

    @functools.cached_property
    def _placeholder_id(self) -> int:
        return int(self.encode([_PLACEHOLDER])[0][-1])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._processor.decode([int(i) for i in ids if i < self._num_pieces])

    def id_to_piece(self, index: int) -> str:
        if index >= self._num_pieces:
            return f"<extra_id_{self.special.first_sentinel - int(index)}>"
        return self._processor.id_to_piece(int(index))

    def starts_word(self) -> np.ndarray:
        """bool [V]: `▁...`, special ids, punctuation, and CJK pieces, since CJK text has no spaces.

        Byte pieces spell a character that has no piece. ASCII bytes and the first byte of three or
        four (most are CJK or symbols) begin a word; the first of two (Latin, Greek, Cyrillic, ...)
        and continuation bytes go on with the word before.
        """
        starts = np.ones(self.vocab_size, bool)
        for index in np.setdiff1d(np.arange(self.vocab_size), self.special_ids).tolist():
            piece = self.id_to_piece(index)
            if self._processor.is_byte(index):
                byte = int(piece[1:-1], 16)
                starts[index] = byte < 0x80 or byte >= 0xE0
            else:
                starts[index] = piece[0] == "▁" or _is_cjk(piece[0]) or not any(map(str.isalnum, piece))
        return starts

    def to_bytes(self) -> bytes:
        return self._model


class HuggingFace:
    """A tokenizer of the `tokenizers` library; see `Tokenizer` for the methods."""

    file_name = "tokenizer.json"

    def __init__(self, model: bytes):
        """Loads the text of a `tokenizer.json`.

        Raises:
            InputError: it cannot be read, or lacks the special tokens that every model needs: [PAD] and [SEP].
        """
        import tokenizers  # not needed to pretrain

        try:
            # Two, since whether "[MASK]" in a text is markup is a setting of the object, not of a call.
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode())
            self._literal = tokenizers.Tokenizer.from_str(_without_markup(model))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"the tokenizer is no tokenizer.json ({error}).") from error
        for tokenizer in (self._tokenizer, self._literal):
            tokenizer.no_padding()
            tokenizer.no_truncation()
        self._literal.encode_special_tokens = True
        self._model = model
        ids = {
            field: next((i for name in names if (i := self._tokenizer.token_to_id(name)) is not None), -1)
            for field, names in _SPECIAL_NAMES.items()
        }
        sentinels = []
        while (index := self._tokenizer.token_to_id(f"<extra_id_{len(sentinels)}>")) is not None:
            if sentinels and index != sentinels[-1] - 1:
                break
            sentinels.append(index)
        first = sentinels[0] if sentinels else -1
        self.special = SpecialIds(**ids, first_sentinel=first, num_sentinels=len(sentinels))
        require(self.special, "pad", "sep", use="every model")
        added = self._tokenizer.get_added_tokens_decoder()
        special = {index for index, token in added.items() if token.special} | {*ids.values(), *sentinels}
        self.special_ids = np.array(sorted(special - {-1}), np.int32)
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.fingerprint = hashlib.sha256(model).hexdigest()

    @classmethod
    def from_wordpiece(cls, vocabulary: bytes, lowercase: bool = True) -> "HuggingFace":
        """BERT's tokenizer from a `vocab.txt`: one piece a line, the line number is the id."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

        pieces = {piece: index for index, piece in enumerate(vocabulary.decode().splitlines())}
        tokenizer: Any = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        special = [name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in pieces]
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
        return cls(tokenizer.to_str().encode())

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return _arrays(self._literal.encode_batch_fast(list(texts), add_special_tokens=False))

    def encode_with_masks(self, text: str) -> np.ndarray:
        if "[MASK]" in text:
            require(self.special, "mask", use="a text with [MASK]")
            name = self.id_to_piece(self.special.mask)
            text = _MASK.sub(lambda match: match[0].replace("[MASK]", name), text)
        return _arrays([self._tokenizer.encode(text, add_special_tokens=False)])[0]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def id_to_piece(self, index: int) -> str:
        return self._tokenizer.id_to_token(int(index)) or ""

    def starts_word(self) -> np.ndarray:
        """bool [V]: WordPiece marks what continues a word (`##`); byte-level BPE what begins one (`Ġ`)."""
        pieces = [self.id_to_piece(i) for i in range(self.vocab_size)]
        if any(piece.startswith("##") for piece in pieces):
            starts = np.array([not piece.startswith("##") for piece in pieces])
        else:
            starts = np.array([piece.startswith(("Ġ", "▁")) or not any(map(str.isalnum, piece)) for piece in pieces])
        starts[self.special_ids] = True
        return starts

    def to_bytes(self) -> bytes:
        return self._model


def _without_markup(model: bytes) -> str:
    """A `tokenizer.json` whose vocabulary spells its special tokens as no text can.

    A unigram model (T5's) has them among its pieces, so a text that holds "</s>" would produce its id. No text that
    it divides holds a space.
    """
    content = json.loads(model)
    if content["model"].get("type") != "Unigram":
        return model.decode()
    added = content["added_tokens"]
    special = {token["content"] for token in added if token["special"]}
    pieces = content["model"]["vocab"]
    content["model"]["vocab"] = [[f" {piece}" if piece in special else piece, score] for piece, score in pieces]
    content["added_tokens"] = [token for token in added if not token["special"]]
    content["post_processor"] = None
    return json.dumps(content)


def _arrays(encodings: Sequence[Any]) -> list[np.ndarray]:
    return [np.array(encoding.ids, np.int32) for encoding in encodings]


def load(model: bytes, name: str) -> Tokenizer:
    """The tokenizer in a model file's bytes, its kind told by the file's name.

    Raises:
        InputError: see the classes.
    """
    if name.endswith(".json"):
        return HuggingFace(model)
    if name.endswith(".txt"):
        return HuggingFace.from_wordpiece(model)
    return SentencePiece(model)


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a file, or of a folder that holds one; local or on object storage.

    Args:
        path: `tokenizer.model`, `tokenizer.json`, `vocab.txt`, `spiece.model`, or a folder with one of them.

    Raises:
        InputError: there is none, or it cannot be used.
    """
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
