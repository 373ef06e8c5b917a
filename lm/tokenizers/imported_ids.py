"""What the tokenizers of imported models share: their ids may have gaps, and may go beyond the model's table."""

from collections.abc import Mapping, Sequence

from lm.errors import InputError
from lm.tokenizers.special_ids import SpecialIds, require


def pieces_by_id(ids: Mapping[str, int], size: int) -> list[str]:
    """Returns the piece of each id below `size`; "" for an id without one."""
    pieces = [""] * size
    for piece, index in ids.items():
        pieces[index] = piece
    return pieces


def unusable(ids: Mapping[str, int], size: int, rows: int) -> set[int]:
    """Returns the ids below `size` that have no piece, or no row in a table of `rows` rows."""
    return set(range(size)) - set(ids.values()) | set(range(rows, size))


def check_rows(ids: Sequence[int], rows: int, pieces: Sequence[str]) -> None:
    """Refuses ids that have no row in the model's table.

    Raises:
        InputError: names the first one.
    """
    if len(pieces) > rows and (beyond := [index for index in ids if index >= rows]):
        raise InputError(
            f"the text holds the token {pieces[beyond[0]]!r} with the id {beyond[0]}, but the model's "
            f"table of embeddings has {rows} rows; remove it from the text."
        )


def with_mask_token(text: str, special: SpecialIds, pieces: Sequence[str]) -> str:
    """Returns the text with the tokenizer's own mask token where it says [MASK].

    Raises:
        InputError: the text says [MASK], and the tokenizer has no mask token.
    """
    if "[MASK]" not in text:
        return text
    require(special, "mask", use="a text with [MASK]")
    return text.replace("[MASK]", pieces[special.mask])
