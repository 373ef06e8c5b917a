"""Reads the settings of a Hugging Face tokenizer's folder, and checks their types.

Four files may state the same fact. They are read as transformers 5 reads them: if `tokenizer_config.json` has
`added_tokens_decoder`, that describes all added tokens. If not, `special_tokens_map.json` replaces the roles of
`tokenizer_config.json`, and the added tokens are those of `added_tokens.json` and `tokenizer.json`.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken

from lm.errors import InputError

CONFIG, ROLES_MAP, ADDED, FAST = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Settings that would name a program or replace a part of the tokenizer. A saved tokenizer has none of them.
_REFUSED = ("auto_map", "gguf_file", "init_inputs", "merges", "post_processor", "tokenizer_object", "vocab")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")
_UNLIMITED = 10**9  # transformers writes a larger model_max_length if there is no limit

Json = dict[str, object]
Token = AddedToken | str


def read_object(folder: Path, name: str) -> Json | None:
    """Returns the JSON object of a file; None if there is no such file.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{name} cannot be read as JSON: {error}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{name} holds a JSON {type(content).__name__}; accepted: an object.")
    return content


@dataclasses.dataclass
class Settings:
    """The settings of a folder.

    Attributes:
        folder: the folder.
        values: the content of `tokenizer_config.json`, without its tokens.
        roles: the tokens of `ROLES` that the files name. None is a role that the files leave empty.
        named: tokens of other roles, such as `image_token`.
        extra: special tokens without a role; None if the files list none.
        additional: those that `special_tokens_map.json` lists as `additional_special_tokens`.
        added: id -> added token, as the files say.
        fast: the content of `tokenizer.json`.
    """

    folder: Path
    values: Json
    roles: dict[str, Token | None]
    named: dict[str, Token]
    extra: list[Token] | None = None
    additional: list[Token] | None = None
    added: dict[int, AddedToken] = dataclasses.field(default_factory=dict)
    fast: Json | None = None

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """Reads the files of a folder.

        Raises:
            InputError: a file cannot be read, or a setting has the wrong type or is not supported.
        """
        values = read_object(folder, CONFIG) or {}
        for name in _REFUSED:
            if values.get(name):
                raise InputError(f"{CONFIG} has {name}, which is not supported; remove it.")
        roles = {name: _role(values.pop(name), CONFIG, name) for name in ROLES if name in values}
        others = [key for key, value in values.items() if key.endswith("_token") and isinstance(value, str | dict)]
        named = {key: _token(values.pop(key), CONFIG, key) for key in others}
        found = cls(folder, values, roles, named, fast=read_object(folder, FAST))
        additional = values.pop("additional_special_tokens", None)
        extra = values.pop("extra_special_tokens", None)
        # A list takes the place of the older key's; an object does so where a sentencepiece model is converted.
        converted = not found.fast and any(folder.glob("*.model")) and not (folder / "vocab.json").exists()
        if not extra or (isinstance(extra, dict) and not converted):
            found._take_extra(additional, CONFIG)
        found._take_extra(extra or {}, CONFIG)
        found._take_extra(values.pop("model_specific_special_tokens", None) or {}, CONFIG)
        if "added_tokens_decoder" in values:
            found.added = _by_id(values.pop("added_tokens_decoder"))
        else:
            found._read_older_files()
        contents = {token.content: token for token in found.added.values()}
        found.roles = {name: contents.get(_content(token), token) for name, token in found.roles.items()}
        found._check()
        return found

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        return value if isinstance(value, bool) else self._refuse(name, "true or false")

    def optional_flag(self, name: str) -> bool | None:
        value = self.values.get(name)
        return value if value is None or isinstance(value, bool) else self._refuse(name, "true, false or null")

    def number(self, name: str, default: int) -> int:
        value = self.values.get(name, default)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _UNLIMITED:
            return value
        return self._refuse(name, "a whole number")

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        return value if value is None or isinstance(value, str) else self._refuse(name, "a string")

    @property
    def longest(self) -> int | None:
        """`model_max_length`, in tokens; None if the files set no limit."""
        name = "model_max_length" if self.values.get("model_max_length") is not None else "max_len"
        length = self.values.get(name)
        if length is None:
            return None
        if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1:
            return self._refuse(name, "a number of tokens")
        return int(length) if length < _UNLIMITED else None

    def _refuse(self, name: str, accepted: str):
        raise InputError(f"{CONFIG} has {name} {self.values[name]!r}; accepted: {accepted}.")

    def _take_extra(self, value: object, file: str) -> None:
        """Takes special tokens without a role: a list of them, or an object that gives them names."""
        if isinstance(value, dict):
            self.named |= {key: _token(token, file, key) for key, token in value.items()}
        elif value is not None:
            known = self.extra or []
            contents = set(map(_content, known))
            found = _tokens(value, file, "extra_special_tokens")
            self.extra = known + [token for token in found if _content(token) not in contents]

    def _read_older_files(self) -> None:
        """Reads what `added_tokens_decoder` would replace."""
        for key, value in (read_object(self.folder, ROLES_MAP) or {}).items():
            if key in ROLES:
                self.roles[key] = _role(value, ROLES_MAP, key, special=True)
            elif key == "additional_special_tokens":
                self.additional = None if value is None else _tokens(value, ROLES_MAP, key)
            elif key == "extra_special_tokens":
                self._take_extra(value, ROLES_MAP)
            elif key.endswith("_token") and value is not None:
                self.named[key] = _token(value, ROLES_MAP, key, special=True)
        special = {_content(token) for token in [*self.roles.values(), *(self.extra or [])]}
        for content, index in (read_object(self.folder, ADDED) or {}).items():
            fields: Json = {"content": content, "normalized": content not in special, "special": content in special}
            self.added[_index(index, ADDED)] = _added(fields, ADDED)
        for token in _tokens_of_fast(self.fast):
            fields = dict(token)
            self.added[_index(fields.pop("id", None), FAST)] = _added(fields, FAST)

    def _check(self) -> None:
        for name in ("padding_side", "truncation_side"):
            if self.values.get(name, "right") not in ("left", "right"):
                self._refuse(name, "left or right")
        if (self.values.get("fast_tokenizer_files") or [FAST]) != [FAST]:
            self._refuse("fast_tokenizer_files", f"{FAST} alone")


