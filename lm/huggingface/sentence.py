"""Reads and writes what sentence-transformers, versions 2 to 6, puts around a model of transformers."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lm.data.sentence_encoder import POOLINGS, SIMILARITIES, Dense, Normalize, SentenceEncoder
from lm.errors import InputError
from lm.huggingface.tensors import FLOATS, open_tensors, read_finite, read_json

MODULES_FILE = "modules.json"
_SETTINGS_FILE = "config_sentence_transformers.json"
_LIMITS_FILE = "sentence_bert_config.json"
_TYPES = "sentence_transformers.models"  # where all versions find their modules

# Up to version 5 a flag for each pooling, whose vectors are joined in this order. Later versions write the names.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {
    "identity": "torch.nn.modules.linear.Identity",
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
    "silu": "torch.nn.modules.activation.SiLU",
}
# The keys of the transformer's own file, and the values that change nothing. `...` stands for every value.
_LIMITS: dict[str, tuple[object, ...]] = {
    "max_seq_length": (...,),
    "do_lower_case": (...,),
    "unpad_inputs": (...,),
    "transformer_task": (None, "feature-extraction"),
    "modality_config": (...,),
    "module_output_name": (None, "token_embeddings"),
    "processing_kwargs": (None, {}),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
    "model_args": (None, {}),
    "tokenizer_args": (None, {}),
    "config_args": (None, {}),
}


def transformer_folder(folder: Path) -> Path:
    """Returns the folder of the transformer: a subfolder where `modules.json` says so, as old versions do.

    Raises:
        InputError: `modules.json` cannot be read.
    """
    if not (folder / MODULES_FILE).is_file():
        return folder
    return folder / next((path for kind, path in _modules(folder) if kind == "Transformer"), "")


def read_sentence_encoder(folder: Path, longest: int | None) -> SentenceEncoder | None:
    """Returns the sentence encoder of a folder; None for a folder without a `modules.json`.

    The limit in tokens has three sources. `max_seq_length` of the transformer's file decides. Without it the smaller of
    the tokenizer's `model_max_length` and the number of positions does.

    Args:
        folder: the folder.
        longest: the number of positions of the model; None where nothing limits it.

    Raises:
        InputError: a module or a setting is not supported; names it.
    """
    if not (folder / MODULES_FILE).is_file():
        return None
    modules = _modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or not {*kinds[2:]} <= {"Dense", "Normalize", "Dropout"}:
        accepted = "Transformer and Pooling, and then Dense, Normalize or Dropout"
        raise InputError(f"{MODULES_FILE} lists {', '.join(kinds)}; accepted: {accepted}.")
    pooling, include_prompt = _read_pooling(folder, f"{modules[1][1]}/config.json")
    readers = {"Dense": _read_dense, "Normalize": _read_normalize}
    steps = tuple(readers[kind](folder / path) for kind, path in modules[2:] if kind in readers)
    limits = _read_limits(transformer_folder(folder))
    settings = _object(folder, _SETTINGS_FILE) if (folder / _SETTINGS_FILE).is_file() else {}
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise InputError(f"{_SETTINGS_FILE} has prompts {prompts!r}; accepted: an object of texts.")
    prompts = {name: text for name, text in prompts.items() if text is not None}
    default = settings.get("default_prompt_name")
    if default is not None and default not in list(prompts):
        raise InputError(f"{_SETTINGS_FILE} has default_prompt_name {default!r}, which is not among its prompts.")
    similarity = settings.get("similarity_fn_name") or SIMILARITIES[0]
    if similarity not in SIMILARITIES:
        raise InputError(
            f"{_SETTINGS_FILE} has similarity_fn_name {similarity!r}; accepted: {', '.join(SIMILARITIES)}."
        )
    return SentenceEncoder(
        pooling=pooling,
        include_prompt=include_prompt,
        steps=steps,
        max_length=_max_length(transformer_folder(folder), limits.get("max_seq_length"), longest),
        lower_case=bool(limits.get("do_lower_case")),
        prompts=prompts,
        default_prompt_name=default,
        similarity=similarity,
    )


def write_sentence_encoder(folder: Path, encoder: SentenceEncoder, width: int) -> None:
    """Writes the files of a sentence encoder beside those of a model that is `width` wide."""
    modules: list[tuple[str, str]] = [("Transformer", ""), ("Pooling", "1_Pooling")]
    _write(folder / _LIMITS_FILE, {"max_seq_length": encoder.max_length, "do_lower_case": encoder.lower_case})
    flags: dict[str, object] = {flag: name in encoder.pooling for flag, name in _FLAGS.items()}
    if encoder.pooling != tuple(name for name in _FLAGS.values() if name in encoder.pooling):
        flags = {"pooling_mode": list(encoder.pooling)}  # only version 6 knows another order
    _write(
        folder / "1_Pooling/config.json",
        {"word_embedding_dimension": width, **flags, "include_prompt": encoder.include_prompt},
    )
    for number, step in enumerate(encoder.steps, start=2):
        kind = type(step).__name__
        modules.append((kind, f"{number}_{kind}"))
        (folder / modules[-1][1]).mkdir(exist_ok=True)
        if isinstance(step, Dense):
            _write_dense(folder / modules[-1][1], step)
    _write(
        folder / MODULES_FILE,
        [
            {"idx": number, "name": str(number), "path": path, "type": f"{_TYPES}.{kind}"}
            for number, (kind, path) in enumerate(modules)
        ],
    )
    _write(
        folder / _SETTINGS_FILE,
        {
            "__version__": {"sentence_transformers": "2.7.0"},  # the first that knows all of these keys
            "prompts": dict(encoder.prompts),
            "default_prompt_name": encoder.default_prompt_name,
            "similarity_fn_name": encoder.similarity,
        },
    )


def described(encoder: SentenceEncoder) -> str:
    """Returns the settings of a sentence encoder, for people to read."""
    parts = [f"pooling {' + '.join(encoder.pooling)}", *(type(step).__name__.lower() for step in encoder.steps)]
    parts += ["lower case"] if encoder.lower_case else []
    parts += [f"at most {encoder.max_length} tokens"] if encoder.max_length else []
    if encoder.prompts:
        parts.append(f"prompts {', '.join(encoder.prompts)} (default {encoder.default_prompt_name or 'none'})")
    return ", ".join([*parts, f"similarity {encoder.similarity}"])


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Returns the kind and the path of each module."""
    entries = read_json(folder, MODULES_FILE)
    if not isinstance(entries, list) or not all(
        isinstance(entry, Mapping) and isinstance(entry.get("type"), str) and isinstance(entry.get("path"), str)
        for entry in entries
    ):
        raise InputError(f"{MODULES_FILE} is no list of modules with type and path; give a sentence encoder's folder.")
    for entry in entries:
        if Path(entry["path"]).is_absolute() or ".." in Path(entry["path"]).parts:
            raise InputError(f"{MODULES_FILE} has the path {entry['path']!r}; accepted: a path inside the folder.")
    return [(entry["type"].rsplit(".", 1)[-1], entry["path"]) for entry in entries]


