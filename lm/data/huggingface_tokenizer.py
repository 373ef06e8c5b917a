"""Runs the tokenizers of imported models, `tokenizer.json` or `vocab.txt`, with the `tokenizers` library."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lm.data.special_ids import SPECIAL_NAMES, SpecialIds, require
from lm.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Encoding

_MASK = re.compile(r" ?\[MASK\]")


class HuggingFace:
    """A `Tokenizer` of the `tokenizers` library. Its special ids are found by name."""

    file_name = "tokenizer.json"

    def __init__(self, model: bytes):
        """Loads the content of a `tokenizer.json`.

        Raises:
            InputError: it cannot be read, or lacks [PAD] or [SEP], which every model needs.
        """
        import tokenizers  # an optional dependency: pretraining does not need it

        try:
            # Whether "[MASK]" in a text is a special token is a setting of the object, not of a call: we need both.
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
            for field, names in SPECIAL_NAMES.items()
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
        """Returns BERT's tokenizer from a `vocab.txt`, which has one piece a line; the line number is the id."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

        pieces = {piece: index for index, piece in enumerate(vocabulary.decode().splitlines())}
        tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.decoder = decoders.WordPiece()  # pyright: ignore[reportAttributeAccessIssue]
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
        """Returns bool [V]. WordPiece marks what continues a word (`##`), byte-level BPE what begins one (`Ġ`)."""
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
    """Returns a `tokenizer.json` in which no text can produce a special token.

    A unigram model (T5's) has its special tokens among its pieces, so the text "</s>" would produce the id of </s>. We
    put a space before them: texts reach the model without spaces.
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


def _arrays(encodings: "Sequence[Encoding]") -> list[np.ndarray]:
    return [np.array(encoding.ids, np.int32) for encoding in encodings]