def _content(token: Token | None) -> str:
    return token.content if isinstance(token, AddedToken) else token or ""


def _role(value: object, file: str, name: str, special: bool = False) -> Token | None:
    return None if value is None else _token(value, file, name, special)


def _token(value: object, file: str, name: str, special: bool = False) -> Token:
    """Returns a token that a file gives as a string or as an object, whose `special` the caller may decide."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, dict):
        return _added(value | ({"special": True} if special else {}), file)
    raise InputError(f"{file} has {name} {value!r}; accepted: a string, or an object with content.")


def _tokens(value: object, file: str, name: str) -> list[Token]:
    if not isinstance(value, list):
        raise InputError(f"{file} has {name} {value!r}; accepted: a list of tokens.")
    return [_token(each, file, name) for each in value]


def _added(fields: Mapping[str, object], file: str) -> AddedToken:
    content = fields.get("content")
    flags = {name: value for name, value in fields.items() if name not in ("content", "__type", "id")}
    if not isinstance(content, str) or not content:
        raise InputError(f"{file} has an added token with content {content!r}; accepted: a string.")
    for name, value in flags.items():
        if name not in _FLAGS or not isinstance(value, bool):
            accepted = f"{', '.join(_FLAGS)}, each true or false"
            raise InputError(f"{file} has {name} {value!r} for the added token {content!r}; accepted: {accepted}.")
    try:
        return AddedToken(content, **flags)  # pyright: ignore[reportArgumentType] - all are bool
    except UnicodeError:
        raise InputError(f"{file} has the added token {content!r}, which is no Unicode text.") from None


def _by_id(value: object) -> dict[int, AddedToken]:
    if not isinstance(value, dict):
        raise InputError(f"{CONFIG} has added_tokens_decoder {value!r}; accepted: an object of ids and tokens.")
    found = {}
    for index, token in value.items():
        if not isinstance(token, dict):
            raise InputError(f"{CONFIG} has the added token {token!r}; accepted: an object with content.")
        number = int(index) if index.isascii() and index.isdigit() and len(index) < 11 else index
        found[_index(number, CONFIG)] = _added(token, CONFIG)
    return found


def _index(value: object, file: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31:
        return value
    raise InputError(f"{file} has the id {value!r} of an added token; accepted: a whole number from 0 on.")


def _tokens_of_fast(fast: Json | None) -> list[Json]:
    listed = [] if fast is None else fast.get("added_tokens")
    if not isinstance(listed, list) or not all(isinstance(token, dict) for token in listed):
        raise InputError(f"{FAST} has added_tokens that are no list of objects; give the file as it was saved.")
    return listed
