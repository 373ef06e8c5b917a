"""What the table of a family is made of: settings, and weights with their names and layouts."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lm.config import ModelConfig
from lm.errors import InputError

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

    Where one of ours stands for several of theirs, or the reverse, they must agree.

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
        layout: a `table` has the same shape in both; a `vector` is flattened, a `row` too, to [1, n]; a `kernel`
            is [outputs, inputs] in theirs and [*inputs, *outputs] in ours.
        inputs: how many axes of our kernel are inputs.
        first_layer: the layers before it lack the tensor and keep their initial values.
        unused_rows: rows at the top of their table that are never read; ours has none of them.
        when: a field of `ModelConfig` and the value with which the row applies; by default it always does.
        optional: where the tensor is missing, it is zero.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Literal["table", "vector", "row", "kernel"]
    inputs: int = 1
    first_layer: int = 0
    unused_rows: int = 0
    when: tuple[str, Any] | None = None
    optional: bool = False

    @property
    def stacked(self) -> bool:
        """Whether our parameters carry a leading layer axis, and theirs a number."""
        return "*" in self.theirs

    def applies(self, config: ModelConfig) -> bool:
        """Whether a model has this row, if it has the parameters."""
        return self.when is None or getattr(config, self.when[0]) == self.when[1]

    def names(self, config: ModelConfig) -> list[str]:
        """The tensors that this row stands for, in the order of the layers."""
        if not self.stacked:
            return [self.theirs]
        depth = config.decoder_depth if self.ours[0].startswith("decoder/") else config.num_layers
        return [self.theirs.replace("*", str(layer)) for layer in range(self.first_layer, depth)]

    def shape(self, ours: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of the tensor, from the shapes of our parameters (of one layer)."""
        if self.layout == "table":
            return ours[0][0] + self.unused_rows, *ours[0][1:]
        if self.layout in ("vector", "row"):
            size = sum(math.prod(shape) for shape in ours)
            return (size,) if self.layout == "vector" else (1, size)
        return sum(math.prod(shape[self.inputs :]) for shape in ours), math.prod(ours[0][: self.inputs])

    def pack(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor, from our parameters (of one layer)."""
        if self.layout == "table":
            return np.pad(ours[0], ((self.unused_rows, 0), (0, 0))) if self.unused_rows else ours[0]
        if self.layout in ("vector", "row"):
            vector = np.concatenate([array.reshape(-1) for array in ours])
            return vector if self.layout == "vector" else vector[None]
        matrices = [array.reshape(math.prod(array.shape[: self.inputs]), -1) for array in ours]
        return np.ascontiguousarray(np.concatenate(matrices, axis=1).T)

    def unpack(self, tensor: np.ndarray, ours: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The inverse of `pack`, for equally large parameters of these shapes."""
        parts = np.split(tensor[self.unused_rows :], len(ours))
        if self.layout == "kernel":
            parts = [part.T for part in parts]
        return [part.reshape(shape) for part, shape in zip(parts, ours, strict=True)]


@dataclasses.dataclass(frozen=True)
class Family:
    """How one `model_type` of transformers is written in our terms.

    Attributes:
        model_type: as in `config.json`.
        settings: those with a counterpart.
        fixed: fields of `ModelConfig` that every model of the family has in common.
        required: settings of theirs that we accept in one value only.
        weights: the table of tensors; a row does not apply to a model without its parameters.
        renames: patterns in the names that other versions gave to tensors, and what replaces them.
        ignored: a pattern of tensors that are no weights.
        tied: tensor -> the one that it repeats where the embeddings are tied.
        repeated: tensor -> the one that it repeats in any case, and stands for where they are not tied.
        aliases: tensor -> the one that it equals, saved or not; never written.
        tied_by_values: the embeddings are tied unless the tensors say otherwise, whatever `config.json` does.
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
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tied_by_values: bool = False


def table(theirs: str, ours: str, unused_rows: int = 0) -> tuple[Weight]:
    """The row of an embedding."""
    return (Weight(f"{theirs}.weight", (ours,), "table", unused_rows=unused_rows),)


def linear(theirs: str, *ours: str, inputs: int = 1, when: tuple[str, Any] | None = None) -> tuple[Weight, Weight]:
    """The rows of a linear map, or of several fused into one."""
    return (
        Weight(f"{theirs}.weight", tuple(f"{path}/kernel" for path in ours), "kernel", inputs, when=when),
        Weight(f"{theirs}.bias", tuple(f"{path}/bias" for path in ours), "vector", when=when),
    )


def norm(theirs: str, ours: str, first_layer: int = 0) -> tuple[Weight, Weight]:
    """The rows of a norm."""
    return (
        Weight(f"{theirs}.weight", (f"{ours}/scale",), "vector", first_layer=first_layer),
        Weight(f"{theirs}.bias", (f"{ours}/bias",), "vector", first_layer=first_layer),
    )


def activation(ours: str, theirs: str) -> Setting:
    """The setting of an activation, `gelu` by default."""
    return Setting(ours, theirs, "gelu", read_activation, write_activation)


def check_decoder_start(settings: Mapping[str, Any], like: str, default: int) -> None:
    """Refuses a decoder that begins with another token than the one that the setting `like` names."""
    expected = settings.get(like, default)
    if settings.get("decoder_start_token_id", expected) != expected:
        raise InputError(
            f"config.json has decoder_start_token_id {settings['decoder_start_token_id']}; accepted: {expected}, "
            f"its {like}."
        )


def read_activation(name: str) -> str:
    """Our name of an activation."""
    if name not in _ACTIVATIONS:
        raise InputError(f"config.json asks for the activation {name!r}; accepted: {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]


def write_activation(name: str) -> str:
    """The inverse of `read_activation`."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == name)
