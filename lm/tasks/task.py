"""The interfaces of a task: a `RowFormat` writes its rows on the host, an `Objective` computes its loss on the device.

A row format uses NumPy alone; see lm/data/batches.py. The modules of lm.tasks import jax inside the functions of an
objective, so that a process that only reads data does not need jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from lm.config import Config, DataConfig, ObjectiveConfig
from lm.data.batches import RowFormat
from lm.tokenizers.special_ids import SpecialIds

if TYPE_CHECKING:
    import jax

# Name -> array of a batch, on the device.
Batch = Mapping[str, "jax.Array"]

# Name of a loss -> name of a quantity -> its sum, such as {"mlm": {"loss": ..., "accuracy": ...}}.
Sums = dict[str, dict[str, "jax.Array"]]


class ArraySpec(NamedTuple):
    """The shape of an array in a batch, without the batch axis, and its dtype."""

    shape: tuple[int, ...]
    dtype: type[np.generic] = np.int32


class Vocabulary(Protocol):
    """The part of `lm.tokenizers.tokenizer.Tokenizer` that an objective uses."""

    special: SpecialIds
    special_ids: np.ndarray
    vocab_size: int

    def starts_word(self) -> np.ndarray: ...


class UntrainedVocabulary:
    """Stands in for a tokenizer that is not trained yet: the training step depends only on size and special ids."""

    def __init__(self, size: int):
        self.special = SpecialIds()
        self.special_ids = np.arange(self.special.first_sentinel + 1, dtype=np.int32)
        self.vocab_size = size

    def starts_word(self) -> np.ndarray:
        return np.ones(self.vocab_size, bool)


class Objective(Protocol):
    """Computes the losses of a packed batch, as sums and weights.

    A mean is the sum over the weight of the global batch, so it does not depend on packing, micro-batches or the mesh.
    """

    @property
    def max_positions(self) -> int:
        """The largest number of positions in a row that reach the vocabulary projection. It is static."""
        ...

    @property
    def token_losses(self) -> tuple[str, ...]:
        """The names of the losses that predict a token of the vocabulary. These have a perplexity."""
        ...

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Returns the batch with the model's inputs and labels. `key` is the random key of the step."""
        ...

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of predictions of each loss. It depends on the data alone."""
        ...

    def sums(self, model: Any, batch: Batch, key: jax.Array | None) -> Sums:
        """Returns the sums of each loss and of its correct predictions over a batch, not divided by `weights`.

        Args:
            model: the module with its parameters.
            batch: from `prepare`, or a micro-batch of it.
            key: the random key of dropout; None computes without dropout.

        Returns:
            Float32 scalars. Each loss has `loss`, `accuracy` and, where `loss` has more terms, `cross_entropy`.
        """
        ...

    def baseline_hits(self, batch: Batch, most_frequent: jax.Array) -> dict[str, jax.Array]:
        """Returns the number of correct predictions if every prediction were the same, float32 [answers] for each loss.

        For a loss of `token_losses` the only answer is the token `most_frequent`. For another loss every class is an
        answer. The baseline is the best answer.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """One training task.

    Attributes:
        name: the value of `objective.name`.
        architecture: the `model.architecture` that it trains.
        row_format: makes the row format; the last argument is the prefix of a source, int32 [any].
        shapes: returns the shapes and dtypes of the arrays that the row format writes.
        objective: makes the objective.
        answers: returns the tasks of launch/predict.py that a model trained on this task can do.
        reads: the kind of token store that it reads, `documents` or `pairs`.
        hides: the token that stands for hidden text in the model's input, `mask` or `sentinel`. Empty where the task
            hides nothing from a source; in a request [MASK] is then text like any other.
    """

    name: str
    architecture: str
    row_format: Callable[[DataConfig, ObjectiveConfig, SpecialIds, np.ndarray], RowFormat]
    shapes: Callable[[Config], dict[str, ArraySpec]]
    objective: Callable[[Config, Vocabulary], Objective]
    answers: Callable[[Config], tuple[str, ...]]
    reads: str = "documents"
    hides: str = ""
