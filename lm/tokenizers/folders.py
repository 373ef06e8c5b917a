"""Reads the tokenizer of a Hugging Face folder, in any of the forms that transformers has written.

The ids are those of `AutoTokenizer` of transformers 5 for the same folder. It chooses a class by `tokenizer_class` of
`tokenizer_config.json`, or else by the kind of model. `tokenizer_classes` builds it; here its added tokens follow.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from tokenizers import AddedToken, Tokenizer, models, processors

from lm.errors import InputError
from lm.tokenizers import piece_tokenizer, spiece
from lm.tokenizers.classes import CLASSES, GENERIC, REGISTERED
from lm.tokenizers.huggingface_tokenizer import HuggingFace, Imported
from lm.tokenizers.parts import Roles, TokenizerClass, Vocabulary, name, untyped
from lm.tokenizers.piece_tokenizer import PieceTokenizer
from lm.tokenizers.settings import ADDED, CONFIG, FAST, ROLES, ROLES_MAP, Json, Settings, Token, read_object
from lm.tokenizers.special_ids import SPECIAL_NAMES

# Other names of a class in `CLASSES`.
_SAME = {
    "BartTokenizer": "RobertaTokenizer",
    "DistilBertTokenizer": "BertTokenizer",
    "ElectraTokenizer": "BertTokenizer",
    "LEDTokenizer": "RobertaTokenizer",
    "LayoutLMTokenizer": "BertTokenizer",
    "LongformerTokenizer": "RobertaTokenizer",
    "MobileBertTokenizer": "BertTokenizer",
    "SqueezeBertTokenizer": "BertTokenizer",
}
# Classes that run code of their own, even if there is a tokenizer.json.
_OWN_CODE = (
    "BartphoTokenizer",
    "BertGenerationTokenizer",
    "BertJapaneseTokenizer",
    "BertweetTokenizer",
    "BioGptTokenizer",
    "ByT5Tokenizer",
    "CanineTokenizer",
    "EsmTokenizer",
    "FSMTTokenizer",
    "FlaubertTokenizer",
    "LukeTokenizer",
    "MLukeTokenizer",
    "MyT5Tokenizer",
    "PhobertTokenizer",
    "ProphetNetTokenizer",
    "RoCBertTokenizer",
    "TapasTokenizer",
    "XLMTokenizer",
)
_BY_FILE = {"vocab.txt": "BertTokenizer", "spiece.model": "T5Tokenizer", "merges.txt": "RobertaTokenizer"}
_PROBE = "a \U000f0000 \u0378 1"  # two characters that no vocabulary holds


def is_folder(path: Path) -> bool:
    """Returns whether a folder holds a tokenizer in a form that needs more than one file, or a conversion."""
    if any((path / each).is_file() for each in (CONFIG, ROLES_MAP, ADDED)):
        return True
    slow = ("vocab.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model", "merges.txt", *piece_tokenizer.FILES)
    if (path / FAST).is_file():  # a run has such a file too, beside its own config.json
        return "model_type" in (read_object(path, "config.json") or {})
    return any((path / each).is_file() for each in slow)


def read(folder: Path, rows: int | None = None) -> HuggingFace | PieceTokenizer:
    """Returns the tokenizer of a folder. Its ids are those of transformers' `AutoTokenizer`.

    Args:
        folder: of `save_pretrained`, or of an older form. If it has a `config.json`, that names the kind of model and
            the ids of roles that the tokenizer's files do not name.
        rows: of the model's embedding table; larger ids are refused when a text holds them.

    Raises:
        InputError: a file is missing or cannot be read, or a setting is not supported.
    """
    settings, config = Settings.read(folder), read_object(folder, "config.json") or {}
    with refusing(f"the tokenizer of {folder}"):
        class_name = _class_name(settings, config)
        if class_name in piece_tokenizer.CLASSES:
            return piece_tokenizer.read(settings, class_name, rows)
        tokenizer, roles = _build(settings, class_name)
        _frame_by_config(tokenizer, folder, config)
        tokenizer.encode_special_tokens = settings.flag("split_special_tokens", False)
        tokenizer.encode(_PROBE)
        about = Imported(
            roles={role: name(token) for role, token in roles.items() if role in ROLES and token is not None},
            special=_special(tokenizer, settings, roles, config),
            rows=rows,
            longest=settings.longest,
            split_special_tokens=settings.flag("split_special_tokens", False),
            clean_up=_cleans_up(tokenizer, settings),
            cuts_left=settings.values.get("truncation_side") == "left",
        )
        made = HuggingFace(about.to_bytes(tokenizer.to_str()))
        made.frame(1)
        return made


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turns the errors of the `tokenizers` library into an `InputError`. A panic of Rust is a `BaseException`."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{what} cannot be built: {reason or type(error).__name__}.") from error


# ---- The class ----------------------------------------------------------------------------------


def _class_name(settings: Settings, config: Mapping[str, object]) -> str:
    registered = REGISTERED.get(str(config.get("model_type")))
    given = settings.values.get("tokenizer_class")
    named = config.get("tokenizer_class") if given is None else given
    if named is not None and not isinstance(named, str):
        raise InputError(f"{CONFIG} has tokenizer_class {named!r}; accepted: a string.")
    if named in _OWN_CODE:
        raise InputError(f"{CONFIG} has tokenizer_class {named!r}, which is not supported.")
    found = GENERIC if registered == GENERIC else (named or registered or _by_file(settings)).removesuffix("Fast")
    found = _SAME.get(found, found)
    if found in CLASSES or found in piece_tokenizer.CLASSES:
        return found
    if settings.fast is None:
        raise InputError(
            f"the folder has no {FAST}, and its tokenizer class is {found!r}; accepted without that file: "
            f"{', '.join(sorted([*CLASSES, *_SAME, *piece_tokenizer.CLASSES]))}."
        )
    return GENERIC


def _by_file(settings: Settings) -> str:
    if settings.fast is not None:
        return GENERIC
    return next((found for file, found in _BY_FILE.items() if (settings.folder / file).is_file()), GENERIC)


# ---- Building it --------------------------------------------------------------------------------


def _build(settings: Settings, class_name: str) -> tuple[Tokenizer, Roles]:
    """Returns the tokenizer and the tokens of its roles."""
    saved = None
    if settings.fast is not None:
        _check_templates(settings.fast.get("post_processor"))
        saved = Tokenizer.from_str(json.dumps(settings.fast))
    if class_name == GENERIC:
        assert saved is not None
        roles = dict(settings.roles)
        if saved.padding:
            roles.setdefault("pad_token", saved.padding["pad_token"])
        tokenizer, extra, frame = saved, settings.additional, None
    else:
        chosen = CLASSES[class_name]
        roles = chosen.roles | settings.roles
        if roles["unk_token"] is None:
            raise InputError(f"{CONFIG} has unk_token null; its class, {class_name}, needs one.")
        vocabulary = _vocabulary(settings, class_name, chosen, roles)
        tokenizer = chosen.build(vocabulary, settings, roles)
        if saved is not None and saved.post_processor is not None:
            untyped(tokenizer).post_processor = saved.post_processor
        given = settings.additional if vocabulary.special is None else vocabulary.special
        extra, frame = chosen.extra(given, settings), chosen.frame
    _add_tokens(tokenizer, settings, roles, settings.extra if settings.extra is not None else extra)
    _frame_with_ends(tokenizer, settings, roles)
    processor = frame and frame(tokenizer, settings, roles)
    if processor is not None:
        untyped(tokenizer).post_processor = processor
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, roles


def _check_templates(processor: object) -> None:
    """Refuses a template with a token that it does not describe: the library would panic at the first text."""
    if not isinstance(processor, dict):
        return
    for inner in cast(list[object], processor.get("processors") or []):
        _check_templates(inner)
    described = processor.get("special_tokens")
    for part in [*cast(list[object], processor.get("single") or []), *cast(list[object], processor.get("pair") or [])]:
        token = part.get("SpecialToken") if isinstance(part, dict) else None
        if isinstance(token, dict) and isinstance(described, dict) and token.get("id") not in described:
            raise InputError(f"{FAST} has a post_processor with {token.get('id')!r}, which it does not describe.")


def _vocabulary(settings: Settings, class_name: str, chosen: TokenizerClass, roles: Roles) -> Vocabulary:
    if settings.fast is not None:
        return _vocabulary_of_fast(settings.fast, chosen.model)
    files = [settings.folder / file for file in chosen.files]
    if (settings.folder / "tokenizer.model").is_file():  # transformers prefers it
        files = [settings.folder / "tokenizer.model"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"the folder has no tokenizer: neither {FAST} nor {' and '.join(chosen.files)}, which {class_name} reads."
        )
    if files[0].suffix == ".model":
        return chosen.reorder(_vocabulary_of_spiece(files[0], chosen.model), settings, roles)
    if chosen.model == "WordPiece":
        return Vocabulary(models.WordPiece.read_file(str(files[0])))
    pieces, merges = models.BPE.read_file(str(files[0]), str(files[1]))
    return Vocabulary(pieces, merges)


def _vocabulary_of_fast(fast: Json, model: str | None) -> Vocabulary:
    content = fast.get("model")
    if not isinstance(content, dict):
        raise InputError(f"{FAST} has no model; give the file as it was saved.")
    pieces = content.get("vocab")
    if isinstance(pieces, list) and model in ("WordPiece", "BPE"):
        pieces = {each[0] if isinstance(each, list) else each: index for index, each in enumerate(pieces)}
    elif isinstance(pieces, list):
        pieces = [tuple(each) for each in pieces]
    listed = content.get("merges") if model == "BPE" else None
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in listed or []]
    return Vocabulary(untyped(pieces), untyped(merges), _charsmap_of_fast(fast))


def _charsmap_of_fast(fast: Json) -> bytes | None:
    import base64

    normalizer = fast.get("normalizer") or []
    if isinstance(normalizer, dict):
        normalizer = normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer]
    for each in cast(list[Json], normalizer):
        if each.get("type") == "Precompiled" and "precompiled_charsmap" in each:
            return base64.b64decode(cast(str, each["precompiled_charsmap"]))
    return None


def _vocabulary_of_spiece(file: Path, model: str | None) -> Vocabulary:
    content = spiece.read(file.read_bytes(), file.name)
    special: list[Token] = [
        AddedToken(piece, normalized=False, special=kind == spiece.CONTROL)
        for (piece, _), kind in zip(content.pieces, content.kinds, strict=True)
        if kind in (spiece.CONTROL, spiece.USER_DEFINED)
    ]
    if model == "BPE" or (model is None and content.is_bpe):
        return Vocabulary(content.ids, spiece.merges(content.ids), content.charsmap, special=special)
    return Vocabulary(content.pieces, None, content.charsmap, content.unk_id, special)


def _add_tokens(tokenizer: Tokenizer, settings: Settings, roles: Roles, extra: list[Token] | None) -> None:
    """Adds the tokens that the tokenizer lacks, in the order in which transformers adds them."""
    present = tokenizer.get_added_tokens_decoder()
    known = {repr(token) for token in present.values()}
    wanted: list[Token] = [token for _, token in sorted(settings.added.items()) if repr(token) not in known]
    names = {token.content for token in present.values()} | set(map(name, wanted))
    named = [roles.get(role) for role in ROLES] + list(settings.named.values())
    for token in [*named, *(extra or [])]:
        if token is not None and name(token) not in names and token not in wanted:
            wanted.append(token)
    special = {name(token) for token in named if token is not None}
    added = []
    for token in wanted:
        if isinstance(token, str):
            token = AddedToken(token, special=True)
        elif not token.special and token.content in special:
            token.special = True
        added.append(token)
    tokenizer.add_tokens(added)


def _frame_with_ends(tokenizer: Tokenizer, settings: Settings, roles: Roles) -> None:
    """Adds the post-processor that `add_bos_token` and `add_eos_token` describe, which tokenizer.json overrules."""
    asked = settings.fast is None and ("add_bos_token" in settings.values or "add_eos_token" in settings.values)
    if tokenizer.post_processor is not None and not asked:
        return
    bos, eos = roles.get("bos_token"), roles.get("eos_token")
    wants = settings.fast is None
    begin = [name(bos)] if bos and wants and settings.flag("add_bos_token", False) else []
    end = [name(eos)] if eos and wants and settings.flag("add_eos_token", False) else []
    ends = [(each, tokenizer.token_to_id(each)) for each in dict.fromkeys(begin + end)]

    def side(text: str, kind: int) -> list[str]:
        return [*(f"{each}:{kind}" for each in begin), f"{text}:{kind}", *(f"{each}:{kind}" for each in end)]

    untyped(tokenizer).post_processor = processors.TemplateProcessing(
        single=untyped(side("$A", 0)), pair=untyped(side("$A", 0) + side("$B", 1)), special_tokens=untyped(ends)
    )


# ---- Roles --------------------------------------------------------------------------------------


def _special(tokenizer: Tokenizer, settings: Settings, roles: Roles, config: Mapping[str, object]) -> dict[str, int]:
    """Returns the ids of the roles: those of the tokenizer's files, or else of config.json, or else by their names."""

    def index(role: str) -> int | None:
        named, default = settings.roles.get(role), roles.get(role)
        found = None if named is None else tokenizer.token_to_id(name(named))
        if found is None:
            found = _id_of_config(tokenizer, config, role)
        return tokenizer.token_to_id(name(default)) if found is None and default is not None else found

    ends = ("eos_token", "sep_token") if config.get("is_encoder_decoder") is True else ("sep_token", "eos_token")
    places = {"pad": ("pad_token",), "unk": ("unk_token",), "cls": ("cls_token", "bos_token"), "sep": ends}
    places["mask"] = ("mask_token",)
    special = {}
    for field, candidates in places.items():
        found = [i for role in candidates if (i := index(role)) is not None]
        found += [i for each in SPECIAL_NAMES[field] if (i := tokenizer.token_to_id(each)) is not None]
        special[field] = found[0] if found else -1
    return special


