"""Decoding options: of one request, and of a batch of rows as arrays.

Array names carry their shape: B rows.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from lm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The decoding options of one request.

    Attributes:
        max_length, min_length: limits of the generated tokens, including the end token.
        num_beams: the beams of beam search; 1 is greedy decoding or sampling.
        length_penalty: the score of a sequence is its log-probability over its length to this power.
        temperature: 0 takes the most probable token. Above 0, tokens are sampled from softmax(logits / temperature).
        top_k: restricts sampling to so many most probable tokens; 0 is no restriction.
        top_p: restricts sampling to the fewest tokens with this probability together; 1 is no restriction.
    """

    max_length: int = 128
    min_length: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("max_length", 1), ("min_length", 0), ("num_beams", 1), ("temperature", 0), ("top_k", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.min_length > self.max_length:
            raise InputError(f"min_length is {self.min_length}, but max_length {self.max_length}; raise max_length.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if self.num_beams > 1 and self.temperature:
            raise InputError("temperature is for sampling, num_beams for beam search; give one of them.")
        if (self.top_k or self.top_p < 1) and not self.temperature:
            raise InputError("top_k and top_p restrict sampling; give a temperature above 0, such as 1, as well.")


class RowOptions(NamedTuple):
    """The fields of `Decoding` for each row, as arrays. So a program is not compiled again for other values.

    Attributes:
        key_B2: uint32, the data of each row's random key.
    """

    max_length_B: jax.Array | np.ndarray
    min_length_B: jax.Array | np.ndarray
    length_penalty_B: jax.Array | np.ndarray
    temperature_B: jax.Array | np.ndarray
    top_k_B: jax.Array | np.ndarray
    top_p_B: jax.Array | np.ndarray
    key_B2: jax.Array | np.ndarray


def row_options(rows: Sequence[Decoding], keys_B: jax.Array) -> RowOptions:
    """Returns the options of some rows as arrays, with a random key for each row."""
    array = lambda name, dtype: np.array([getattr(row, name) for row in rows], dtype)  # noqa: E731
    return RowOptions(
        array("max_length", np.int32),
        array("min_length", np.int32),
        array("length_penalty", np.float32),
        array("temperature", np.float32),
        array("top_k", np.int32),
        array("top_p", np.float32),
        jax.random.key_data(keys_B),
    )
