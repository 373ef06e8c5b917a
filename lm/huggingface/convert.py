"""Converts settings and weights between transformers' names and ours, in memory, by the tables of the families."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig
from lm.errors import InputError
from lm.huggingface.albert import ALBERT
from lm.huggingface.bart import BART, M2M100, MARIAN, MBART, PEGASUS
from lm.huggingface.bert import BERT
from lm.huggingface.distilbert import DISTILBERT
from lm.huggingface.electra import ELECTRA
from lm.huggingface.family import Family, Fields, Setting, Settings, Weight, get, shortened, without_effect
from lm.huggingface.modernbert import MODERNBERT
from lm.huggingface.mpnet import MPNET
from lm.huggingface.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA
from lm.huggingface.t5 import MT5, T5, UMT5
from lm.huggingface.tensors import FLOATS, Tensor, read_finite
from lm.models import Model, Params, build
from lm.models.positions import sinusoids
from lm.parameters import flatten, unflatten

FAMILIES = {
    family.model_type: family
    for family in (
        *(BERT, MODERNBERT, T5, BART),
        *(ROBERTA, XLM_ROBERTA, CAMEMBERT, DISTILBERT, ELECTRA, MPNET, ALBERT),
        *(MT5, UMT5, MBART, MARIAN, PEGASUS, M2M100),
    )
}
# Model types that somebody may take for one of ours -> why it is none.
REFUSED = {
    "deberta": "its attention adds products of contents and positions, which the one Transformer here does not have",
    "deberta-v2": "its attention adds products of contents and positions, which the one Transformer here does not have",
    "xlm-roberta-xl": "it is an XLM-R with norms before its sublayers, which no table here reads",
    "led": "its encoder attends to windows and to chosen tokens, which the one Transformer here does not do",
    "longt5": "its encoder attends to blocks, which the one Transformer here does not do",
    "switch_transformers": "its layers choose among experts, which the one Transformer here does not have",
    "nllb-moe": "its layers choose among experts, which the one Transformer here does not have",
}

# The heads of lm.models.Encoder. A checkpoint may lack all tensors of a head; the body must be complete.
HEADS = ("mlm", "pooler", "nsp")


class Converted(NamedTuple):
    """A model from a checkpoint.

    Attributes:
        config: the model.
        params: float32.
        fresh: the names of the `HEADS` that the checkpoint lacks, which are initialised.
        dropped: the names of the tensors of other heads, without the names of their parts.
    """

    config: ModelConfig
    params: Params
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]


def read_config(settings: Settings) -> ModelConfig:
    """Returns the model that the content of a `config.json` describes.

    Raises:
        InputError: a setting is not supported; names it.
    """
    alone = str((get(settings, "architectures", list, []) or [""])[0]).endswith("EncoderModel")
    return _read_config(_family(settings, encoder_alone=alone), settings)


def write_config(
    config: ModelConfig, *, model_type: str | None = None, token_ids: Mapping[str, int] | None = None
) -> Fields:
    """Returns the content of a model's `config.json`.

    Args:
        config: the model.
        model_type: the family, if it has such a model; another family computes the same.
        token_ids: keys such as `pad_token_id`, in place of those that the family gives.

    Raises:
        InputError: no family has such a model; names the fields to change for the nearest family.
    """
    found = [(_obstacles(family, config), family) for family in _all_families()]
    obstacles, nearest = min(found, key=lambda each: (len(each[0]), each[1].model_type != model_type))
    if obstacles:
        reasons = "; ".join(obstacles)
        raise InputError(f"transformers has no such model; the nearest, {nearest.model_type}, needs {reasons}.")
    values = {each.theirs: each.write(getattr(config, each.ours)) for each in nearest.settings}
    pad = (token_ids or {}).get("pad_token_id", nearest.pad_token_id)
    return {
        **{"model_type": nearest.model_type, "torch_dtype": "float32", "pad_token_id": pad},
        **values,
        **nearest.required,
        **nearest.write(config, pad),
        **(token_ids or {}),
    }


def to_tensors(config: ModelConfig, params: Params, settings: Settings | None = None) -> dict[str, np.ndarray]:
    """Returns parameters, or their gradients, under transformers' names and with its shapes.

    A tied weight appears once, under the name of the embedding. A head that the family does not have is left out.

    Args:
        config: the model.
        params: in the tree of `lm.models.build(config).init`.
        settings: what `write_config` returned, if it was given more than the model.
    """
    settings = settings or write_config(config)
    family = _family(settings, encoder_alone=config.architecture == "encoder")
    flat = {path: np.asarray(array) for path, array in flatten(params).items() if _head(path) not in family.no_head}
    tensors = {}
    for weight in family.rows(settings):
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


def from_tensors(settings: Settings, tensors: Mapping[str, Tensor], *, seed: int = 0) -> Converted:
    """Returns a model from the content of `config.json` and its tensors: the inverse of `write_config`, `to_tensors`.

    Args:
        settings: the content of `config.json`.
        tensors: by the names that any version of transformers gave them.
        seed: decides the initial values of missing heads.

    Raises:
        InputError: a setting is not supported, or a tensor is missing, unexpected, of the wrong shape or not finite.
    """
    family = _family(settings)
    tensors, dropped = _canonical(family, tensors)
    if family.encoder_alone and not any(name.startswith("decoder.") for name in tensors):
        family = family.encoder_alone
    config = _read_config(family, settings)
    if max(config.num_layers, config.decoder_depth) > len(tensors) and not config.share_layers:
        raise InputError(f"config.json has {config.num_layers} layers, but the checkpoint only {len(tensors)} tensors.")
    tensors = _without_sinusoids(family, config, family.padding(settings), tensors)
    if family.tied_by_values:
        config = dataclasses.replace(config, tie_embeddings=_tied(family, tensors, config.tie_embeddings))
    tensors = _without_copies(family, tensors, config.tie_embeddings)
    model = build(config)
    shapes = {path: leaf.shape for path, leaf in flatten(jax.eval_shape(model.init, jax.random.key(0))).items()}
    rows = {
        weight: [shapes[path][1:] if weight.stacked else shapes[path] for path in weight.ours]
        for weight in family.rows(settings)
        if weight.ours[0] in shapes and weight.applies(config)
    }
    fresh = (*_check(rows, config, tensors), *family.no_head)

    kept = [path for weight in rows if weight.first_layer for path in weight.ours]
    flat = _initial(model, seed, [path for path in shapes if _head(path) in fresh] + kept)
    for weight, ours in rows.items():
        if _head(weight.ours[0]) in fresh:
            continue
        missing = Tensor(weight.shape(ours), "F32", functools.partial(np.zeros, weight.shape(ours), np.float32))
        layers = [weight.unpack(read_finite(name, tensors.get(name, missing)), ours) for name in weight.names(config)]
        for path, *arrays in zip(weight.ours, *layers, strict=True):
            first = flat[path][: weight.first_layer] if weight.first_layer else ()
            flat[path] = np.stack([*first, *arrays]) if weight.stacked else np.ascontiguousarray(arrays[0])
    return Converted(config, unflatten(flat), fresh, dropped)


def _all_families() -> list[Family]:
    return [each for family in FAMILIES.values() for each in (family, family.encoder_alone) if each]


def _family(settings: Settings, *, encoder_alone: bool = False) -> Family:
    """Returns the family of a `config.json`, or that of its encoder alone, if there is one."""
    if not isinstance(settings, dict):
        raise InputError(f"config.json holds {shortened(settings)}; accepted: an object with a model_type.")
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        why = f": {REFUSED[model_type]}" if isinstance(model_type, str) and model_type in REFUSED else ""
        raise InputError(f"config.json has model_type {shortened(model_type)}{why}; accepted: {', '.join(FAMILIES)}.")
    if settings.get("quantization_config") is not None:
        raise InputError("config.json has a quantization_config; accepted: weights that are not quantized.")
    family = FAMILIES[model_type]
    return family.encoder_alone if family.encoder_alone and encoder_alone else family


def _read_config(family: Family, settings: Settings) -> ModelConfig:
    for name, accepted in family.required.items():
        if settings.get(name) is not None and settings[name] != accepted:
            raise InputError(f"config.json has {name} {shortened(settings[name])}; accepted: {accepted!r}.")
    values: Fields = {}
    for each in family.settings:
        value = each.value(settings, getattr(family.model, each.ours))
        if values.setdefault(each.ours, value) != value:
            other = next(setting.theirs for setting in family.settings if setting.ours == each.ours)
            raise InputError(f"config.json has different {each.theirs} and {other}; accepted: one value for both.")
    config = dataclasses.replace(family.model, **values, **family.read(settings))
    config.validate()
    return config


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
    if any(each.ours == "embedding_width" for each in family.settings) and not config.embedding_width:
        changes.append(f"model.embedding_width={config.d_model} (not 0)")
    shared: dict[str, Setting] = {}
    for each in family.settings:
        other = shared.setdefault(each.theirs, each)
        if getattr(config, other.ours) != getattr(config, each.ours):
            changes.append(f"model.{other.ours} and model.{each.ours} to be equal")
    return changes


def _canonical(family: Family, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Returns the tensors under the names that transformers gives them today, and the names of heads that are dropped.

    Raises:
        InputError: a tensor of the model has a type that holds no weights.
    """
    named: dict[str, Tensor] = {}
    heads: dict[str, None] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in family.renames:
            name = re.sub(pattern, replacement, name)
        if re.search(family.ignored, name):
            continue
        if not re.search(family.body, name) or re.search(family.dropped, name):
            heads[name.rpartition(".")[0] or name] = None
        elif tensor.kind not in FLOATS:
            raise InputError(f"{name} has the type {tensor.kind}; accepted: weights of {', '.join(FLOATS)}.")
        else:
            named[name] = tensor
    return named, tuple(heads)


def _without_sinusoids(
    family: Family, config: ModelConfig, pad: int, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the tensors without tables of sinusoidal positions.

    Raises:
        InputError: the values of a table are others than those that we compute.
    """
    named = dict(tensors)
    for name in [name for name in tensors if re.search(family.sinusoids, name)]:
        rows, *_ = shape = named[name].shape
        fits = len(shape) == 2 and shape[1] == config.d_model
        if fits:
            table, positions = read_finite(name, named.pop(name)), jnp.arange(rows)
            computed = np.array(sinusoids(config, positions[None] - config.first_position))[0]
            # M2M-100 has zeros where padding is. Values that were saved in half precision differ a little.
            close = np.isclose(table, computed, atol=5e-3).all(axis=1) | ((np.arange(rows) == pad) & ~table.any(axis=1))
            fits = bool(close.all())
        if not fits:
            raise InputError(f"{name} holds other values than sinusoidal positions; accepted: positions not trained.")
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
    select = jax.jit(lambda key: {path: array for path, array in flatten(model.init(key)).items() if path in paths})
    return {path: np.array(array) for path, array in select(jax.random.key(seed)).items()} if paths else {}
