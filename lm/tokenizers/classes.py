"""How each tokenizer class of transformers 5 is built from a vocabulary and its settings.

Transformers 5 builds most of its classes anew, even from a `tokenizer.json`: of that file it takes the vocabulary, the
merges, the compiled normalisation and the added tokens. Settings such as `do_lower_case` come from
`tokenizer_config.json`. A folder's ids are the same here, because the same parts are built from the same values.

A class is a row of `CLASSES`. The other classes run `tokenizer.json` as it is. `REGISTERED` has the class of each kind
of model, for folders that name none.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lm.tokenizers import languages, spiece_classes
from lm.tokenizers.parts import Roles, TokenizerClass, Vocabulary, assembled, name, template, token_id, untyped
from lm.tokenizers.settings import Settings

# ---- WordPiece and byte-level BPE ---------------------------------------------------------------


def _wordpiece(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.optional_flag("strip_accents"),
        lowercase=settings.flag("do_lower_case", True),
    )
    model = models.WordPiece(untyped(vocabulary.pieces), unk_token=name(roles["unk_token"]))
    return assembled(model, normalizer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(prefix="##"))


def _byte_level(vocabulary: Vocabulary, settings: Settings, roles: Roles) -> Tokenizer:
    del roles
    empty = {"continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False}
    model = models.BPE(untyped(vocabulary.pieces), vocabulary.merges or [], **untyped(empty))
    prefix = settings.flag("add_prefix_space", False)
    return assembled(model, None, pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel())


def _roberta_frame(tokenizer: Tokenizer, settings: Settings, roles: Roles) -> object:
    sep, cls = ((name(roles[role]), token_id(tokenizer, roles[role], roles)) for role in ("sep_token", "cls_token"))
    spaces = settings.flag("trim_offsets", True), settings.flag("add_prefix_space", False)
    return processors.RobertaProcessing(untyped(sep), untyped(cls), *spaces)


_BERT_FRAME = template("{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1")
_DOUBLE_FRAME = template("{bos} $A {eos}", "{bos} $A {eos} {eos} $B {eos}")

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
            untyped((name(roles["sep_token"]), token_id(tokenizer, roles["sep_token"], roles))),
            untyped((name(roles["cls_token"]), token_id(tokenizer, roles["cls_token"], roles))),
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
        template("{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}"),
    ),
    "DebertaV2Tokenizer": TokenizerClass(("spm.model",), "Unigram", _DEBERTA, spiece_classes.deberta_v2, _BERT_FRAME),
    "AlbertTokenizer": TokenizerClass(
        ("spiece.model",), "Unigram", {**_DEBERTA, "unk_token": "<unk>", "pad_token": "<pad>"}, spiece_classes.albert
    ),
    "T5Tokenizer": TokenizerClass(
        ("spiece.model",),
        "Unigram",
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        spiece_classes.t5,
        spiece_classes.t5_frame,
        spiece_classes.t5_order,
        spiece_classes.t5_extra,
    ),
    "XLMRobertaTokenizer": TokenizerClass(
        _SPM,
        "Unigram",
        _ROBERTA,
        spiece_classes.xlm_roberta,
        _DOUBLE_FRAME,
        lambda vocabulary, _, roles: spiece_classes.fairseq(vocabulary, roles, "bos_token"),
    ),
    "CamembertTokenizer": TokenizerClass(
        _SPM,
        None,
        {**_ROBERTA, "mask_token": AddedToken("<mask>", lstrip=True, special=True)},
        spiece_classes.camembert,
        _DOUBLE_FRAME,
        spiece_classes.camembert_order,
        lambda given, _: ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"] if given is None else given,
    ),
    "PegasusTokenizer": TokenizerClass(
        ("spiece.model",),
        "Unigram",
        {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask_2>"},
        spiece_classes.pegasus,
        template("$A {eos}", "$A $B {eos}"),
        spiece_classes.pegasus_order,
        spiece_classes.pegasus_extra,
    ),
    "MBartTokenizer": TokenizerClass(
        _SPM,
        "Unigram",
        {**_ROBERTA, "mask_token": _MASK},
        spiece_classes.mbart,
        spiece_classes.language_frame("en_XX", code_first=False),
        lambda vocabulary, _, roles: spiece_classes.fairseq(vocabulary, roles, "bos_token", languages.MBART),
        spiece_classes.mbart_extra,
    ),
    "MBart50Tokenizer": TokenizerClass(
        _SPM,
        "Unigram",
        {role: token for role, token in _ROBERTA.items() if role != "bos_token"} | {"mask_token": _MASK},
        spiece_classes.mbart50,
        spiece_classes.language_frame("en_XX", code_first=True),
        lambda vocabulary, _, roles: spiece_classes.fairseq(vocabulary, roles, "cls_token", languages.MBART50),
        lambda given, _: [*(given or []), *languages.MBART50],
    ),
    "NllbTokenizer": TokenizerClass(
        _SPM,
        "BPE",
        {**_ROBERTA, "mask_token": AddedToken("<mask>", normalized=True, lstrip=True, special=True)},
        spiece_classes.nllb,
        spiece_classes.language_frame("eng_Latn", code_first=True),
        spiece_classes.nllb_order,
        lambda given, _: list(languages.NLLB) if given is None else given,
    ),
}

GENERIC = "TokenizersBackend"  # the class that runs tokenizer.json as it is
# The class that transformers 5 registers for each model type. It reads folders that name no class.
REGISTERED = {
    "albert": "AlbertTokenizer",
    "bart": "RobertaTokenizer",
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "deberta": "DebertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "m2m_100": "M2M100Tokenizer",
    "marian": "MarianTokenizer",
    "mbart": "MBartTokenizer",
    "modernbert": GENERIC,
    "mpnet": "MPNetTokenizer",
    "mt5": "T5Tokenizer",
    "pegasus": "PegasusTokenizer",
    "roberta": "RobertaTokenizer",
    "t5": "T5Tokenizer",
    "umt5": GENERIC,
    "xlm-roberta": "XLMRobertaTokenizer",
}
