"""The state of decoding, and its sizes.

Array names carry their shape: B rows, N beams of a row, P prompt length, T written tokens, C candidates.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config import Config
from lm.inference.options import RowOptions
from lm.models import Cache
from lm.tokenizers.special_ids import SpecialIds, decoder_start, end_ids

NEVER = -1.0e9  # the score of a token or beam that must not be chosen; finite, so that sums stay ordered


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static sizes of a decoding program, besides its number of rows.

    Attributes:
        num_beams: N, the number of beams.
        written: T, the most tokens that a row may write.
        prompt: P, the most tokens of a prompt.
        source: the most tokens of a source; 0 for a decoder alone.
        tops: how many of the most probable tokens a step keeps, where N is 1.
    """

    num_beams: int
    written: int
    prompt: int = 0
    source: int = 0
    tops: int = 0


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """The ids of special tokens.

    Attributes:
        start: the decoder's first input.
        end: ends a sequence.
        pad: fills the rest of a row after its end.
        vocab_size: ids from this one on only pad the vocabulary; they are never chosen.
        other_ends: more tokens that end a sequence.
    """

    start: int
    end: int
    pad: int
    vocab_size: int
    other_ends: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        return self.end, *self.other_ends

    def is_end(self, tokens: jax.Array) -> jax.Array:
        """Returns which of some tokens end a sequence, bool of the same shape."""
        return functools.reduce(jnp.logical_or, [tokens == end for end in self.ends])

    @classmethod
    def of(cls, config: Config, special: SpecialIds, vocab_size: int) -> "TokenIds":
        """Returns the ids of a model whose tokenizer has `vocab_size` tokens."""
        start, size = decoder_start(config, special), min(vocab_size, config.model.vocab_size)
        end, *others = end_ids(config, special)
        return cls(start, end, special.pad, size, tuple(others))


class Beams(NamedTuple):
    """The finished beams of each row.

    Attributes:
        tokens_BNT: as in `DecodeState`.
        scores_BN: log-probability over length to the power of `length_penalty`, descending; NEVER for an empty place.
    """

    tokens_BNT: jax.Array
    scores_BN: jax.Array


class Tops(NamedTuple):
    """The most probable tokens of the last step, the best first, before options change their logits.

    Attributes:
        tokens_BC: int32.
        scores_BC: float32, their log-probabilities.
    """

    tokens_BC: jax.Array
    scores_BC: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """The state of decoding. The first axis of every array is the row.

    Attributes:
        cache: the KV cache, without the last token of each beam.
        options: the decoding options of each row.
        begin_B: int32, the position of the first token that a row writes.
        given_BP: int32, the decoder's first inputs, start token and prompt; None where no option reads them.
        last_BN: int32, the last token of each beam, the decoder's next input.
        tokens_BNT: int32, the tokens that each beam has written; padding follows.
        scores_BN: float32, the log-probability of these tokens. Beams are in descending order.
        beams: the finished beams; None where N is 1.
        tops: see `Tops`; None where `shape.tops` is 0.
        done_B: bool, True for a row that has ended or was never filled.
        shape, ids: see `Shape` and `TokenIds`.
    """

    cache: Cache
    options: RowOptions
    begin_B: jax.Array
    given_BP: jax.Array | None
    last_BN: jax.Array
    tokens_BNT: jax.Array
    scores_BN: jax.Array
    beams: Beams | None
    tops: Tops | None
    done_B: jax.Array
    shape: Shape = dataclasses.field(metadata={"static": True})
    ids: TokenIds = dataclasses.field(metadata={"static": True})


class Decoded(NamedTuple):
    """The N best sequences of each row, the best one first.

    Attributes:
        tokens_BNT: int32, without the prompt; padding follows the end of the sequence.
        scores_BN: float32, log-probability over length to the power of `length_penalty`.
    """

    tokens_BNT: jax.Array
    scores_BN: jax.Array
