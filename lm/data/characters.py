"""What a reader sees of a text."""

import unicodedata

# Controls, formats (zero-width joiners, direction marks, soft hyphens), spaces and separators.
_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}
# Other characters that are drawn as nothing: the property Default_Ignorable_Code_Point of Unicode 15.1.
_IGNORABLE = ((0x34F, 0x34F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164))
_IGNORABLE += ((0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF))


def without_surrogates(text: str) -> str:
    """Returns the text with a question mark for each half of a surrogate pair.

    JSON can hold such a half. It has no UTF-8, and no tokenizer takes it.
    """
    return text.encode("utf-8", "replace").decode()


def is_blank(text: str) -> bool:
    """Returns whether nothing of a text can be seen: it is empty, or all its characters are spaces or zero-width."""
    return all(
        unicodedata.category(character) in _UNSEEN or any(low <= ord(character) <= high for low, high in _IGNORABLE)
        for character in text
    )
