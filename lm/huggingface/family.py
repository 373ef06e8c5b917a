"""What the table of a family is made of: settings, and weights with their names and layouts."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lm.config import InputError, ModelConfig

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of `ModelConfig` and the field of `config.json` that holds it.

    Attributes:
        ours, theirs: the names.
        default: what it means when `config.json` leaves it out (transformers' own default).
        read, write: conversions where the values differ.
    """

    ours: str
    theirs: str
    default: Any
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor of a folder and the parameters that it holds.

    Attributes:
        theirs: its name, `*` for the number of the layer.
        ours: paths of parameters; several lie one after another along the tensor's first axis.
        layout: a `table` has the same shape in both; a `vector` is flattened; a `kernel` is [outputs, inputs]
            in theirs and [*inputs, *outputs] in ours.
        inputs: how many axes of our kernel are inputs.
        first_layer: the layers before it lack the tensor and keep their initial values.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Literal["table", "vector", "kernel"]
    inputs: int = 1
    first_layer: int = 0

    @property
    def stacked(self) -> bool:
        """Whether our parameters carry a leading layer axis, and theirs a number."""
        return "*" in self.theirs

    def names(self, num_layers: int) -> list[str]:
        """The tensors that this row stands for, in the order of the layers."""
        if not self.stacked:
            return [self.theirs]
        return [self.theirs.replace("*", str(layer)) for layer in range(self.first_layer, num_layers)]

    def shape(self, ours: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of the tensor, from the shapes of our parameters (of one layer)."""
        if self.layout == "table":
            return ours[0]
        if self.layout == "vector":
            return (sum(math.prod(shape) for shape in ours),)
        return sum(math.prod(shape[self.inputs :]) for shape in ours), math.prod(ours[0][: self.inputs])

    def pack(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor, from our parameters (of one layer)."""
        if self.layout == "table":
            return ours[0]
        if self.layout == "vector":
            return np.concatenate([array.reshape(-1) for array in ours])
        matrices = [array.reshape(math.prod(array.shape[: self.inputs]), -1) for array in ours]
        return np.ascontiguousarray(np.concatenate(matrices, axis=1).T)

    def unpack(self, tensor: np.ndarray, ours: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The inverse of `pack`, for equally large parameters of these shapes."""
        parts = np.split(tensor, len(ours))
        if self.layout == "kernel":
            parts = [part.T for part in parts]
        return [part.reshape(shape) for part, shape in zip(parts, ours, strict=True)]


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` of transformers is written in our terms.

    Attributes:
        model_type: as in `config.json`.
        settings: those with a counterpart; two of ours may share one of theirs and must then agree.
        fixed: fields of `ModelConfig` that every model of the family has in common.
        required: settings of theirs that we accept in one value only.
        weights: the table of tensors; a row does not apply to a model without its parameters.
        renames: patterns in the names that other versions gave to tensors, and what replaces them.
        ignored: a pattern of tensors that are no weights.
        tied: tensor -> the one that it repeats where the embeddings are tied.
        repeated: tensor -> the one that it repeats in any case.
        read, write: what of `config.json` the tables cannot say.
    """

    model_type: str
    settings: tuple[Setting, ...]
    fixed: Mapping[str, Any]
    required: Mapping[str, Any]
    weights: tuple[Weight, ...]
    renames: tuple[tuple[str, str], ...]
    ignored: str
    tied: Mapping[str, str]
    repeated: Mapping[str, str]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


def table(theirs: str, ours: str) -> tuple[Weight]:
    """The row of an embedding."""
    return (Weight(f"{theirs}.weight", (ours,), "table"),)


def linear(theirs: str, *ours: str, inputs: int = 1) -> tuple[Weight, Weight]:
    """The rows of a linear map, or of several fused into one."""
    return (
        Weight(f"{theirs}.weight", tuple(f"{path}/kernel" for path in ours), "kernel", inputs),
        Weight(f"{theirs}.bias", tuple(f"{path}/bias" for path in ours), "vector"),
    )


def norm(theirs: str, ours: str, first_layer: int = 0) -> tuple[Weight, Weight]:
    """The rows of a norm."""
    return (
        Weight(f"{theirs}.weight", (f"{ours}/scale",), "vector", first_layer=first_layer),
        Weight(f"{theirs}.bias", (f"{ours}/bias",), "vector", first_layer=first_layer),
    )


def activation(ours: str, theirs: str) -> Setting:
    """The setting of an activation, `gelu` by default."""
    return Setting(ours, theirs, "gelu", _read_activation, _write_activation)


def _read_activation(name: str) -> str:
    if name not in _ACTIVATIONS:
        raise InputError(f"config.json asks for the activation {name!r}; accepted: {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def _write_activation(name: str) -> str:
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == name)