def _read_pooling(folder: Path, name: str) -> tuple[tuple[str, ...], bool]:
    settings = _object(folder, name)
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if settings.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(mode in POOLINGS for mode in modes):
        raise InputError(f"{name} has pooling_mode {modes!r}; accepted: {', '.join(POOLINGS)}.")
    unknown = [key for key in settings if key.startswith("pooling_mode_") and key not in _FLAGS and settings[key]]
    if unknown:
        raise InputError(f"{name} has {unknown[0]}; accepted: {', '.join(_FLAGS)}.")
    return tuple(modes), bool(settings.get("include_prompt", True))


def _read_dense(folder: Path) -> Dense:
    settings = _object(folder, "config.json")
    place = f"{folder.name}/config.json"
    activation = settings.get("activation_function", _ACTIVATIONS["tanh"])
    known = {path.rsplit(".", 1)[-1]: name for name, path in _ACTIVATIONS.items()}
    name = str(activation).rsplit(".", 1)[-1]
    if not str(activation).startswith("torch.") or name not in known:
        accepted = ", ".join(_ACTIVATIONS.values())
        raise InputError(f"{place} has activation_function {activation!r}; accepted: {accepted}.")
    _check_names(folder, settings)
    try:
        opened = open_tensors(folder)
        tensors = {key: read_finite(key, tensor) for key, tensor in opened.items() if tensor.kind in FLOATS}
    except InputError as error:
        raise InputError(f"{folder.name}: {error}") from None
    shape = (settings.get("out_features"), settings.get("in_features"))
    residual = bool(settings.get("use_residual"))
    wanted = {"linear.weight": shape}
    wanted |= {"linear.bias": shape[:1]} if settings.get("bias", True) else {}
    wanted |= {"residual.weight": shape} if residual and shape[0] != shape[1] else {}
    if (found := {key: array.shape for key, array in tensors.items()}) != wanted:
        raise InputError(f"{folder.name} holds {found}; its config.json asks for {wanted}.")
    weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
    return Dense(weight, bias, known[name], residual, tensors.get("residual.weight"))


