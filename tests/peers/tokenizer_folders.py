"""Folders of tokenizers in the forms that transformers has written, with every setting that changes ids."""

import functools
import io
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import sentencepiece
from tokenizers import pre_tokenizers

SEED = random.Random(0)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["".join(SEED.choices(LETTERS, k=SEED.randint(2, 8))) for _ in range(400)]
LINES = [" ".join(SEED.choices(WORDS, k=12)) for _ in range(400)] + ["Schön café 中国 人 Ab，c ①② don't"] * 20

Files = dict[str, str | bytes]
Settings = dict[str, object]


def hard_texts() -> list[str]:
    """200 texts: marks that combine or join, other scripts, control characters, code, names of tokens, long ones."""
    one, two, three = WORDS[:3]
    plain = [
        *(
            "",
            " ",
            "   ",
            "\n",
            "\t",
            "\r\n",
            "\x00",
            "\u2028",
            "\u2029",
            "\u200b",
            "\u200d",
            "\ufeff",
            "\u00a0",
            "\u3000",
        ),
        *(
            one,
            f" {one}",
            f"{one} ",
            f"{one} {two}",
            f"{one}  {two}",
            f"{one}\n{two}",
            f"{one}\u2028{two}",
            one.upper(),
        ),
        *(
            "café",
            "cafe\u0301",
            "Schön",
            "SCHÖN",
            "ﬁ ﬂ",
            "①②③",
            "Ａｂｃ，",
            "İstanbul",
            "ß ẞ",
            "ǅ",
            "\u0301",
            "e\u0301\u0301",
        ),
        *(
            "中国人",
            "中 国",
            f"{one}中国{two}",
            "日本語カタカナ",
            "한국어",
            "ไทยไม่มีช่องว่าง",
            "مرحبا بالعالم",
            "שלום",
            "हिन्दी",
            "தமிழ்",
        ),
        *("👩‍👩‍👧", "👍🏽", "🇩🇪", "🙂" * 5, "\U00020000", "\ue000", "\U000f0000", "\u202eabc\u202c", "a\u0300b\u0327"),
        *(
            "def f(x):\n\treturn x + 1  # ok",
            "``quoted''",
            "don't can't",
            "a.b,c;d",
            "3,5 1.000",
            "<b>x</b>",
            "C:\\x",
            "--__--",
        ),
        *(
            "[MASK]",
            "<mask>",
            "[CLS] a [SEP]",
            "<s> a </s>",
            "<pad>",
            "[PAD]",
            "<unk>",
            "[UNK]",
            "<extra_id_0> a <extra_id_1>",
        ),
        *(
            f"{one}<hl>{two}",
            f"{one} <hl> {two}",
            f"<sep>{one}",
            f"{one} NEW {two}",
            f"{one}NEW{two}",
            "new",
            "NEW",
            "Neu",
        ),
        *(
            f">>fr<< {one}",
            ">>fr<<",
            "__en__ x",
            "en_XX x",
            "eng_Latn x",
            "@@",
            "<0x41>",
            "▁",
            "▁▁a",
            "a▁b",
            "##a",
            "Ġa",
            "<unk_2>",
        ),
        *(
            "<hl><hl>",
            " <hl> <hl> ",
            "<mask><mask>",
            f"{one} <mask> {two}",
            f"{one} [MASK].",
            "</s></s>",
            "NOTUSED <s>NOTUSED",
        ),
        *("x" * 101, "x" * 300, f"{one} " * 200, "中" * 500, one * 50, "🙂é" * 300, f"{two}, {three}. " * 700),
    ]
    random_ = random.Random(1)
    pool = [*plain[14:110], "\u0301", "\u2028", " ", "  ", "\x00", "-", "A", "é"]
    return plain + ["".join(random_.choices(pool, k=random_.randint(2, 6))) for _ in range(200 - len(plain))]


# ---- Vocabularies -------------------------------------------------------------------------------


@functools.cache
def spiece(kind: str, **more: object) -> bytes:
    """A sentencepiece model with the special pieces of a family."""
    ids = {
        "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"},
        "fairseq": {"unk_id": 0, "bos_id": 1, "eos_id": 2},
        "albert": {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "control_symbols": ["[MASK]"]},
        "deberta": {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "unk_piece": "[UNK]", "pad_piece": "[PAD]"},
    }[kind]
    if kind in ("albert", "deberta"):
        ids |= {"bos_piece": "[CLS]", "eos_piece": "[SEP]"}
    out, options = io.BytesIO(), {"vocab_size": 300, "hard_vocab_limit": False, "minloglevel": 2, **ids, **more}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=out, **options)
    return out.getvalue()


