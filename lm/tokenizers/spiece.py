"""Reads the pieces of a sentencepiece model file, to run them with the `tokenizers` library."""

import dataclasses
from collections.abc import Mapping, Sequence

from lm.errors import InputError

# Kinds of pieces, numbered as in sentencepiece's file format.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What a sentencepiece model holds.

    Attributes:
        pieces: (piece, score), in the order of their ids.
        kinds: the kind of each piece.
        is_bpe: whether the model is BPE and not unigram.
        unk_id: the id of the unknown piece.
        charsmap: the compiled normalisation; None if there is none.
    """

    pieces: list[tuple[str, float]]
    kinds: list[int]
    is_bpe: bool
    unk_id: int
    charsmap: bytes | None

    @property
    def ids(self) -> dict[str, int]:
        return {piece: index for index, (piece, _) in enumerate(self.pieces)}


def read(model: bytes, name: str) -> Pieces:
    """Returns the pieces of a model.

    Raises:
        InputError: the bytes are no sentencepiece model of the kind unigram or BPE.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    content = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue] - made at import
    try:
        content.ParseFromString(model)
    except (DecodeError, UnicodeDecodeError, RuntimeError) as error:
        raise InputError(f"{name} is no sentencepiece model: {error}.") from None
    kind = content.trainer_spec.model_type
    if not content.pieces or kind not in (_UNIGRAM, _BPE):
        raise InputError(f"{name} is no sentencepiece model of the kind unigram or BPE.")
    return Pieces(
        [(piece.piece, piece.score) for piece in content.pieces],
        [piece.type for piece in content.pieces],
        kind == _BPE,
        content.trainer_spec.unk_id,
        content.normalizer_spec.precompiled_charsmap or None,
    )


def merges(ids: Mapping[str, int], pieces: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Returns the merges of a BPE vocabulary: all pairs of pieces that make a piece, in the order of the whole.

    Args:
        ids: piece -> id. Smaller ids merge first.
        pieces: those that merges may make and use; by default all.
    """
    usable = ids if pieces is None else dict.fromkeys(pieces)
    found = []
    for whole in usable:
        pairs = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        found += [(ids[whole], *pair) for pair in pairs if pair[0] in usable and pair[1] in usable]
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2]), ids[merge[1]], ids[merge[2]]))
    return [(left, right) for _, left, right in found]
