"""Where words begin, for whole-word masking."""

from collections.abc import Sequence

import numpy as np


def starts_word(pieces: Sequence[str], special_ids: np.ndarray, byte_ids: Sequence[int] = ()) -> np.ndarray:
    """Returns bool [V]: whether each piece begins a word.

    WordPiece marks what continues a word (`##`), sentencepiece and byte-level BPE what begins one (`▁`, `Ġ`). Special
    tokens, punctuation and CJK pieces begin one too: CJK text has no spaces.

    Byte pieces spell characters that have no piece. ASCII bytes begin a word. So does the first byte of a character of
    three or four bytes, which is mostly CJK or a symbol. The first of two bytes (Latin, Greek, Cyrillic, ...) and
    continuation bytes continue the word before.

    Args:
        pieces: as the tokenizer spells them; an id without a piece has "".
        special_ids: of the special tokens.
        byte_ids: of the byte pieces, `<0x00>` to `<0xFF>`.
    """
    if any(piece.startswith("##") for piece in pieces):
        starts = np.array([not piece.startswith("##") for piece in pieces], bool)
    else:
        starts = np.array([_begins(piece) for piece in pieces], bool)
    for index in byte_ids:
        byte = int(pieces[index][1:-1], 16)
        starts[index] = byte < 0x80 or byte >= 0xE0
    starts[special_ids] = True
    return starts


def _begins(piece: str) -> bool:
    return piece.startswith(("Ġ", "▁")) or is_cjk(piece[:1]) or not any(map(str.isalnum, piece))


def is_cjk(character: str) -> bool:
    code = ord(character) if character else 0
    return (
        0x2E80 <= code <= 0x9FFF or 0xAC00 <= code <= 0xD7AF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF
    )
