"""Trains and runs sentencepiece tokenizers.

A tokenizer trained here has byte fallback: every string has ids, and its ids decode to the same string (except that
U+2581 becomes a space). The first ids are fixed:

    0 [PAD]   1 [UNK]   2 [CLS]   3 [SEP]   4 [MASK]   5..104 <extra_id_99>..<extra_id_0>

Sentinel k is 104 - k: the sentinels descend, as T5's do. All but [UNK] are control symbols, which no text can produce.
No text produces [UNK] either, because of the byte fallback.

T5's own models (`spiece.model`) are read too; the 100 sentinels are appended to them.
"""

import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from lm.errors import InputError
from lm.tokenizers import words
from lm.tokenizers.frame import Frame, cls_and_sep
from lm.tokenizers.special_ids import FIRST_ORDINARY_ID, NUM_SENTINELS, SpecialIds, require

# Characters of a training sample for each piece of the vocabulary. More take longer and change little.
SAMPLE_CHARACTERS_PER_PIECE = 1200

SMALLEST = 400  # pieces of a tokenizer to train

_LONGEST = 1 << 14  # bytes of a sentence that the trainer reads
_CONTROL = ["[CLS]", "[SEP]", "[MASK]", *(f"<extra_id_{k}>" for k in reversed(range(NUM_SENTINELS)))]
_T5_PIECES = ["<pad>", "</s>", "<unk>"]  # the first pieces of T5's own models
_MASK = re.compile(r" ?\[MASK\]")
_PLACEHOLDERS = [
    chr(code) for code in (*range(1, 9), *range(14, 32))
]  # spelled by byte pieces: no other piece has them


def _cut(texts: list[str]) -> list[str]:
    """Returns the texts, the long ones in parts if the trainer would lose more than 1% of all text with them."""
    longest = _LONGEST // 4  # characters, of four bytes at most
    lost = sum(len(text) for text in texts if len(text) > longest and len(text.encode()) > _LONGEST)
    if lost <= sum(map(len, texts)) / 100:
        return texts
    return [text[start : start + longest] for text in texts for start in range(0, len(text), longest)]


def _train(texts: list[str], vocab_size: int, kind: str, split_digits: bool) -> bytes:
    """Returns a sentencepiece model. It has a piece for `▁`, which begins every text.

    Raises:
        RuntimeError: the vocabulary has no room for the characters of the texts.
    """
    # An option is written into the model, and changes its hash, even if it has the default value.
    options: dict[str, object] = {"split_digits": True} if split_digits else {}
    model = _trained(texts, vocab_size, kind, options)
    if sentencepiece.SentencePieceProcessor(model_proto=model).piece_to_id("▁") == 1:  # [UNK]: it was too rare
        model = _trained(texts, vocab_size, kind, {**options, "required_chars": "▁"})
    return model


def _trained(texts: list[str], vocab_size: int, kind: str, options: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
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
        max_sentence_length=_LONGEST,
        num_threads=16,  # fixed, because the number of threads changes the rounding and so the model
        minloglevel=3,
        **options,  # pyright: ignore[reportArgumentType]
    )
    return buffer.getvalue()


class SentencePiece:
    """A `Tokenizer` of a sentencepiece model with this module's special ids or with T5's."""

    file_name = "tokenizer.model"

    def __init__(self, model: bytes):
        """Loads a serialized model.

        Raises:
            InputError: the bytes are no sentencepiece model, or its special ids are neither this module's nor T5's.
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
        """Trains a tokenizer on sentences. The result depends on the texts alone.

        Text is neither normalised, which would turn `，` into `,`, nor stripped of whitespace: decoding gives back the
        text. A small corpus gives fewer pieces than `vocab_size`. Characters get pieces in the order of their
        frequency; where the vocabulary has no room for them, the rare ones are spelt as bytes.

        Args:
            texts: sentences without line breaks. Those over 16 KiB are ignored, unless they are a large part.
            vocab_size: pieces wanted, with the 105 special and 256 byte pieces.
            kind: `unigram` or `bpe`.
            split_digits: make every digit a piece of its own.

        Raises:
            InputError: there is no text, or `texts` raised it.
        """
        texts = _cut(list(texts))
        if not any(map(str.strip, texts)):
            raise InputError("no tokenizer can be trained on this corpus: it holds nothing but white space.")
        try:
            return cls(_train(texts, vocab_size, kind, split_digits))
        except RuntimeError:  # the vocabulary has no room for all frequent characters
            pass
        by_frequency = [character for character, _ in Counter(itertools.chain.from_iterable(texts)).most_common()]
        room = vocab_size - len(_CONTROL) - 2 - 256
        count = min(len(by_frequency), room * 7 // 8)  # the rest is for pieces of several characters
        while count > 0:
            rare = re.compile(f"[^{re.escape(''.join(by_frequency[:count]))}]+")
            parts = [part for text in texts for part in rare.split(text) if part]
            try:
                return cls(_train(parts, vocab_size, kind, split_digits))
            except RuntimeError:
                count = count * 3 // 4
        raise InputError(f"data.vocab_size is {vocab_size}, which is too small for this corpus; raise it.")

    @property
    def longest(self) -> int | None:
        return None

    @property
    def cuts_left(self) -> bool:
        return False

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self._processor.encode(list(texts), return_type="numpy", num_threads=1)

    def encode_with_masks(self, text: str) -> np.ndarray:
        if "[MASK]" not in text:
            return self.encode([text])[0]
        require(self.special, "mask", use="a text with [MASK]")
        # A character that the text does not hold stands for [MASK].
        placeholder = next((character for character in _PLACEHOLDERS if character not in text), _PLACEHOLDERS[0])
        marked = _MASK.sub(placeholder, text.replace(placeholder, ""))
        ids, (*_, stands_for_mask) = self.encode([marked, placeholder])
        masked = np.where(ids == stands_for_mask, self.special.mask, ids).astype(np.int32)
        # If the text begins with [MASK], the first id is the word mark of the missing word.
        return masked[1:] if marked.startswith(placeholder) else masked

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._processor.decode([int(i) for i in ids if i < self._num_pieces])

    def id_to_piece(self, index: int) -> str:
        if index >= self._num_pieces:
            return f"<extra_id_{self.special.first_sentinel - int(index)}>"
        return self._processor.id_to_piece(int(index))

    def starts_word(self) -> np.ndarray:
        pieces = [self.id_to_piece(index) for index in range(self.vocab_size)]
        byte_ids = [index for index in range(self._num_pieces) if self._processor.is_byte(index)]
        return words.starts_word(pieces, self.special_ids, byte_ids)

    def frame(self, texts: int) -> Frame:
        return cls_and_sep(self.special.cls, self.special.sep, texts)

    def to_bytes(self) -> bytes:
        return self._model
