"""Converts settings and weights between transformers' names and ours, in memory, by the tables of the families."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from lm.config import ModelConfig
from lm.errors import InputError
from lm.huggingface.bart import BART
from lm.huggingface.bert import BERT
from lm.huggingface.family import Family, Fields, Setting, Settings, Weight, without_effect
from lm.huggingface.modernbert import MODERNBERT
from lm.huggingface.t5 import T5
from lm.models import Model, Params, build
from lm.sharding import path_name

FAMILIES = {family.model_type: family for family in (BERT, MODERNBERT, T5, BART)}

# The heads of lm.models.Encoder. A checkpoint may lack all tensors of a head; the body must be complete.
HEADS = ("mlm", "pooler", "nsp")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint: its shape, and a function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def read_config(settings: Settings) -> ModelConfig:
    """Returns the model that the content of a `config.json` describes.

    Raises:
        InputError: a setting is not supported; names it.
    """
    family = _family(settings)
    for name, accepted in family.required.items():
        if settings.get(name, accepted) != accepted:
            raise InputError(f"config.json has {name} {settings[name]!r}; accepted: {accepted!r}.")
    values: Fields = {}
    for each in family.settings:
        value = each.read(settings[each.theirs]) if each.theirs in settings else getattr(family.model, each.ours)
        if values.setdefault(each.ours, value) != value:
            other = next(setting.theirs for setting in family.settings if setting.ours == each.ours)
            raise InputError(f"config.json has different {each.theirs} and {other}; accepted: one value for both.")
    config = dataclasses.replace(family.model, **values, **family.read(settings))
    config.validate()
    return config


def write_config(config: ModelConfig) -> Fields:
    """Returns the content of a model's `config.json`.

    Raises:
        InputError: no family has such a model; names the fields to change for the nearest family.
    """
    obstacles = {name: _obstacles(family, config) for name, family in FAMILIES.items()}
    nearest = min(obstacles, key=lambda name: len(obstacles[name]))
    if obstacles[nearest]:
        reasons = "; ".join(obstacles[nearest])
        raise InputError(f"transformers has no such model; the nearest, {nearest}, needs {reasons}.")
    family = FAMILIES[nearest]
    values = {each.theirs: each.write(getattr(config, each.ours)) for each in family.settings}
    return {"model_type": nearest, "torch_dtype": "float32", **values, **family.required, **family.write(config)}


def to_tensors(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """Returns parameters, or their gradients, under transformers' names and with its shapes.

    A tied weight appears once, under the name of the embedding.
    """
    family = _family(write_config(config))
    flat = {path: np.asarray(array) for path, array in _flatten(params).items()}
    tensors = {}
    for weight in family.weights:
        if weight.ours[0] not in flat or not weight.applies(config):
            continue
        arrays = [flat.pop(path) for path in weight.ours]
        for layer, name in enumerate(weight.names(config), start=weight.first_layer):
            tensors[name] = weight.pack([array[layer] for array in arrays] if weight.stacked else arrays)
    if flat:
        raise KeyError(f"no row of {family.model_type}'s table holds the parameters {sorted(flat)}; add one")
    if not config.tie_embeddings:  # then transformers reads the copy
        tensors |= {copy: tensors[name] for copy, name in family.repeated.items()}
    return tensors


def from_tensors(
    settings: Settings, tensors: Mapping[str, Tensor], *, seed: int = 0
) -> tuple[ModelConfig, Params, tuple[str, ...]]:
    """Returns a model from the content of `config.json` and its tensors: the inverse of `write_config`, `to_tensors`.

    Args:
        settings: the content of `config.json`.
        tensors: by the names that any version of transformers gave them.
        seed: decides the initial values of missing heads.

    Returns:
        The config, float32 parameters, and the names of the `HEADS` that the tensors lack, which are initialised.

    Raises:
        InputError: a setting is not supported, or a tensor is missing, unexpected or has the wrong shape.
    """
    family, config = _family(settings), read_config(settings)
    tensors = _canonical(family, tensors)
    if family.tied_by_values:
        config = dataclasses.replace(config, tie_embeddings=_tied(family, tensors, config.tie_embeddings))
    tensors = _without_copies(family, tensors, config.tie_embeddings)
    model = build(config)
    shapes = {path: leaf.shape for path, leaf in _flatten(jax.eval_shape(model.init, jax.random.key(0))).items()}
    rows = {
        weight: [shapes[path][1:] if weight.stacked else shapes[path] for path in weight.ours]
        for weight in family.weights
        if weight.ours[0] in shapes and weight.applies(config)
    }
    fresh = _check(rows, config, tensors)

    kept = [path for weight in rows if weight.first_layer for path in weight.ours]
    flat = _initial(model, seed, [path for path in shapes if _head(path) in fresh] + kept)
    for weight, ours in rows.items():
        if _head(weight.ours[0]) in fresh:
            continue
        missing = Tensor(weight.shape(ours), functools.partial(np.zeros, weight.shape(ours)))
        layers = [
            weight.unpack(tensors.get(name, missing).read().astype(np.float32), ours) for name in weight.names(config)
        ]
        for path, *arrays in zip(weight.ours, *layers, strict=True):
            first = flat[path][: weight.first_layer] if weight.first_layer else ()
            flat[path] = np.stack([*first, *arrays]) if weight.stacked else np.ascontiguousarray(arrays[0])
    return config, _nest(flat), fresh


def _family(settings: Settings) -> Family:
    model_type = settings.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(f"config.json has model_type {model_type!r}; accepted: {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def _obstacles(family: Family, config: ModelConfig) -> list[str]:
    """Returns the changes that would make the config one of the family's; none if it is one."""
    free = family.variable | without_effect(config) | {"head_dim"}
    changes = [
        f"model.{name}={value!r} (not {getattr(config, name)!r})"
        for name, value in dataclasses.asdict(family.model).items()
        if name not in free and getattr(config, name) != value
    ]
    if "head_dim" not in family.variable and config.width_per_head * config.num_heads != config.d_model:
        changes.append(f"model.head_dim={config.d_model // config.num_heads} (not {config.head_dim})")
    if "token_types" in family.variable and config.token_types < 1:
        changes.append("model.token_types=1 or more (not 0)")
    shared: dict[str, Setting] = {}
    for each in family.settings:
        other = shared.setdefault(each.theirs, each)
        if getattr(config, other.ours) != getattr(config, each.ours):
            changes.append(f"model.{other.ours} and model.{each.ours} to be equal")
    return changes


