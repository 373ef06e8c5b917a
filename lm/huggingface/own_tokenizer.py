"""Writes a sentencepiece tokenizer that was trained here as a `tokenizer.json`."""

import re

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from lm.tokenizers import spiece
from lm.tokenizers.parts import assembled, untyped
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece

ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
}

# Sentencepiece puts a space before a text. The library normalises the names of special tokens too, where no space may
# be put. A [MASK] at the beginning takes the place of the first word, with its space.
_BEGIN = r"\A(?!(?:\[(?:PAD|UNK|CLS|SEP)\]|<extra_id_\d+>)\z)(?! ?\[MASK\])(?=[\s\S])"


def to_tokenizer_json(tokenizer: SentencePiece, single: str, pair: str) -> str:
    """Returns a `tokenizer.json` that cuts text as the tokenizer does.

    Names of special tokens in a text are special tokens there, as transformers has it. A [MASK] takes the space before
    it along, as `encode_with_masks` does.

    Args:
        tokenizer: one that was trained here.
        single: the template of one text, such as `[CLS] $A [SEP]`.
        pair: the template of two texts.
    """
    content = spiece.read(tokenizer.to_bytes(), tokenizer.file_name)
    begin = [normalizers.Replace(Regex(_BEGIN), " "), normalizers.Replace(Regex(r" \[MASK\]"), "[MASK]")]
    mark = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made = assembled(
        _model(content),
        normalizers.Sequence(untyped(begin)),
        pre_tokenizers.Sequence(untyped([mark, _byte_names(content)])),
        decoders.Sequence(untyped(steps)),
    )
    special = [piece for (piece, _), kind in zip(content.pieces, content.kinds, strict=True) if kind in _SPECIAL]
    made.add_special_tokens([AddedToken(piece, normalized=True, special=True) for piece in special])
    ends = [(piece, made.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")]
    untyped(made).post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=untyped(ends))
    return made.to_str()


_SPECIAL = (spiece.UNKNOWN, spiece.CONTROL)


def _model(content: spiece.Pieces) -> object:
    if not content.is_bpe:
        return models.Unigram(untyped(content.pieces), unk_id=content.unk_id, byte_fallback=True)
    pairs = zip(content.pieces, content.kinds, strict=True)
    normal = [piece for (piece, _), kind in pairs if kind == spiece.NORMAL]
    # A piece with a higher score merges first; sentencepiece numbers them so.
    return models.BPE(
        content.ids,
        spiece.merges(content.ids, normal),
        unk_token=content.pieces[content.unk_id][0],
        fuse_unk=True,
        byte_fallback=True,
    )


def _byte_names(content: spiece.Pieces) -> object:
    """Returns a pre-tokenizer that cuts "<0x41>" in a text, which would be the piece of a byte in the library.

    It cuts between two characters that no piece joins, if there are any.
    """
    pairs = zip(content.pieces, content.kinds, strict=True)
    normal = [piece for (piece, _), kind in pairs if kind == spiece.NORMAL]
    patterns = ["<", "0", "x", "[0-9A-F]", "[0-9A-F]", ">"]

    def joins(cut: int) -> bool:
        joined = re.compile(patterns[cut - 1] + patterns[cut])
        return any(joined.search(piece) for piece in normal)

    cut = next((cut for cut in range(1, len(patterns)) if not joins(cut)), 1)
    before, after = "".join(patterns[:cut]), "".join(patterns[cut:])
    return pre_tokenizers.Split(Regex(f"{before}(?={after})"), behavior="merged_with_previous")