def _frame_by_config(tokenizer: Tokenizer, folder: Path, config: Mapping[str, object]) -> None:
    """Puts [CLS] and [SEP] around a text where no file of the tokenizer says what stands there, but config.json does.

    `AutoTokenizer` puts nothing there. A model whose config.json has a cls_token_id was trained with the token.
    """
    says = (folder / CONFIG).exists() or (folder / ROLES_MAP).exists()
    if says or tokenizer.num_special_tokens_to_add(is_pair=False):
        return
    ids = [config.get("cls_token_id"), config.get("sep_token_id")]
    found = [_id_of_config(tokenizer, config, role) for role in ("cls_token", "sep_token")]
    if ids != found or None in found:
        return
    cls, sep = (str(tokenizer.id_to_token(index)) for index in found if index is not None)
    untyped(tokenizer).post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=untyped(list(zip((cls, sep), found, strict=True))),
    )


def _id_of_config(tokenizer: Tokenizer, config: Mapping[str, object], role: str) -> int | None:
    value = config.get(f"{role}_id")
    if isinstance(value, list) and value:
        value = value[0]  # several tokens that end a text
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        return None
    return value if tokenizer.id_to_token(value) is not None else None


def _cleans_up(tokenizer: Tokenizer, settings: Settings) -> bool:
    """Returns whether decoding removes the space before punctuation; transformers never does for BPE."""
    forced = settings.flag("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return settings.flag("clean_up_tokenization_spaces", False) and (forced or type(tokenizer.model).__name__ != "BPE")
