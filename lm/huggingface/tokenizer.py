"""A tokenizer as the files that transformers reads; a sentencepiece model becomes a `tokenizer.json`."""

import dataclasses
import json
from typing import Any

import sentencepiece

from lm.data.tokenizer import SentencePiece, Tokenizer

_SPACE = "▁"


def tokenizer_files(tokenizer: Tokenizer, max_length: int) -> dict[str, str]:
    """The content of `tokenizer.json` and `tokenizer_config.json`.

    The same text gets the same ids, up to two habits of transformers: a special token that is spelled out in
    the text is read as that token, and a space at the very beginning is not kept.

    Args:
        tokenizer: trained here or imported.
        max_length: tokens of the longest input.
    """
    special = {name: tokenizer.id_to_piece(index) for name, index in dataclasses.asdict(tokenizer.special).items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": piece for name, piece in special.items()},
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    converted = _convert(tokenizer, special) if isinstance(tokenizer, SentencePiece) else tokenizer.to_bytes().decode()
    return {"tokenizer.json": converted, "tokenizer_config.json": json.dumps(settings, indent=2) + "\n"}


def _convert(tokenizer: SentencePiece, special: dict[str, str]) -> str:
    import tokenizers
    from tokenizers import AddedToken, decoders, pre_tokenizers, processors

    converted: Any = tokenizers.Tokenizer(_model(tokenizer))
    # "first": what follows a [MASK] begins no word unless a space says so.
    converted.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="first", split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    converted.decoder = decoders.Sequence(steps)
    converted.add_special_tokens(
        [
            AddedToken(tokenizer.id_to_piece(index), special=True, lstrip=index == tokenizer.special.mask)
            for index in tokenizer.special_ids.tolist()
        ]
    )
    cls, sep = special["cls"], special["sep"]
    converted.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.special.cls), (sep, tokenizer.special.sep)],
    )
    return converted.to_str(pretty=True)


def _model(tokenizer: SentencePiece) -> Any:
    from tokenizers import models

    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
    pieces = [processor.id_to_piece(index) for index in range(tokenizer.vocab_size)]
    special = set(tokenizer.special_ids.tolist())
    ordinary = {
        piece: processor.get_score(index)
        for index, piece in enumerate(pieces)
        if index not in special and not processor.is_byte(index)
    }
    # A unigram model scores its pieces by log probability, a BPE model 0, -1, -2, ...: the order of the merges.
    if not all(score == round(score) for score in ordinary.values()):
        # Bytes and special pieces are not found in text, but must have a score.
        least = min(ordinary.values())
        vocabulary = [(piece, ordinary.get(piece, least)) for piece in pieces]
        return models.Unigram(vocabulary, unk_id=tokenizer.special.unk, byte_fallback=True)
    index_of = {piece: index for index, piece in enumerate(pieces)}
    merges = []
    for piece in sorted(ordinary, key=lambda piece: -ordinary[piece]):
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [split for split in splits if split[0] in ordinary and split[1] in ordinary]
        merges += sorted(known, key=lambda split: (index_of[split[0]], index_of[split[1]]))
    return models.BPE(vocab=index_of, merges=merges, unk_token=pieces[tokenizer.special.unk], byte_fallback=True)
