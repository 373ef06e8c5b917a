"""Runs the tokenizers of imported models with the `tokenizers` library.

The file of such a tokenizer is a `tokenizer.json` whose first line also holds what transformers keeps in other files.
That line is cut off before the library reads the rest, which it runs as it is.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from lm.errors import InputError
from lm.tokenizers import imported_ids, words
from lm.tokenizers.frame import Frame
from lm.tokenizers.special_ids import SPECIAL_NAMES, SpecialIds, require

_SENTINEL_NAMES = ("<extra_id_{}>", "▁<extra_id_{}>")  # the second: mT5's, which are pieces of its sentencepiece model
_BEGIN = b'{"lm": '  # of the first line
_PROBES = ("a", "1", ".", "的", "\n", "a1.的")
_SPACED = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")


@dataclasses.dataclass(frozen=True)
class Imported:
    """What transformers keeps beside `tokenizer.json`.

    Attributes:
        roles: `cls_token` and so on -> the token, for exports.
        special: the ids of `SpecialIds`' fields up to `mask`; -1 for a role without a token.
        rows: of the model's embedding table; None if they are not known. A larger id is an error of its text.
        longest: the most tokens of a text with its special tokens; None if there is no limit.
        split_special_tokens: whether the name of a special token in a text is text.
        clean_up: whether decoding removes the space before punctuation.
        cuts_left: whether a text that is too long loses its beginning.
    """

    roles: dict[str, str] = dataclasses.field(default_factory=dict)
    special: dict[str, int] = dataclasses.field(default_factory=dict)
    rows: int | None = None
    longest: int | None = None
    split_special_tokens: bool = False
    clean_up: bool = False
    cuts_left: bool = False

    def to_bytes(self, tokenizer_json: str) -> bytes:
        """Returns the file of the tokenizer whose `tokenizer.json` is given."""
        line = _BEGIN + json.dumps(dataclasses.asdict(self)).encode() + b",\n"
        return line + tokenizer_json.strip().removeprefix("{").encode()


class HuggingFace:
    """A `Tokenizer` of the `tokenizers` library. Special ids that its file does not state are found by name.

    Its ids are those of transformers: in a text, the name of a special token is that token.
    """

    file_name = "tokenizer.json"

    def __init__(self, model: bytes):
        """Loads the content of a `tokenizer.json`, with or without the line of `Imported`.

        Raises:
            InputError: it cannot be read, or lacks [PAD] or [SEP], which every model needs.
        """
        import tokenizers

        try:
            self.about, self.tokenizer_json = _split(model)
            self._tokenizer = tokenizers.Tokenizer.from_str(self.tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"the tokenizer is no tokenizer.json ({error}).") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = self.about.split_special_tokens
        self._model = model
        self._frames: dict[int, Frame] = {}
        self._ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(self._ids.values(), default=-1) + 1
        self.rows = self.vocab_size if self.about.rows is None else self.about.rows
        self.special = self._find_special()
        require(self.special, "pad", "sep", use="every model")
        self.special_ids = self._find_special_ids()
        self.fingerprint = hashlib.sha256(model).hexdigest()

    @property
    def longest(self) -> int | None:
        return self.about.longest

    @property
    def cuts_left(self) -> bool:
        return self.about.cuts_left

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"the tokenizer cannot read a text: {error}.") from None
        for encoding in encodings:
            imported_ids.check_rows(encoding.ids, self.rows, self.pieces)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_with_masks(self, text: str) -> np.ndarray:
        return self.encode([imported_ids.with_mask_token(text, self.special, self.pieces)])[0]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        text = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        if self.about.clean_up:
            for spaced in _SPACED[:4]:
                text = text.replace(spaced, spaced[1:])
            text = text.replace(" ' ", "'")
            for spaced in _SPACED[4:]:
                text = text.replace(spaced, spaced[1:])
        return text

    def id_to_piece(self, index: int) -> str:
        return self._tokenizer.id_to_token(int(index)) or ""

    @functools.cached_property
    def pieces(self) -> list[str]:
        """The piece of each id; "" for an id without one."""
        return imported_ids.pieces_by_id(self._ids, self.vocab_size)

    def starts_word(self) -> np.ndarray:
        byte_ids = [self._ids.get(f"<0x{byte:02X}>", -1) for byte in range(256)]
        return words.starts_word(self.pieces, self.special_ids, [] if -1 in byte_ids else byte_ids)

    def frame(self, texts: int) -> Frame:
        """Returns the frame that the post-processor puts around one text or two.

        Raises:
            InputError: it moves the texts, or its tokens have no row in the model's table.
        """
        if texts not in self._frames:
            self._frames[texts] = self._find_frame(texts)
        return self._frames[texts]

    def to_bytes(self) -> bytes:
        return self._model

    def _find_frame(self, texts: int) -> Frame:
        for probe in _PROBES:
            plain = np.array(self._tokenizer.encode(probe, add_special_tokens=False).ids, np.int32)
            if len(plain):
                break
        else:
            raise InputError("the tokenizer gives no text any ids; use another one.")
        framed = self._tokenizer.encode(probe, probe if texts == 2 else None)
        is_text = np.array(framed.special_tokens_mask) == 0
        places = [np.flatnonzero(is_text & (np.array(framed.sequence_ids) == number)) for number in range(texts)]
        if all(map(len, places)):
            bounds = [0, *(end for place in places for end in (place[0], place[-1] + 1)), len(framed.ids)]
            runs = [slice(begin, end) for begin, end in zip(bounds[::2], bounds[1::2], strict=True)]
            found = Frame(
                tuple(tuple(framed.ids[run]) for run in runs),
                tuple(tuple(framed.type_ids[run]) for run in runs),
                tuple(framed.type_ids[place[0]] for place in places),
            )
            imported_ids.check_rows([index for run in found.ids for index in run], self.rows, self.pieces)
            if found.around([plain] * texts)[0].tolist() == framed.ids:
                return found
        raise InputError("the tokenizer's post-processor leaves out or moves the text, which is not supported.")

    def _find_special(self) -> SpecialIds:
        ids = {
            field: next((i for name in names if (i := self._ids.get(name)) is not None), -1)
            for field, names in SPECIAL_NAMES.items()
        } | self.about.special
        found = (self._sentinels(names) for names in _SENTINEL_NAMES)
        sentinels = next((each for each in found if each and each[0] < self.rows), [])
        first = sentinels[0] if sentinels else -1
        return SpecialIds(**ids, first_sentinel=first, num_sentinels=len(sentinels), rows=self.about.rows)

    def _sentinels(self, names: str) -> list[int]:
        """Returns the ids of <extra_id_0>, <extra_id_1>, ..., as long as they descend."""
        sentinels: list[int] = []
        while (index := self._ids.get(names.format(len(sentinels)))) is not None:
            if sentinels and index != sentinels[-1] - 1:
                break
            sentinels.append(index)
        return sentinels

    def _find_special_ids(self) -> np.ndarray:
        added = self._tokenizer.get_added_tokens_decoder()
        first, count = self.special.first_sentinel, self.special.num_sentinels
        named = {getattr(self.special, field) for field in SPECIAL_NAMES} | set(range(first - count + 1, first + 1))
        special = {index for index, token in added.items() if token.special} | named - {-1}
        unusable = imported_ids.unusable(self._ids, self.vocab_size, self.rows)
        return np.array(sorted(special | unusable), np.int32)


def _split(model: bytes) -> tuple[Imported, str]:
    """Returns what the line of `Imported` says, if there is one, and the `tokenizer.json` without it."""
    first, _, rest = model.partition(b"\n")
    if first.startswith(_BEGIN) and first.endswith(b",") and rest:
        return Imported(**json.loads(first[:-1] + b"}")["lm"]), "{" + rest.decode()
    if b'"lm"' in model[:200]:  # written again by another program
        content = json.loads(model)
        return Imported(**content.pop("lm")), json.dumps(content)
    return Imported(), model.decode()
