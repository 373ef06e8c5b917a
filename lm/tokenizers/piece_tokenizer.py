"""Runs tokenizers that cut text with sentencepiece and number the pieces by a `vocab.json`: Marian's and M2M-100's.

Transformers runs them in Python, without the `tokenizers` library. The steps here are the same: added tokens are cut
out of the text first, then sentencepiece cuts what lies between them.
"""

import base64
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence

import numpy as np
import sentencepiece

from lm.errors import InputError
from lm.tokenizers import imported_ids, languages, words
from lm.tokenizers.frame import Frame
from lm.tokenizers.settings import CONFIG, ROLES, Settings, Token, read_object
from lm.tokenizers.special_ids import SpecialIds, require

MARIAN, M2M100 = "MarianTokenizer", "M2M100Tokenizer"
MODELS = {MARIAN: ("source.spm", "target.spm"), M2M100: ("sentencepiece.bpe.model",)}
VOCABULARY = "vocab.json"
CLASSES = tuple(MODELS)
FILES = ("source.spm",)  # tells such a folder from others
_SPACED = re.compile(r"^>>.*?<<", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What the file of a `PieceTokenizer` holds.

    Attributes:
        class_name: of transformers.
        vocabulary: piece -> id.
        models: the sentencepiece models, in base 64. The first one cuts text.
        added: content -> (id, flags of an added token).
        roles: `eos_token` and so on -> the token.
        prefix: the token before a text, such as a language's code; "" for none.
        settings: of `tokenizer_config.json`, for exports.
        rows, longest, split_special_tokens: see `huggingface_tokenizer.Imported`.
    """

    class_name: str
    vocabulary: dict[str, int]
    models: list[str]
    added: dict[str, tuple[int, dict[str, bool]]]
    roles: dict[str, str]
    prefix: str
    settings: dict[str, object]
    rows: int | None
    longest: int | None
    split_special_tokens: bool


class PieceTokenizer:
    """A `Tokenizer` of sentencepiece models and a vocabulary of their pieces."""

    file_name = "tokenizer.pieces.json"

    def __init__(self, model: bytes):
        """Loads the file.

        Raises:
            InputError: it cannot be read, or lacks special tokens.
        """
        try:
            self.contents = contents = Contents(**json.loads(model))
            self.models = [base64.b64decode(each) for each in contents.models]
            self._processors = [sentencepiece.SentencePieceProcessor(model_proto=each) for each in self.models]
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"the tokenizer is no file of pieces ({error}).") from None
        self._model = model
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self._added = {content: index for content, (index, _) in contents.added.items()}
        self._ids = contents.vocabulary | self._codes | self._added
        self.vocab_size = max(self._ids.values()) + 1
        self.rows = self.vocab_size if contents.rows is None else contents.rows
        ids = {role: self._ids.get(token, -1) for role, token in contents.roles.items()}
        self.special = SpecialIds(
            pad=ids.get("pad_token", -1),
            unk=ids.get("unk_token", -1),
            cls=ids.get("bos_token", -1),
            sep=ids.get("eos_token", -1),
            mask=ids.get("mask_token", -1),
            first_sentinel=-1,
            num_sentinels=0,
            rows=contents.rows,
        )
        require(self.special, "pad", "unk", "sep", use="every model")
        special = {index for index, flags in contents.added.values() if flags.get("special")} | set(ids.values())
        unusable = imported_ids.unusable(self._ids, self.vocab_size, self.rows)
        self.special_ids = np.array(sorted((special | set(self._codes.values()) | unusable) - {-1}), np.int32)

    @functools.cached_property
    def _codes(self) -> dict[str, int]:
        """The tokens of M2M-100's languages, which follow the vocabulary."""
        if self.contents.class_name != M2M100:
            return {}
        first = len(self.contents.vocabulary)
        codes = languages.LISTS[str(self.contents.settings.get("language_codes", languages.DEFAULT_LIST))]
        return {f"__{code}__": first + number for number, code in enumerate(codes)}

    @functools.cached_property
    def pieces(self) -> list[str]:
        """The piece of each id; "" for an id without one."""
        return imported_ids.pieces_by_id(self._ids, self.vocab_size)

    @property
    def longest(self) -> int | None:
        return self.contents.longest

    @property
    def cuts_left(self) -> bool:
        return self.contents.settings.get("truncation_side") == "left"

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = []
        for text in texts:
            ids = [self._id(piece) for piece in self._cut(text)]
            imported_ids.check_rows(ids, self.rows, self.pieces)
            found.append(np.array(ids, np.int32))
        return found

    def encode_with_masks(self, text: str) -> np.ndarray:
        return self.encode([imported_ids.with_mask_token(text, self.special, self.pieces)])[0]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        special = set(self.special_ids.tolist())
        pieces = [self.id_to_piece(int(i)) for i in ids if int(i) not in special]
        return self._processors[0].decode_pieces(pieces).replace("▁", " ").strip()

    def id_to_piece(self, index: int) -> str:
        return self.pieces[int(index)] if 0 <= index < self.vocab_size else ""

    def starts_word(self) -> np.ndarray:
        return words.starts_word(self.pieces, self.special_ids)

    def frame(self, texts: int) -> Frame:
        """Returns the frame: the language's code, the texts, and `</s>`."""
        prefix = (self._ids[self.contents.prefix],) if self.contents.prefix else ()
        ids = [prefix, *[()] * (texts - 1), (self.special.sep,)]
        imported_ids.check_rows([*prefix, self.special.sep], self.rows, self.pieces)
        return Frame(tuple(ids), tuple((0,) * len(each) for each in ids), (0,) * texts)

    def to_bytes(self) -> bytes:
        return self._model

    def _cut(self, text: str) -> list[str]:
        """Returns the pieces of a text. Added tokens are pieces of their own."""
        if self.contents.split_special_tokens or not self._added:
            return self._cut_plain(text)
        parts = self._pattern.split(text)  # tokens stand at odd places
        for place in range(1, len(parts), 2):
            flags = self.contents.added[parts[place]][1]
            left, right = parts[place - 1], parts[place + 1]
            if flags.get("rstrip"):
                parts[place + 1] = right = right.lstrip()
            if flags.get("lstrip"):
                parts[place - 1] = left = left.rstrip()
            if flags.get("single_word"):
                if left and left[-1] != " ":
                    parts[place - 1], parts[place] = left + parts[place], ""
                elif right and right[0] != " ":
                    parts[place + 1], parts[place] = parts[place] + right, ""
        pieces = []
        for part in parts:
            if part in self._added:
                pieces.append(part)
            elif part:
                pieces += self._cut_plain(part)
        return pieces

    def _cut_plain(self, text: str) -> list[str]:
        code = _SPACED.match(text) if self.contents.class_name == MARIAN else None
        if code:
            return [code[0], *self._processors[0].encode(text[code.end() :], out_type=str)]
        return self._processors[0].encode(text, out_type=str)

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._added, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def _id(self, piece: str) -> int:
        return self._ids.get(piece, self.special.unk)


def read(settings: Settings, class_name: str, rows: int | None) -> PieceTokenizer:
    """Returns the tokenizer of a folder's vocabulary and models.

    Raises:
        InputError: a file is missing or cannot be read, or a setting is not supported.
    """
    for name in ("sp_model_kwargs", "separate_vocabs"):
        if settings.values.get(name):
            raise InputError(f"{CONFIG} has {name} {settings.values[name]!r}, which is not supported.")
    vocabulary = _vocabulary(settings)
    models = []
    for name in MODELS[class_name]:
        file = settings.folder / name
        if not file.is_file():
            raise InputError(f"the folder has no {name}, which {class_name} reads.")
        models.append(base64.b64encode(file.read_bytes()).decode())
    roles: dict[str, Token | None] = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    if class_name == M2M100:
        roles |= {"bos_token": "<s>", "sep_token": "</s>"}
    names = {role: _name(token) for role, token in (roles | settings.roles).items() if token is not None}
    if names.get("unk_token") not in vocabulary:
        raise InputError(f"{VOCABULARY} lacks the unknown token {names.get('unk_token')!r}.")
    kept = (
        "truncation_side",
        "source_lang",
        "target_lang",
        "src_lang",
        "tgt_lang",
        "language_codes",
        "num_madeup_words",
    )
    contents = Contents(
        class_name=class_name,
        vocabulary=vocabulary,
        models=models,
        added=_added(settings, vocabulary, names, class_name),
        roles=names,
        prefix=_prefix(settings) if class_name == M2M100 else "",
        settings={name: settings.values[name] for name in kept if name in settings.values},
        rows=rows,
        longest=settings.longest or (512 if class_name == MARIAN else None),
        split_special_tokens=settings.flag("split_special_tokens", False),
    )
    return PieceTokenizer(json.dumps(dataclasses.asdict(contents)).encode())


def _vocabulary(settings: Settings) -> dict[str, int]:
    found = read_object(settings.folder, VOCABULARY)
    if not found:
        raise InputError(f"the folder has no {VOCABULARY} with pieces and their ids.")
    vocabulary = {}
    for piece, index in found.items():
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**31:
            raise InputError(
                f"{VOCABULARY} has the id {index!r} for the piece {piece!r}; accepted: a number from 0 on."
            )
        vocabulary[piece] = index
    return vocabulary


def _added(
    settings: Settings, vocabulary: dict[str, int], roles: dict[str, str], class_name: str
) -> dict[str, tuple[int, dict[str, bool]]]:
    """Returns the added tokens of the files, and the special tokens, which get the next ids if they have none."""
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    added = {
        token.content: (index, {flag: getattr(token, flag) for flag in flags})
        for index, token in settings.added.items()
    }
    known = _pieces_by_id(settings, vocabulary, class_name) | {content: index for content, (index, _) in added.items()}
    extra = settings.extra if settings.extra is not None else settings.additional
    named = [roles[role] for role in ROLES if role in roles]
    size = len(known)
    for content in dict.fromkeys([*named, *map(_name, settings.named.values()), *map(_name, extra or [])]):
        if content not in added:
            if content not in known:
                known[content], size = size, size + 1
            plain = dict.fromkeys(flags, False) | {"special": True}
            added[content] = (known[content], plain)
    return added


def _pieces_by_id(settings: Settings, vocabulary: dict[str, int], class_name: str) -> dict[str, int]:
    """Returns the vocabulary as transformers counts it, which decides the ids of new tokens."""
    if class_name == MARIAN:
        return dict(vocabulary)
    by_id = {index: piece for piece, index in vocabulary.items()}
    by_id |= {index: token.content for index, token in settings.added.items()}
    unknown = _name(settings.roles.get("unk_token") or "<unk>")
    return {by_id.get(index, unknown): index for index in range(len(vocabulary))}


def _prefix(settings: Settings) -> str:
    codes = settings.text("language_codes") or languages.DEFAULT_LIST
    if codes not in languages.LISTS:
        raise InputError(f"{CONFIG} has language_codes {codes!r}; accepted: {', '.join(languages.LISTS)}.")
    source = settings.text("src_lang") or "en"
    if source not in languages.LISTS[codes]:
        raise InputError(f"{CONFIG} has src_lang {source!r}; accepted: {', '.join(languages.LISTS[codes])}.")
    return f"__{source}__"


def _name(token: Token) -> str:
    return token if isinstance(token, str) else token.content
