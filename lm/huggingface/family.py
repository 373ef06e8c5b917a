"""The types of a family's tables: settings, and weights with their names and layouts."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_type_hints

import numpy as np

from lm.config import ModelConfig
from lm.errors import InputError

# The types of values in a `config.json`.
Kind: TypeAlias = type[int] | type[float] | type[str] | type[bool] | type[list] | type[dict]
# The content of a `config.json`.
Settings: TypeAlias = Mapping[str, Any]
# Fields of `ModelConfig` and their values.
Fields: TypeAlias = dict[str, object]

_LARGEST = 2**31 - 1  # no size of a model is larger
_FIELD_KINDS = get_type_hints(ModelConfig)
_KIND_NAMES = {
    int: f"a whole number from 0 to {_LARGEST}",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}

# Transformers' name of an activation -> ours. Where two of their names have the same meaning, we write the first.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    **{"gelu_python": "gelu", "gelu_python_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh"},
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of `ModelConfig` and the key of `config.json` that holds it.

    A field may be in several keys, and a key may hold several fields. Their values must then be equal.

    Attributes:
        ours: the name of the field.
        theirs: the name of the key. A missing key, or null, means the default of the family.
        kind: the type of the key's value; None for the type of the field.
        read: converts the value of the key to that of the field.
        write: converts the value of the field to that of the key.
    """

    ours: str
    theirs: str
    kind: Kind | None = None
    read: Callable[..., object] = lambda value: value
    write: Callable[..., object] = lambda value: value

    def value(self, settings: Settings, default: object) -> object:
        """Returns the value of the field.

        Raises:
            InputError: the key has a value of another type.
        """
        kind = self.kind or _FIELD_KINDS[self.ours]
        found = get(settings, self.theirs, kind, None)
        return default if found is None else self.read(found)