def _write_dense(folder: Path, dense: Dense) -> None:
    outputs, inputs = dense.weight_ED.shape
    names = {"weight_ED": "linear.weight", "bias_E": "linear.bias", "residual_ED": "residual.weight"}
    settings: dict[str, object] = {"in_features": inputs, "out_features": outputs, "bias": dense.bias_E is not None}
    settings["activation_function"] = _ACTIVATIONS[dense.activation]
    _write(folder / "config.json", settings | ({"use_residual": True} if dense.is_residual else {}))
    tensors = {names[name]: np.ascontiguousarray(array) for name, array in dense.arrays.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors lets the owner alone read


def _read_normalize(folder: Path) -> Normalize:
    settings = _object(folder, "config.json") if (folder / "config.json").is_file() else {}
    _check_names(folder, settings)
    return Normalize()


def _check_names(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuses a module that reads or writes something else than the embedding of the text."""
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key) not in (None, "sentence_embedding"):
            raise InputError(f"{folder.name}/config.json has {key} {settings[key]!r}; accepted: 'sentence_embedding'.")


def _read_limits(folder: Path) -> Mapping[str, Any]:
    """Returns the transformer's own file, which old versions name after the kind of model."""
    names = [_LIMITS_FILE, *sorted(file.name for file in folder.glob("sentence_*_config.json"))]
    name = next((name for name in names if (folder / name).is_file()), None)
    settings = _object(folder, name) if name else {}
    for key, value in settings.items():
        accepted = _LIMITS.get(key, (None,))
        if ... not in accepted and value not in accepted:
            raise InputError(f"{name} has {key} {value!r}, which is not supported; accepted: {accepted[-1]!r}.")
    return settings


def _max_length(folder: Path, given: object, longest: int | None) -> int | None:
    limits = [given]
    if given is None:
        file = "tokenizer_config.json"
        limits = [_object(folder, file).get("model_max_length") if (folder / file).is_file() else None]
    limits = [limit for limit in (*limits, longest) if limit is not None]
    if not all(isinstance(limit, int | float) and not isinstance(limit, bool) and limit >= 1 for limit in limits):
        raise InputError(f"the longest text is {limits[0]!r}; accepted: a number of tokens.")
    smallest = min(limits, default=None)  # transformers writes 1e30 for a tokenizer without a limit
    return None if smallest is None or smallest > 1e9 else int(smallest)


def _object(folder: Path, name: str) -> dict[str, Any]:
    content = read_json(folder, name)
    if not isinstance(content, dict):
        raise InputError(f"{name} holds {type(content).__name__}; accepted: a JSON object.")
    return content


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
