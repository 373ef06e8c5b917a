"""How each tokenizer class of transformers 5 is built from a vocabulary and its settings.

Transformers 5 builds most of its classes anew, even from a `tokenizer.json`: of that file it takes the vocabulary, the
merges, the compiled normalisation and the added tokens. Settings such as `do_lower_case` come from
`tokenizer_config.json`. A folder's ids are the same here, because the same parts are built from the same values.

A class is a row of `CLASSES`. The other classes run `tokenizer.json` as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lm.data import languages
from lm.data.tokenizer_settings import Settings, Token
from lm.errors import InputError

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
    tokenizer = cast(Any, Tokenizer(cast(Any, model)))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    return tokenizer


# ---- WordPiece and byte-level BPE ---------------------------------------------------------------


def _wordpiece(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.optional_flag("strip_accents"),
        lowercase=settings.flag("do_lower_case", True),
    )
    model = models.WordPiece(cast(Any, vocabulary.pieces), unk_token=name(roles["unk_token"]))
    return assembled(model, normalizer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(prefix="##"))


def _byte_level(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del roles
    empty = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
    model = models.BPE(cast(Any, vocabulary.pieces), vocabulary.merges or [], **cast(Any, empty))
    prefix = settings.flag("add_prefix_space", False)
    return assembled(model, None, pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel())


def _template(single: str, pair: str) -> Callable[[Tokenizer, Settings, Roles], object]:
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
            single=cast(Any, written(single)), pair=cast(Any, written(pair)), special_tokens=cast(Any, ids)
        )

    return frame


def _roberta_frame(tokenizer: Tokenizer, settings: Settings, roles: Roles) -> object:
    sep, cls = ((name(roles[role]), token_id(tokenizer, roles[role], roles)) for role in ("sep_token", "cls_token"))
    spaces = settings.flag("trim_offsets", True), settings.flag("add_prefix_space", False)
    return processors.RobertaProcessing(cast(Any, sep), cast(Any, cls), *spaces)


_BERT_FRAME = _template("{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1")
_DOUBLE_FRAME = _template("{bos} $A {eos}", "{bos} $A {eos} {eos} $B {eos}")

# ---- Sentencepiece ------------------------------------------------------------------------------


def _metaspace(scheme: str, words: bool = True) -> tuple[object, object]:
    """Returns the pre-tokenizer, which may split at white space first, and the decoder."""
    mark = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=cast(Any, scheme), split=True)
    parts = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), mark]) if words else mark
    return parts, decoders.Metaspace(replacement="▁", prepend_scheme=cast(Any, scheme), split=True)


def _unigram(vocabulary: Vocabulary, unk_id: int | None) -> object:
    return models.Unigram(cast(Any, vocabulary.pieces), unk_id=unk_id, byte_fallback=False)


def _charsmap(vocabulary: Vocabulary) -> list[object]:
    return [normalizers.Precompiled(vocabulary.charsmap)] if vocabulary.charsmap else []


def _t5(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings, roles
    return assembled(_unigram(vocabulary, 2), *(_charsmap(vocabulary) or [None]), *_metaspace("always"))


def _t5_frame(tokenizer: Tokenizer, settings: Settings, roles: Roles) -> object:
    del settings
    end = ("</s>", token_id(tokenizer, roles["eos_token"], roles))
    pair = ["$A", "</s>", "$B", "</s>"]
    return processors.TemplateProcessing(
        single=cast(Any, pair[:2]), pair=cast(Any, pair), special_tokens=cast(Any, [end])
    )


def _xlm_roberta(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del roles
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    return assembled(_unigram(vocabulary, 3), *(_charsmap(vocabulary) or [None]), *_metaspace(scheme))


def _camembert(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    unknown = name(roles["unk_token"])
    places = [place for place, (piece, _) in enumerate(cast(list[Pair], vocabulary.pieces)) if piece == unknown]
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    model = _unigram(vocabulary, places[0] if places else 0)
    return assembled(model, *(_charsmap(vocabulary) or [None]), *_metaspace(scheme))


def _mbart(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings, roles
    return assembled(_unigram(vocabulary, 3), None, *_metaspace("always"))


def _albert(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    steps: list[object] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.flag("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.flag("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    steps += _charsmap(vocabulary)
    scheme = "always" if settings.flag("add_prefix_space", True) else "never"
    normalizer = normalizers.Sequence(cast(Any, steps))
    tokenizer = assembled(_unigram(vocabulary, 1), normalizer, *_metaspace(scheme))
    ends = [("[CLS]", tokenizer.token_to_id(name(roles["cls_token"])))]
    ends.append(("[SEP]", tokenizer.token_to_id(name(roles["sep_token"]))))
    cast(Any, tokenizer).post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=cast(Any, ends)
    )
    return tokenizer


def _deberta_v2(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
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
    parts = pre_tokenizers.Sequence(cast(Any, [*splits, mark]))
    decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return assembled(_unigram(vocabulary, unk_id), normalizers.Sequence(cast(Any, steps)), parts, decoder)


def _pegasus(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings
    unknown, pieces = (name(roles["unk_token"]), 0.0), cast(list[Pair], vocabulary.pieces)
    if unknown not in pieces[1:]:
        raise InputError(f"the tokenizer's vocabulary lacks {unknown[0]} with a score of 0.")
    steps = _charsmap(vocabulary) or [normalizers.Replace(Regex(r"\n"), " ")]
    normalizer = normalizers.Sequence(cast(Any, [*steps, normalizers.Replace(Regex(r" {2,}"), " ")]))
    return assembled(_unigram(vocabulary, pieces.index(unknown, 1)), normalizer, *_metaspace("always", words=False))


def _mbart50(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings
    pieces = cast(list[Pair], vocabulary.pieces)
    if not {piece for piece, _ in pieces} & set(languages.MBART50):
        pieces = _fairseq(Vocabulary(pieces), roles, "cls_token", languages.MBART50).pieces
    steps = [*_charsmap(vocabulary), normalizers.Replace(Regex(r" {2,}"), " ")]
    model = models.Unigram(cast(Any, pieces), unk_id=3, byte_fallback=False)
    return assembled(model, normalizers.Sequence(cast(Any, steps)), *_metaspace("always", words=False))


def _nllb(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del settings
    model = models.BPE(
        cast(Any, vocabulary.pieces),
        vocabulary.merges or [],
        unk_token=name(roles["unk_token"]),
        fuse_unk=True,
        byte_fallback=False,
    )
    steps = _charsmap(vocabulary)
    steps += [normalizers.Replace(Regex(r" {2,}"), " ")] if steps else []
    normalizer = normalizers.Sequence(cast(Any, steps)) if steps else None
    return assembled(model, normalizer, *_metaspace("always", words=False))


def _language_frame(default: str, code_first: bool) -> Callable[[Tokenizer, Settings, Roles], object]:
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
            single=cast(Any, single), pair=cast(Any, pair), special_tokens=cast(Any, special)
        )

    return frame


# ---- The ids of fairseq's models, which differ from those in the sentencepiece file -------------


def _fairseq(vocabulary: Vocabulary, roles: Roles, first: str, codes: tuple[str, ...] = ()) -> Vocabulary:
    start = [(name(roles[role]), 0.0) for role in (first, "pad_token", "eos_token", "unk_token")]
    rest = cast(list[Pair], vocabulary.pieces)[3:]
    end = [(code, 0.0) for code in codes] + [(name(roles["mask_token"]), 0.0)]
    return dataclasses.replace(vocabulary, pieces=[*start, *rest, *end])


def _camembert_order(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Vocabulary:
    del settings
    start = ["<s>NOTUSED", name(roles["pad_token"]), "</s>NOTUSED", name(roles["unk_token"])]
    rest = [("<unk>NOTUSED", -100.0), *cast(list[Pair], vocabulary.pieces)[1:], (name(roles["mask_token"]), 0.0)]
    return dataclasses.replace(vocabulary, pieces=[*((piece, 0.0) for piece in start), *rest])


def _nllb_order(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Vocabulary:
    del settings
    names = [name(roles[role]) for role in ("bos_token", "pad_token", "eos_token", "unk_token")]
    order = dict.fromkeys([*names, *cast(dict[str, int], vocabulary.pieces)])
    return dataclasses.replace(vocabulary, pieces={piece: index for index, piece in enumerate(order)})


def _pegasus_order(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Vocabulary:
    # Transformers reads these two defaults the other way round when it converts a file than when it builds the class.
    mask = "<mask_1>" if "mask_token" not in settings.roles else name(roles["mask_token"])
    sentence = settings.text("mask_token_sent") if "mask_token_sent" in settings.values else "<mask_2>"
    start = [name(roles["pad_token"]), name(roles["eos_token"]), *([] if mask == "None" else [mask])]
    start += [] if sentence in (None, "None", mask) else [cast(str, sentence)]
    unused = [(f"<unk_{i}>", -100.0) for i in range(2, settings.number("offset", 103))]
    rest = cast(list[Pair], vocabulary.pieces)[2:]
    return dataclasses.replace(vocabulary, pieces=[*((piece, 0.0) for piece in start), *unused, *rest])


def _t5_order(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Vocabulary:
    del roles
    sentinels = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(settings.number("extra_ids", 100)))]
    return dataclasses.replace(vocabulary, pieces=[*cast(list[Pair], vocabulary.pieces), *sentinels])


def _t5_extra(given: list[Token] | None, settings: Settings) -> list[Token] | None:
    count = settings.number("extra_ids", 100)
    listed = [token for token in given or [] if "<extra_id_" in name(token)]
    if not listed:
        return [*(given or []), *(f"<extra_id_{i}>" for i in range(count))]
    if count and count != len(listed):
        raise InputError(f"extra_ids is {count}, but additional_special_tokens lists {len(listed)} <extra_id_N>.")
    return given


def _pegasus_extra(given: list[Token] | None, settings: Settings) -> list[Token] | None:
    sentence = settings.text("mask_token_sent") if "mask_token_sent" in settings.values else "<mask_1>"
    repeated = given is not None and sentence in given
    start: list[Token] = [] if sentence is None or repeated else [sentence]
    return [*start, *(f"<unk_{i}>" for i in range(2, settings.number("offset", 103)))]


def _mbart_extra(given: list[Token] | None, settings: Settings) -> list[Token] | None:
    del settings
    return [*languages.MBART, *(token for token in given or [] if name(token) not in languages.MBART)]


# ---- The table ----------------------------------------------------------------------------------

_BERT: Roles = dict(unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]", mask_token="[MASK]")
_ENDS: Roles = dict(bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>")
_ROBERTA: Roles = {**_ENDS, "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
_MASK = AddedToken("<mask>", lstrip=True, rstrip=False)


def _plain(roles: Roles) -> Roles:
    """The roles as MPNet has them: added tokens that are not special by themselves."""
    return {role: AddedToken(name(token), lstrip=False, rstrip=False) for role, token in roles.items()}


_BPE_FILES = ("vocab.json", "merges.txt")
_SPM = ("sentencepiece.bpe.model",)
_DEBERTA: Roles = {"bos_token": "[CLS]", "eos_token": "[SEP]", **_BERT}

CLASSES = {
    "BertTokenizer": TokenizerClass(("vocab.txt",), "WordPiece", _BERT, _wordpiece, _BERT_FRAME),
    "MPNetTokenizer": TokenizerClass(
        ("vocab.txt",),
        "WordPiece",
        {**_plain({**_ENDS, "unk_token": "[UNK]", "pad_token": "<pad>"}), "mask_token": _MASK},
        _wordpiece,
        lambda tokenizer, settings, roles: processors.RobertaProcessing(
            cast(Any, (name(roles["sep_token"]), token_id(tokenizer, roles["sep_token"], roles))),
            cast(Any, (name(roles["cls_token"]), token_id(tokenizer, roles["cls_token"], roles))),
            True,
            False,
        ),
    ),
    "RobertaTokenizer": TokenizerClass(_BPE_FILES, "BPE", _ROBERTA, _byte_level, _roberta_frame),
    "GPT2Tokenizer": TokenizerClass(
        _BPE_FILES, "BPE", dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>"), _byte_level
    ),
    "DebertaTokenizer": TokenizerClass(
        _BPE_FILES,
        "BPE",
        _DEBERTA,
        _byte_level,
        _template("{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}"),
    ),
    "DebertaV2Tokenizer": TokenizerClass(("spm.model",), "Unigram", _DEBERTA, _deberta_v2, _BERT_FRAME),
    "AlbertTokenizer": TokenizerClass(
        ("spiece.model",), "Unigram", {**_DEBERTA, "unk_token": "<unk>", "pad_token": "<pad>"}, _albert
    ),
    "T5Tokenizer": TokenizerClass(
        ("spiece.model",),
        "Unigram",
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        _t5,
        _t5_frame,
        _t5_order,
        _t5_extra,
    ),
    "XLMRobertaTokenizer": TokenizerClass(
        _SPM,
        "Unigram",
        _ROBERTA,
        _xlm_roberta,
        _DOUBLE_FRAME,
        lambda vocabulary, _, roles: _fairseq(vocabulary, roles, "bos_token"),
    ),
    "CamembertTokenizer": TokenizerClass(
        _SPM,
        None,
        {**_ROBERTA, "mask_token": AddedToken("<mask>", lstrip=True, special=True)},
        _camembert,
        _DOUBLE_FRAME,
        _camembert_order,
        lambda given, _: ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"] if given is None else given,
    ),
    "PegasusTokenizer": TokenizerClass(
        ("spiece.model",),
        "Unigram",
        {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask_2>"},
        _pegasus,
        _template("$A {eos}", "$A $B {eos}"),
        _pegasus_order,
        _pegasus_extra,
    ),
    "MBartTokenizer": TokenizerClass(
        _SPM,
        "Unigram",
        {**_ROBERTA, "mask_token": _MASK},
        _mbart,
        _language_frame("en_XX", code_first=False),
        lambda vocabulary, _, roles: _fairseq(vocabulary, roles, "bos_token", languages.MBART),
        _mbart_extra,
    ),
    "MBart50Tokenizer": TokenizerClass(
        _SPM,
        "Unigram",
        {role: token for role, token in _ROBERTA.items() if role != "bos_token"} | {"mask_token": _MASK},
        _mbart50,
        _language_frame("en_XX", code_first=True),
        lambda vocabulary, _, roles: _fairseq(vocabulary, roles, "cls_token", languages.MBART50),
        lambda given, _: [*(given or []), *languages.MBART50],
    ),
    "NllbTokenizer": TokenizerClass(
        _SPM,
        "BPE",
        {**_ROBERTA, "mask_token": AddedToken("<mask>", normalized=True, lstrip=True, special=True)},
        _nllb,
        _language_frame("eng_Latn", code_first=True),
        _nllb_order,
        lambda given, _: list(languages.NLLB) if given is None else given,
    ),
}