def pieces(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]


def wordpiece(special: list[str], last: tuple[str, ...] = ()) -> Files:
    """A vocab.txt with U+2028 as a piece, as the one of bert-base-chinese, and with a line that occurs twice."""
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    words = [*WORDS, *(f"##{word}" for word in WORDS[:200]), "schon", "schön", "Schön", "cafe", "café", "ö", "##ö"]
    rest = ["\u2028", *words, *letters, *"ABCN中国人,.;()'\"`<>/+-=[]", "##国", "mask", WORDS[0]]
    return {"vocab.txt": "\n".join([*special, *rest, *last]) + "\n"}


def byte_level(special: list[str], last: list[str]) -> Files:
    merges = [("h", "e"), ("t", "h"), ("th", "e"), ("Ġ", "t"), ("Ġt", "he"), ("a", "b"), ("Ġ", "ab")]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges), *last]
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    return {
        "vocab.json": json.dumps({piece: index for index, piece in enumerate(names)}),
        "merges.txt": f"#version: 0.2\n{lines}",
    }


def numbered(names: list[str], model: bytes) -> str:
    return json.dumps({piece: index for index, piece in enumerate([*names, *pieces(model)[3:], "<pad>"])})


BERT, FAIRSEQ = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ["<s>", "<pad>", "</s>", "<unk>"]


def vocabularies() -> dict[str, Files]:
    """Model type -> the vocabulary files of a folder without tokenizer.json."""
    fairseq, t5 = spiece("fairseq"), spiece("t5")
    marian, bpe = numbered(["</s>", "<unk>", ">>fr<<"], fairseq), byte_level(FAIRSEQ, ["<mask>"])
    m2m100 = json.dumps({piece: index for index, piece in enumerate([*FAIRSEQ, *pieces(fairseq)[3:]])})
    return {
        "bert": wordpiece(BERT),
        "distilbert": wordpiece([*reversed(BERT)]),
        "electra": wordpiece(BERT[:-1]),  # without [MASK], which is added
        "mpnet": wordpiece([*FAIRSEQ, "[UNK]"], ("<mask>",)),
        "roberta": bpe,
        "bart": bpe,
        "deberta": byte_level(["[CLS]", "[PAD]", "[SEP]", "[UNK]"], ["[MASK]"]),
        "t5": {"spiece.model": t5},
        "mt5": {"spiece.model": spiece("t5", byte_fallback=True)},
        "pegasus": {"spiece.model": t5},
        "albert": {"spiece.model": spiece("albert")},
        "deberta-v2": {"spm.model": spiece("deberta", user_defined_symbols="@@")},
        "xlm-roberta": {"sentencepiece.bpe.model": fairseq},
        "camembert": {"sentencepiece.bpe.model": spiece("fairseq", normalization_rule_name="identity")},
        "mbart": {"sentencepiece.bpe.model": fairseq},
        "mbart50": {"sentencepiece.bpe.model": fairseq},
        "nllb": {"sentencepiece.bpe.model": spiece("fairseq", model_type="bpe")},
        "gpt2": byte_level(["<|endoftext|>"], ["<hl>"]),
        "m2m_100": {"sentencepiece.bpe.model": fairseq, "vocab.json": m2m100},
        "marian": {"source.spm": fairseq, "target.spm": fairseq, "vocab.json": marian},
    }


# ---- Settings -----------------------------------------------------------------------------------

