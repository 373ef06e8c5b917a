"""The special tokens of a tokenizer: padding, separators, the mask, and the sentinels of span corruption."""

import dataclasses

from lm.config import Config
from lm.errors import InputError

NUM_SENTINELS = 100
FIRST_ORDINARY_ID = 5 + NUM_SENTINELS

# The names of the special tokens in imported tokenizers: BERT's, then those of RoBERTa, BART and T5.
SPECIAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """The ids of the special tokens; -1 for a token that the tokenizer lacks.

    Attributes:
        pad, unk, cls, sep, mask: of [PAD], [UNK], [CLS], [SEP] (which also ends a decoder's text) and [MASK].
        first_sentinel: of <extra_id_0>. The ids of the sentinels descend.
        num_sentinels: how many sentinels there are.
        rows: of the model's table of embeddings; None if it has a row for each id.
    """

    pad: int = 0
    unk: int = 1
    cls: int = 2
    sep: int = 3
    mask: int = 4
    first_sentinel: int = 4 + NUM_SENTINELS
    num_sentinels: int = NUM_SENTINELS
    rows: int | None = None

    def start(self, decoder_start: str) -> int:
        """Returns the id that a decoder is given first: that of the field named by `ModelConfig.decoder_start`."""
        return getattr(self, decoder_start)


def require(special: SpecialIds, *fields: str, use: str) -> None:
    """Refuses a tokenizer that lacks a special token.

    Args:
        special: of the tokenizer.
        fields: fields of `SpecialIds` that are needed.
        use: what needs them, for the message.

    Raises:
        InputError: a token is missing, or has no row in the model's table of embeddings.
    """
    for field in fields:
        if special.rows is not None and getattr(special, field) >= special.rows:
            raise InputError(
                f"the tokenizer's {field} token has the id {getattr(special, field)}, but the model's table of "
                f"embeddings has {special.rows} rows; {use} needs it."
            )
        if getattr(special, field) < 0:
            names = " or ".join(SPECIAL_NAMES[field])
            raise InputError(
                f"the tokenizer has no {names}, which {use} needs; use another tokenizer, or leave data.tokenizer "
                "empty to train one."
            )


def end_ids(config: Config, special: SpecialIds) -> tuple[int, ...]:
    """Returns the ids that end a text which a model writes."""
    return tuple(config.generation.eos_token_id) or (special.sep,)


def decoder_start(config: Config, special: SpecialIds) -> int:
    """Returns the id that a model's decoder is given first."""
    given = config.generation.decoder_start_token_id
    return special.start(config.model.decoder_start) if given < 0 else given
