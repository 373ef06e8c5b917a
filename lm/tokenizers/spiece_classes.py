"""The tokenizers of transformers' classes that read a sentencepiece file: how they are built, ordered and framed."""

import dataclasses
from collections.abc import Callable
from typing import cast

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lm.errors import InputError
from lm.tokenizers import languages
from lm.tokenizers.parts import Pair, Roles, Vocabulary, assembled, name, token_id, untyped
from lm.tokenizers.settings import Settings, Token


def _metaspace(scheme: str, words: bool = True) -> tuple[object, object]:
    """Returns the pre-tokenizer, which may split at white space first, and the decoder."""
    mark = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=untyped(scheme), split=True)
    parts = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), mark]) if words else mark
    return parts, decoders.Metaspace(replacement="▁", prepend_scheme=untyped(scheme), split=True)


def _unigram(vocabulary: Vocabulary, unk_id: int | None) -> object:
    return models.Unigram(untyped(vocabulary.pieces), unk_id=unk_id, byte_fallback=False)


def _charsmap(vocabulary: Vocabulary) -> list[object]:
    return [normalizers.Precompiled(vocabulary.charsmap)] if vocabulary.charsmap else []


def _normalizer(vocabulary: Vocabulary) -> object:
    return normalizers.Precompiled(vocabulary.charsmap) if vocabulary.charsmap else None


