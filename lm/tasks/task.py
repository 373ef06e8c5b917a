"""What a task is: what its rows hold, on the host, and what the model is asked about them, on the device.

The host's half is a `RowFormat` (numpy, see lm/data/batches.py). The device's half is an `Objective`. The modules of
lm.tasks import jax inside the functions of the device's half, so that a process that only reads data needs none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from lm.config import Config, DataConfig, ObjectiveConfig
from lm.data.batches import RowFormat
from lm.data.special_ids import SpecialIds

if TYPE_CHECKING:
    import jax

# Arrays of a batch by name, on the device.
Batch = Mapping[str, "jax.Array"]

# By the name of a loss and that of a quantity, such as {"mlm": {"loss": ..., "accuracy": ...}}.
Sums = dict[str, dict[str, "jax.Array"]]


class ArraySpec(NamedTuple):
    """The shape of an array of a batch, its rows left out, and its type."""

    shape: tuple[int, ...]
    dtype: type[np.generic] = np.int32


class Vocabulary(Protocol):
    """What an objective has to know of a tokenizer; see `lm.data.tokenizer.Tokenizer`."""

    special: SpecialIds
    special_ids: np.ndarray

    def starts_word(self) -> np.ndarray: ...


class UntrainedVocabulary:
    """Stands in for a tokenizer that has not been trained: its size and its special ids are all a step depends on."""

    def __init__(self, size: int):
        self.special = SpecialIds()
        self.special_ids = np.arange(self.special.first_sentinel + 1, dtype=np.int32)
        self._size = size

    def starts_word(self) -> np.ndarray:
        return np.ones(self._size, bool)


class Objective(Protocol):
    """What the model is asked about a packed batch, and the losses as sums with their weights.

    Means are taken over the global batch, so they do not depend on packing, micro-batches or the mesh.
    """

    @property
    def max_positions(self) -> int:
        """The positions of a row that reach the vocabulary projection, at most: a static count."""
        ...

    @property
    def token_losses(self) -> tuple[str, ...]:
        """The losses that predict a token of the vocabulary; these have a perplexity."""
        ...

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch with what the model is shown and asked; `key` is that of the step."""
        ...

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """How many predictions each loss is a mean over: a property of the data alone."""
        ...

    def sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        """Sums of losses and of hits over a batch or a part of one, for each of `weights`, not yet divided.

        Args:
            model: the module, its parameters merged in.
            batch: from `prepare`.
            key: dropout; None computes without.

        Returns:
            Float32 scalars; for each loss `loss`, `accuracy` and, where `loss` has other terms, `cross_entropy`.
        """
        ...

    def baseline_hits(self, batch: Batch, most_frequent: jax.Array) -> dict[str, jax.Array]:
        """How many predictions of each loss a constant answer gets right, float32 [answers].

        The baseline is the best of the answers: `most_frequent`, a token, for a loss of `token_losses`; each class for
        another.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """Both halves of a task, and what else the rest of the code asks about it.

    Attributes:
        name: what `objective.name` calls it.
        architecture: the `model.architecture` that it trains.
        row_format: makes the host's half; the last argument is the prefix of a source, int32 [any].
        shapes: the arrays of its batches, as the row format writes them.
        objective: makes the device's half.
        answers: the tasks of launch/predict.py by which a model trained so answers.
        reads: the kind of token store that it reads, `documents` or `pairs`.
    """

    name: str
    architecture: str
    row_format: Callable[[DataConfig, ObjectiveConfig, SpecialIds, np.ndarray], RowFormat]
    shapes: Callable[[Config], dict[str, ArraySpec]]
    objective: Callable[[Config, Vocabulary], Objective]
    answers: Callable[[Config], tuple[str, ...]]
    reads: str = "documents"