BOTH = [True, False]
CASE = {"do_lower_case": BOTH, "strip_accents": [None, *BOTH], "tokenize_chinese_chars": BOTH}
PREFIX = {"add_prefix_space": BOTH}
# The values of every setting that a family's class reads; all combinations are tried.
AXES: dict[str, Mapping[str, Sequence[object]]] = {
    "bert": CASE,
    "distilbert": {"do_lower_case": BOTH},
    "electra": {"do_lower_case": BOTH, "strip_accents": [None, False]},
    "mpnet": {"do_lower_case": BOTH, "strip_accents": [None, *BOTH]},
    "roberta": PREFIX,
    "bart": {**PREFIX, "trim_offsets": BOTH},
    "deberta": PREFIX,
    "t5": {"extra_ids": [100, 10, 0]},
    "mt5": {"extra_ids": [0, 100]},
    "pegasus": {"offset": [103, 10]},
    "albert": {"do_lower_case": BOTH, "keep_accents": BOTH},
    "deberta-v2": {"do_lower_case": BOTH, "split_by_punct": BOTH},
    "xlm-roberta": PREFIX,
    "camembert": PREFIX,
    "mbart": {"src_lang": [None, "ro_RO"]},
    "mbart50": {"src_lang": [None, "ro_RO"]},
    "nllb": {
        **{"src_lang": [None, "fra_Latn"], "legacy_behaviour": BOTH},
        "additional_special_tokens": [["eng_Latn", "fra_Latn"]],
    },
    "gpt2": {**PREFIX, "add_bos_token": BOTH, "pad_token": ["<|endoftext|>"]},  # by itself it has no padding
    "m2m_100": {"src_lang": [None, "fr"]},
    "marian": {"source_lang": ["en"]},
}
# Families of the matrix that are a class of their own beside that of their kind of model: the kind and the class.
NAMED = {
    "mbart50": ("mbart", "MBart50Tokenizer"),
    "nllb": ("m2m_100", "NllbTokenizer"),
    "gpt2": ("bart", "GPT2Tokenizer"),
}
# Settings of old versions, which change no ids in version 5.
IDLE = {"do_basic_tokenize": False, "never_split": ["the"], "legacy": False, "model_max_length": 64, "use_fast": True}


def token(content: str, **flags: bool) -> Settings:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, **flags}


def added_tokens(size: int) -> Iterator[tuple[str, dict[str, Settings]]]:
    """Ways to state added tokens: (name, file -> content), for a vocabulary of `size` ids."""
    yield "none", {}
    yield "added_tokens.json", {"added_tokens.json": {"<sep>": size, "<hl>": size + 1, "NEW": size + 2}}
    flags = [
        token("<hl>", lstrip=True, special=True),
        token("<sep>", rstrip=True, special=False),
        token("NEW", single_word=True, normalized=True, special=False),
        token("Neu", normalized=True, special=False),
    ]
    decoder = {str(size + place): each for place, each in enumerate(flags)}
    yield "added_tokens_decoder", {"tokenizer_config.json": {"added_tokens_decoder": decoder}}
    yield "additional", {"tokenizer_config.json": {"additional_special_tokens": ["<hl>", "<sep>"]}}
    lists: Settings = {"additional_special_tokens": ["<hl>"], "sep_token": "<sep>"}
    lists["mask_token"] = token("<mask>", lstrip=True, normalized=True)
    yield "special_tokens_map.json", {"special_tokens_map.json": lists}
    yield "extra", {"tokenizer_config.json": {"extra_special_tokens": ["<hl>"], "split_special_tokens": True}}
    named: Settings = {"extra_special_tokens": {"image_token": "<hl>"}}
    yield "named", {"tokenizer_config.json": {**named, **IDLE}}
    yield "named and listed", {"tokenizer_config.json": {**named, "additional_special_tokens": ["<sep>"]}}


def folders(family: str) -> Iterator[tuple[str, dict[str, Settings]]]:
    """All folders of a family by hand: (name, file -> content of the files beside the vocabulary).

    Every combination of the settings is there, and every kind of added token; the two are paired in turn.
    """
    axes = AXES[family]
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    kinds = [each for each in added_tokens(1000) if family != "nllb" or "named" not in each[0]]  # named: no languages
    for number in range(max(len(combinations), len(kinds))):
        chosen, (kind, files) = combinations[number % len(combinations)], kinds[number % len(kinds)]
        config = {**chosen, **files.get("tokenizer_config.json", {})}
        if family in NAMED:
            config["tokenizer_class"] = NAMED[family][1]
        yield f"{kind} {chosen}", {**files, "tokenizer_config.json": config}


def model_type(family: str) -> str:
    return NAMED[family][0] if family in NAMED else family


def write(folder: Path, vocabulary: Mapping[str, str | bytes], family: str, settings: Mapping[str, Settings]) -> None:
    folder.mkdir(parents=True)
    for name, content in vocabulary.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, values in {"config.json": {"model_type": model_type(family)}, **settings}.items():
        (folder / name).write_text(json.dumps(values))
