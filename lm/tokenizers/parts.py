"""The parts of which the tokenizers of transformers' classes are put together."""

import dataclasses
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from lm.errors import InputError
from lm.tokenizers.settings import Settings, Token

Roles = dict[str, Token | None]
Pair = tuple[str, float]


@dataclasses.dataclass
class Vocabulary:
    """What a tokenizer's vocabulary file holds.

    Attributes:
        pieces: piece -> id, or (piece, score) in the order of their ids.
        merges: those of BPE.
        charsmap: the compiled normalisation of a sentencepiece model.
        unk_id: the unknown piece of a sentencepiece model.
        special: the control symbols of a sentencepiece model; None for other files.
    """

    pieces: dict[str, int] | list[Pair]
    merges: list[tuple[str, str]] | None = None
    charsmap: bytes | None = None
    unk_id: int | None = None
    special: list[Token] | None = None


@dataclasses.dataclass(frozen=True)
class TokenizerClass:
    """A tokenizer class of transformers.

    Attributes:
        files: the vocabulary files of a folder without `tokenizer.json`.
        model: the class of `tokenizers.models` that it runs; None if the sentencepiece file decides.
        roles: the tokens of its roles, where the files name none.
        build: makes the tokenizer.
        frame: returns the post-processor of the finished tokenizer; None keeps that of `tokenizer.json`.
        reorder: returns the vocabulary in the order of the ids, from that of a sentencepiece file.
        extra: returns the special tokens without a role, if `extra_special_tokens` does not name them.
    """

    files: tuple[str, ...]
    model: str | None
    roles: Roles
    build: Callable[[Vocabulary, Settings, Roles], Tokenizer]
    frame: Callable[[Tokenizer, Settings, Roles], object] = lambda *_: None
    reorder: Callable[[Vocabulary, Settings, Roles], Vocabulary] = lambda vocabulary, *_: vocabulary
    extra: Callable[[list[Token] | None, Settings], list[Token] | None] = lambda given, _: given


def untyped(value: object) -> Any:
    """Returns the value. The stubs of `tokenizers` lack types that its functions take and attributes that it has."""
    return value


def name(token: Token | None) -> str:
    """Returns the content of a token; "None" for an empty role, as transformers writes it."""
    return token.content if isinstance(token, AddedToken) else str(token)


def token_id(tokenizer: Tokenizer, token: Token | None, roles: Roles) -> int | None:
    """Returns the id of a token, or else that of the unknown token."""
    if token is None:
        return None
    index = tokenizer.token_to_id(name(token))
    unknown = roles.get("unk_token")
    return tokenizer.token_to_id(name(unknown)) if index is None and unknown is not None else index


def assembled(model: object, normalizer: object, pre_tokenizer: object, decoder: object) -> Tokenizer:
    tokenizer = untyped(Tokenizer(untyped(model)))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    return tokenizer


def template(single: str, pair: str) -> Callable[[Tokenizer, Settings, Roles], object]:
    """Returns a frame from its text, in which each `{role}` stands for the token of `role_token`."""

    def frame(tokenizer: Tokenizer, settings: Settings, roles: Roles) -> object:
        del settings
        tokens = {role: roles.get(f"{role}_token") for role in ("cls", "sep", "bos", "eos") if f"{{{role}}}" in pair}
        if empty := [role for role, token in tokens.items() if token is None]:
            raise InputError(f"the tokenizer's {empty[0]}_token is null; its class needs one.")
        names = {role: name(token) for role, token in tokens.items()}
        ids = [(names[role], token_id(tokenizer, token, roles)) for role, token in tokens.items()]

        def written(template: str) -> list[str]:  # a list, because a token may hold a space or a colon
            parts = [part.partition(":")[::2] for part in template.split()]
            return [f"{text.format(**names)}:{kind or 0}" for text, kind in parts]

        return processors.TemplateProcessing(
            single=untyped(written(single)), pair=untyped(written(pair)), special_tokens=untyped(ids)
        )

    return frame