@dataclasses.dataclass(frozen=True)
class Weight:
    """A tensor of a folder, and the parameters that it holds: one row of a family's table.

    Attributes:
        theirs: the tensor's name, with `*` for the number of the layer.
        ours: the paths of the parameters. Several are concatenated along the tensor's first axis.
        layout: `table`: both have the same shape. `vector`: theirs is flat. `row`: theirs is flat, with the shape
            [1, n]. `kernel`: theirs is [outputs, inputs], ours [*inputs, *outputs].
        inputs: the number of input axes of our kernel.
        first_layer: the first layer that has the tensor. Earlier layers keep their initial values.
        unused_rows: the number of rows at the top of their table that are never read. Our table lacks them.
        after_padding: whether the unused rows are those up to `pad_token_id`: positions begin after it.
        when: a field of `ModelConfig` and the value with which the row applies; None means always.
        optional: whether the tensor may be missing; its parameters are then zero.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Literal["table", "vector", "row", "kernel"]
    inputs: int = 1
    first_layer: int = 0
    unused_rows: int = 0
    after_padding: bool = False
    when: tuple[str, object] | None = None
    optional: bool = False

    @property
    def stacked(self) -> bool:
        """Whether there is a tensor for each layer. Our parameters then have a leading layer axis."""
        return "*" in self.theirs

    def applies(self, config: ModelConfig) -> bool:
        """Returns whether the row applies to a model that has its parameters."""
        return self.when is None or getattr(config, self.when[0]) == self.when[1]

    def names(self, config: ModelConfig) -> list[str]:
        """Returns the names of the row's tensors, in the order of the layers."""
        if not self.stacked:
            return [self.theirs]
        depth = config.decoder_depth if self.ours[0].startswith("decoder/") else config.num_layers
        depth = 1 if config.share_layers else depth
        return [self.theirs.replace("*", str(layer)) for layer in range(self.first_layer, depth)]

    def shape(self, ours: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Returns the shape of a tensor, given the shapes of our parameters for one layer."""
        if self.layout == "table":
            return ours[0][0] + self.unused_rows, *ours[0][1:]
        if self.layout in ("vector", "row"):
            size = sum(math.prod(shape) for shape in ours)
            return (size,) if self.layout == "vector" else (1, size)
        return sum(math.prod(shape[self.inputs :]) for shape in ours), math.prod(ours[0][: self.inputs])

    def pack(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Returns a tensor, given our parameters for one layer."""
        if self.layout == "table":
            return np.pad(ours[0], ((self.unused_rows, 0), (0, 0))) if self.unused_rows else ours[0]
        if self.layout in ("vector", "row"):
            vector = np.concatenate([array.reshape(-1) for array in ours])
            return vector if self.layout == "vector" else vector[None]
        matrices = [array.reshape(math.prod(array.shape[: self.inputs]), -1) for array in ours]
        return np.ascontiguousarray(np.concatenate(matrices, axis=1).T)

    def unpack(self, tensor: np.ndarray, ours: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Returns the parameters that a tensor holds: the inverse of `pack`. All have the same number of elements."""
        parts = np.split(tensor[self.unused_rows :], len(ours))
        if self.layout == "kernel":
            parts = [part.T for part in parts]
        return [part.reshape(shape) for part, shape in zip(parts, ours, strict=True)]


@dataclasses.dataclass(frozen=True)
class Family:
    """How we read and write one `model_type` of transformers.

    Attributes:
        model_type: the value in `config.json`.
        model: the model that an empty `config.json` of this type describes. Fields that neither `settings` nor `read`
            gives have these values in every model of the family.
        settings: the fields that a key of `config.json` holds.
        required: the keys of `config.json` that we accept with one value only, and that value.
        weights: the table of tensors. A row does not apply to a model that lacks its parameters.
        renames: patterns in the names that other versions give to tensors, and their replacements.
        ignored: matches the names of tensors that are not weights.
        sinusoids: matches the names of tables of sinusoidal positions, which we compute: theirs must be equal.
        tied: copy -> original, for tensors that equal another one if the embeddings are tied.
        repeated: copy -> original, for tensors that always equal another one. If the embeddings are not tied,
            transformers reads the copy.
        read: returns the fields that the table of settings cannot express.
        write: returns the keys of `config.json` that the table of settings cannot express, given the model and the
            `pad_token_id`.
        body: matches the names of the tensors that belong to the model. All others belong to heads that we do not have:
            we drop and name them.
        dropped: matches the names of tensors of the body that we drop and name, such as a pooler without a task.
        pad_token_id: where `config.json` does not say it.
        no_head: the heads of ours that no tensor of the family holds. They are not written, and new when read.
        encoder_alone: the family of the folders that hold the encoder without its decoder.
        aliases: copy -> original, for tensors that equal another one. We read them and never write them.
        tied_by_values: whether the tensors, not `config.json`, decide if the embeddings are tied.
    """

    model_type: str
    model: ModelConfig
    settings: tuple[Setting, ...]
    required: Mapping[str, object]
    weights: tuple[Weight, ...]
    renames: tuple[tuple[str, str], ...]
    ignored: str
    tied: Mapping[str, str]
    repeated: Mapping[str, str]
    read: Callable[[Settings], Fields]
    write: Callable[[ModelConfig, int], Fields]
    body: str
    sinusoids: str = r"(?!)"
    dropped: str = r"(?!)"
    pad_token_id: int = 0
    no_head: tuple[str, ...] = ()
    encoder_alone: "Family | None" = None
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tied_by_values: bool = False

    @property
    def variable(self) -> set[str]:
        """The fields of `ModelConfig` in which the models of the family differ."""
        return {each.ours for each in self.settings} | self.read({}).keys()

    def padding(self, settings: Settings) -> int:
        """Returns the `pad_token_id` of a `config.json`."""
        return get(settings, "pad_token_id", int, self.pad_token_id)

    def rows(self, settings: Settings) -> tuple[Weight, ...]:
        """Returns the table of tensors of a model with this `config.json`."""
        unused = self.padding(settings) + 1
        return tuple(
            dataclasses.replace(weight, unused_rows=unused) if weight.after_padding else weight
            for weight in self.weights
        )


def without_effect(config: ModelConfig) -> set[str]:
    """Returns the fields that do not change what a model with trained weights computes, given its other fields."""
    fields = {"init", "init_std", "relative_init"}
    if config.norm != "layernorm":
        fields |= {"norm_bias"}
    if not config.has_position_table:
        fields |= {"max_length"}
    if not config.position.startswith("sinusoidal"):
        fields |= {"first_position"}
    if not config.has_relative_bias:
        fields |= {"relative_buckets", "relative_max_distance", "relative_shared"}
    if config.position != "rotary":
        fields |= {"rope_theta", "rope_theta_local"}
    if config.global_every == 1:
        fields |= {"window", "rope_theta_local"}
    if config.dropout == 0:
        fields |= {"final_dropout"}
    if config.architecture == "encoder":
        return fields | {"decoder_start", "num_decoder_layers"}
    return fields | {"head_bias", "head_activation", "pooler"}


def table(theirs: str, ours: str, *, unused_rows: int = 0, after_padding: bool = False) -> tuple[Weight]:
    """Returns the row of an embedding."""
    return (Weight(f"{theirs}.weight", (ours,), "table", unused_rows=unused_rows, after_padding=after_padding),)


def linear(theirs: str, *ours: str, inputs: int = 1, when: tuple[str, object] | None = None) -> tuple[Weight, Weight]:
    """Returns the rows of a linear map, or of several that transformers fuses into one."""
    return (
        Weight(f"{theirs}.weight", tuple(f"{path}/kernel" for path in ours), "kernel", inputs, when=when),
        Weight(f"{theirs}.bias", tuple(f"{path}/bias" for path in ours), "vector", when=when),
    )


def norm(theirs: str, ours: str, first_layer: int = 0) -> tuple[Weight, Weight]:
    """Returns the rows of a norm."""
    return (
        Weight(f"{theirs}.weight", (f"{ours}/scale",), "vector", first_layer=first_layer),
        Weight(f"{theirs}.bias", (f"{ours}/bias",), "vector", first_layer=first_layer),
    )


def activation(ours: str, theirs: str) -> Setting:
    """Returns the setting of an activation."""
    return Setting(ours, theirs, str, functools.partial(read_activation, key=theirs), write_activation)


def rate(ours: str, theirs: str) -> Setting:
    """Returns the setting of a dropout rate."""
    return Setting(ours, theirs, float, float)


def get(settings: Settings, key: str, kind: Kind, default: Any) -> Any:
    """Returns the value of a key of `config.json`. A missing key, or null, means the default.

    Raises:
        InputError: the value is not of this type, or a number that no model has.
    """
    value = settings.get(key)
    if value is None:
        return default
    if kind in (int, float):
        numbers = (int, float) if kind is float else int
        fits = isinstance(value, numbers) and not isinstance(value, bool) and abs(value) <= _LARGEST
        fits = fits and (kind is float or value >= 0)
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise InputError(f"config.json has {key} {shortened(value)}; accepted: {_KIND_NAMES[kind]}.")
    return value


def shortened(value: object) -> str:
    """Returns a value for a message, in one line."""
    written = repr(value)
    return written if len(written) <= 80 else f"{written[:77]}..."


def read_activation(name: str, key: str) -> str:
    """Returns our name of an activation, which `config.json` has in a key."""
    if name not in _ACTIVATIONS:
        accepted = ", ".join(_ACTIVATIONS)
        raise InputError(f"config.json has {key} with the activation {shortened(name)}; accepted: {accepted}.")
    return _ACTIVATIONS[name]


def write_activation(name: str) -> str:
    """Returns transformers' name of an activation: the inverse of `read_activation`."""
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == name)