def _canonical(family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors under the names that transformers gives them today."""
    named = {}
    for name, tensor in tensors.items():
        for pattern, replacement in family.renames:
            name = re.sub(pattern, replacement, name)
        if not re.search(family.ignored, name):
            named[name] = tensor
    return named


def _tied(family: Family, tensors: Mapping[str, Tensor], said_to_be: bool) -> bool:
    """Returns whether the tensors tie the vocabulary projection to the token embedding."""
    return not any(
        copy in tensors and not (said_to_be and (name not in tensors or _equal(tensors[copy], tensors[name])))
        for copy, name in family.tied.items()
    )


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and np.array_equal(left.read(), right.read())


def _without_copies(family: Family, tensors: Mapping[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """Returns the tensors without their copies, under the names in the family's table.

    Raises:
        InputError: a weight that should be tied was saved twice with different values.
    """
    named = dict(tensors)
    for copy, name in family.aliases.items():
        if copy in named and not _equal(named[copy], named.setdefault(name, named[copy])):
            raise InputError(f"{copy} differs from {name}; accepted: one token embedding for all stacks.")
        named.pop(copy, None)
    for copy, name in {**family.repeated, **(family.tied if tied else {})}.items():
        if copy not in named:
            continue
        duplicate = named.pop(copy)
        if tied and name in named:
            if not _equal(duplicate, named[name]):
                raise InputError(
                    f"{copy} differs from {name}, but config.json ties them; set tie_word_embeddings to false there."
                )
        else:
            named[name] = duplicate
    return named


def _check(
    rows: Mapping[Weight, Sequence[tuple[int, ...]]], config: ModelConfig, tensors: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Returns the heads that the tensors lack.

    Raises:
        InputError: anything else is missing, unexpected or has the wrong shape.
    """
    groups: dict[str, dict[str, tuple[int, ...]]] = {}  # head, or "" for the body -> tensor -> shape
    for weight, ours in rows.items():
        names = [name for name in weight.names(config) if name in tensors or not weight.optional]
        groups.setdefault(_head(weight.ours[0]), {}).update(dict.fromkeys(names, weight.shape(ours)))
    fresh = tuple(head for head in HEADS if head in groups and not groups[head].keys() & tensors.keys())
    needed = {name: shape for head, group in groups.items() if head not in fresh for name, shape in group.items()}
    layers = f"{config.num_layers} + {config.decoder_depth}" if config.decoder_depth else config.num_layers
    for problem, names in (
        ("lacks", needed.keys() - tensors.keys()),
        ("has the unexpected", tensors.keys() - needed.keys()),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"the checkpoint {problem} {', '.join(sorted(names)[:3])}{more}; accepted: the {layers} layers "
                "that config.json describes, with or without the heads of pretraining."
            )
    for name, shape in needed.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"{name} has shape {tuple(tensors[name].shape)}, but config.json implies {shape}.")
    return fresh


def _head(path: str) -> str:
    first = path.split("/")[0]
    return first if first in HEADS else ""


def _initial(model: Model, seed: int, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the initial values of these parameters. XLA leaves out the computation of the others."""
    select = jax.jit(lambda key: {path: array for path, array in _flatten(model.init(key)).items() if path in paths})
    return {path: np.array(array) for path, array in select(jax.random.key(seed)).items()} if paths else {}


def _flatten(params: Params) -> dict[str, jax.Array]:
    """Returns the parameters by their paths."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _nest(flat: Mapping[str, np.ndarray]) -> Params:
    nested: Params = {}
    for path, array in flat.items():
        *parents, leaf = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    return nested