def t5(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings, roles
    return assembled(_unigram(vocabulary, 2), _normalizer(vocabulary), *_metaspace("always"))


def t5_frame(tokenizer: Tokenizer, settings: Settings, roles: Roles) -> object:
    del settings
    end = ("</s>", token_id(tokenizer, roles["eos_token"], roles))
    pair = ["$A", "</s>", "$B", "</s>"]
    return processors.TemplateProcessing(single=untyped(pair[:2]), pair=untyped(pair), special_tokens=untyped([end]))


def xlm_roberta(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del roles
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    return assembled(_unigram(vocabulary, 3), _normalizer(vocabulary), *_metaspace(scheme))


def camembert(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    unknown = name(roles["unk_token"])
    places = [place for place, (piece, _) in enumerate(cast(list[Pair], vocabulary.pieces)) if piece == unknown]
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    model = _unigram(vocabulary, places[0] if places else 0)
    return assembled(model, _normalizer(vocabulary), *_metaspace(scheme))


def mbart(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings, roles
    return assembled(_unigram(vocabulary, 3), None, *_metaspace("always"))


def albert(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    steps: list[object] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.flag("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.flag("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    steps += _charsmap(vocabulary)
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    normalizer = normalizers.Sequence(untyped(steps))
    tokenizer = assembled(_unigram(vocabulary, 1), normalizer, *_metaspace(scheme))
    ends = [("[CLS]", tokenizer.token_to_id(name(roles["cls_token"])))]
    ends.append(("[SEP]", tokenizer.token_to_id(name(roles["sep_token"]))))
    untyped(tokenizer).post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=untyped(ends)
    )
    return tokenizer


def deberta_v2(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    unk_id = settings.number("unk_id", 1) if vocabulary.unk_id is None else vocabulary.unk_id
    unknown = (name(roles["unk_token"]), 0.0)
    pieces = cast(list[Pair], vocabulary.pieces)
    if unknown in pieces:
        unk_id = pieces.index(unknown)
    steps: list[object] = [normalizers.Lowercase()] if settings.flag("do_lower_case", False) else []
    steps += [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(False, True)]
    scheme = "always" if settings.flag("add_prefix_space", True) else "first"
    mark = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    splits = [pre_tokenizers.Punctuation(behavior="isolated")] if settings.flag("split_by_punct", False) else []
    parts = pre_tokenizers.Sequence(untyped([*splits, mark]))
    decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return assembled(_unigram(vocabulary, unk_id), normalizers.Sequence(untyped(steps)), parts, decoder)


def pegasus(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings
    unknown, pieces = (name(roles["unk_token"]), 0.0), cast(list[Pair], vocabulary.pieces)
    if unknown not in pieces[1:]:
        raise InputError(f"the tokenizer's vocabulary lacks {unknown[0]} with a score of 0.")
    steps = _charsmap(vocabulary) or [normalizers.Replace(Regex(r"\n"), " ")]
    normalizer = normalizers.Sequence(untyped([*steps, normalizers.Replace(Regex(r" {2,}"), " ")]))
    return assembled(_unigram(vocabulary, pieces.index(unknown, 1)), normalizer, *_metaspace("always", words=False))


def mbart50(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings
    pieces = cast(list[Pair], vocabulary.pieces)
    if not {piece for piece, _ in pieces} & set(languages.MBART50):
        pieces = fairseq(Vocabulary(pieces), roles, "cls_token", languages.MBART50).pieces
    steps = [*_charsmap(vocabulary), normalizers.Replace(Regex(r" {2,}"), " ")]
    model = models.Unigram(untyped(pieces), unk_id=3, byte_fallback=False)
    return assembled(model, normalizers.Sequence(untyped(steps)), *_metaspace("always", words=False))


def nllb(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings
    model = models.BPE(
        untyped(vocabulary.pieces),
        vocabulary.merges or [],
        unk_token=name(roles["unk_token"]),
        fuse_unk=True,
        byte_fallback=False,
    )
    steps = _charsmap(vocabulary)
    steps += [normalizers.Replace(Regex(r" {2,}"), " ")] if steps else []
    normalizer = normalizers.Sequence(untyped(steps)) if steps else None
    return assembled(model, normalizer, *_metaspace("always", words=False))


def language_frame(default: str, code_first: bool) -> Callable[[Tokenizer, Settings, Roles], object]:
    """Returns the frame of a model whose source text stands beside its language's code."""

    def frame(tokenizer: Tokenizer, settings: Settings, roles: Roles) -> object:
        code, eos = settings.text("src_lang") or default, name(roles["eos_token"])
        first = code_first and not settings.flag("legacy_behaviour", False)
        index = token_id(tokenizer, code, roles)
        if index is None:
            raise InputError(f"the tokenizer has no token for src_lang {code!r}.")
        if code_first and default in languages.MBART50 and code not in languages.MBART50:
            raise InputError(f"the tokenizer has src_lang {code!r}; accepted: {', '.join(languages.MBART50)}.")
        if default not in languages.NLLB:  # these classes write the token of the code's id, which may be <unk>
            code = tokenizer.id_to_token(index)
        ends = (f"{code}:0", f"{eos}:0")
        texts = [["$A"], ["$A", "$B"]]
        single, pair = ([ends[0], *text, ends[1]] if first else [*text, ends[1], ends[0]] for text in texts)
        special = [(eos, token_id(tokenizer, roles["eos_token"], roles)), (code, index)]
        return processors.TemplateProcessing(
            single=untyped(single), pair=untyped(pair), special_tokens=untyped(special)
        )

    return frame


# ---- The ids of fairseq's models, which differ from those in the sentencepiece file -------------


def fairseq(vocabulary: Vocabulary, roles: Roles, first: str, codes: tuple[str, ...] = ()) -> Vocabulary:
    start = [(name(roles[role]), 0.0) for role in (first, "pad_token", "eos_token", "unk_token")]
    rest = cast(list[Pair], vocabulary.pieces)[3:]
    end = [(code, 0.0) for code in codes] + [(name(roles["mask_token"]), 0.0)]
    return dataclasses.replace(vocabulary, pieces=[*start, *rest, *end])


def camembert_order(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Vocabulary:
    del settings
    start = ["<s>NOTUSED", name(roles["pad_token"]), "</s>NOTUSED", name(roles["unk_token"])]
    rest = [("<unk>NOTUSED", -100.0), *cast(list[Pair], vocabulary.pieces)[1:], (name(roles["mask_token"]), 0.0)]
    return dataclasses.replace(vocabulary, pieces=[*((piece, 0.0) for piece in start), *rest])


def nllb_order(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Vocabulary:
    del settings
    names = [name(roles[role]) for role in ("bos_token", "pad_token", "eos_token", "unk_token")]
    order = dict.fromkeys([*names, *cast(dict[str, int], vocabulary.pieces)])
    return dataclasses.replace(vocabulary, pieces={piece: index for index, piece in enumerate(order)})


def pegasus_order(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Vocabulary:
    # Transformers reads these two defaults the other way round when it converts a file than when it builds the class.
    mask = "<mask_1>" if "mask_token" not in settings.roles else name(roles["mask_token"])
    sentence = settings.text("mask_token_sent") if "mask_token_sent" in settings.values else "<mask_2>"
    start = [name(roles["pad_token"]), name(roles["eos_token"]), *([] if mask == "None" else [mask])]
    start += [] if sentence in (None, "None", mask) else [cast(str, sentence)]
    unused = [(f"<unk_{i}>", -100.0) for i in range(2, settings.number("offset", 103))]
    rest = cast(list[Pair], vocabulary.pieces)[2:]
    return dataclasses.replace(vocabulary, pieces=[*((piece, 0.0) for piece in start), *unused, *rest])


def t5_order(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Vocabulary:
    del roles
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(settings.number("extra_ids", 100)))]
    return dataclasses.replace(vocabulary, pieces=[*cast(list[Pair], vocabulary.pieces), *sentinels])


def t5_extra(given: list[Token] | None, settings: Settings) -> list[Token] | None:
    count = settings.number("extra_ids", 100)
    listed = [token for token in given or [] if "<extra_id_" in name(token)]
    if not listed:
        return [*(given or []), *(f"<extra_id_{i}>" for i in range(count))]
    if count and count != len(listed):
        raise InputError(f"extra_ids is {count}, but additional_special_tokens lists {len(listed)} <extra_id_N>.")
    return given


def pegasus_extra(given: list[Token] | None, settings: Settings) -> list[Token] | None:
    sentence = settings.text("mask_token_sent") if "mask_token_sent" in settings.values else "<mask_1>"
    repeated = given is not None and sentence in given
    start: list[Token] = [] if sentence is None or repeated else [sentence]
    return [*start, *(f"<unk_{i}>" for i in range(2, settings.number("offset", 103)))]


def mbart_extra(given: list[Token] | None, settings: Settings) -> list[Token] | None:
    del settings
    return [*languages.MBART, *(token for token in given or [] if name(token) not in languages.MBART)]
