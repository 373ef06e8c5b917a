"""Reads and writes Hugging Face folders: `config.json`, safetensors, tokenizer files and sentence pooling."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lm.config import ModelConfig
from lm.errors import InputError
from lm.huggingface.convert import Tensor, from_tensors, to_tensors, write_config
from lm.models import Params

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "source.spm", "target.spm"),
    *("spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model"),
)

_LIMITS_FILE = "sentence_bert_config.json"

# The bias of padding rows of the vocabulary: a softmax gives them a probability of zero.
_NEVER = -1e4


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How a sentence-transformers model turns the vectors of a sentence's tokens into one vector.

    Attributes:
        mode: `mean` takes the mean of the vectors, `cls` the first one.
        normalize: whether the vector is scaled to length one.
        max_length: the longest text in tokens, including special tokens. Longer texts are cut. None means no limit.
    """

    mode: Literal["mean", "cls"]
    normalize: bool
    max_length: int | None = None


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a Hugging Face folder holds.

    Attributes:
        config: the model.
        params: float32 NumPy arrays in the tree of `lm.models.build(config).init`.
        fresh: the heads among `mlm`, `pooler` and `nsp` that the folder lacks and that are initialised.
        rows: of the embedding table that the folder has, without padding rows.
        tokenizer: the tokenizer's files that the folder has.
        pooling: None if the folder was not written by sentence-transformers.
    """

    config: ModelConfig
    params: Params
    fresh: tuple[str, ...]
    rows: int
    tokenizer: tuple[Path, ...]
    pooling: Pooling | None


def import_folder(folder: str | os.PathLike[str], *, vocab_multiple: int = 1, seed: int = 0) -> Imported:
    """Reads a model of a family in `FAMILIES`. An encoder may lack the heads of pretraining.

    Args:
        folder: holds `config.json`, and `model.safetensors` or its shards with their index.
        vocab_multiple: the vocabulary is padded to a multiple of this, so that a mesh can split it. The padding rows
            are zero and never predicted.
        seed: decides the initial values of missing heads.

    Raises:
        InputError: something is missing, unexpected, of the wrong shape or not supported; names it.
    """
    folder = Path(folder)
    try:
        config, params, fresh = from_tensors(_read_json(folder, CONFIG_FILE), _open_tensors(folder), seed=seed)
        pooling = _read_pooling(folder)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    rows = config.vocab_size
    if rows % vocab_multiple:
        config = _pad_vocabulary(config, params, -config.vocab_size % vocab_multiple)
    tokenizer = tuple(folder / name for name in TOKENIZER_FILES if (folder / name).is_file())
    return Imported(config, params, fresh, rows, tokenizer, pooling)


def export_folder(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Params,
    *,
    tokenizer: Iterable[str | os.PathLike[str]] = (),
    token_ids: Mapping[str, int] | None = None,
) -> None:
    """Writes a folder that transformers loads.

    Args:
        folder: a new one, or one without a `config.json`.
        config: a model of a family in `FAMILIES`.
        params: in the tree of `lm.models.build(config).init`.
        tokenizer: files to copy beside the weights.
        token_ids: more keys of `config.json`, such as `cls_token_id`. By default the ids are those that the family's
            `write` gives, and `pad_token_id` is 0 if it gives none.

    Raises:
        InputError: no family has such a model, or the folder holds a model already.
    """
    folder = Path(folder)
    settings = {"pad_token_id": 0, **write_config(config), **(token_ids or {})}
    if (folder / CONFIG_FILE).exists():
        raise InputError(f"{folder} already holds a {CONFIG_FILE}; choose a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for file in tokenizer:
        shutil.copy(file, folder)
    save_file(to_tensors(config, params), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)  # safetensors gives read access to the owner alone


def _open_tensors(folder: Path) -> dict[str, Tensor]:
    """Returns the tensors of all shards without reading them."""
    tensors = {}
    for file in _weight_files(folder):
        try:
            handle = safe_open(folder / file, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} cannot be read as safetensors: {error}.") from None
        for name in handle.keys():  # noqa: SIM118 - the handle is not a mapping
            read = lambda handle=handle, name=name: handle.get_tensor(name)  # noqa: E731
            tensors[name] = Tensor(tuple(handle.get_slice(name).get_shape()), read)
    return tensors


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS_FILE).is_file():
        return [WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        return sorted(set(_read_json(folder, INDEX_FILE)["weight_map"].values()))
    if list(folder.glob("pytorch_model*.bin")):
        raise InputError(
            f"there is only pytorch_model.bin; convert it to {WEIGHTS_FILE} "
            "(with from_pretrained and then save_pretrained of transformers)."
        )
    raise InputError(f"there is neither {WEIGHTS_FILE} nor {INDEX_FILE}; give a folder saved by transformers.")


def _pad_vocabulary(config: ModelConfig, params: Params, rows: int) -> ModelConfig:
    """Adds rows to the parameters in place, and returns the config with the larger vocabulary.

    Raises:
        InputError: the logits have no bias that could keep the new rows from being predicted.
    """
    if not config.logits_bias:
        raise InputError(
            f"the vocabulary of {config.vocab_size} cannot be padded, because the model's logits have no bias; "
            "accepted: a --vocab_multiple that divides it."
        )
    embedding = params["encoder"]["embedding"]
    embedding["token"] = np.pad(embedding["token"], ((0, rows), (0, 0)))
    logits = params.get("mlm", params)["logits"]
    logits["bias"] = np.pad(logits["bias"], (0, rows), constant_values=_NEVER)
    if "kernel" in logits:
        logits["kernel"] = np.pad(logits["kernel"], ((0, 0), (0, rows)))
    return dataclasses.replace(config, vocab_size=config.vocab_size + rows)


def _read_pooling(folder: Path) -> Pooling | None:
    """Returns the pooling of a sentence-transformers folder; None for another folder.

    Up to version 5 the file has a flag for each mode. Later versions write the name of the mode.
    """
    if not (folder / "modules.json").is_file():
        return None
    modules = {str(entry["type"]).rsplit(".", 1)[-1]: entry["path"] for entry in _read_json(folder, "modules.json")}
    if not {"Transformer", "Pooling"} <= modules.keys() <= {"Transformer", "Pooling", "Normalize"}:
        given = ", ".join(modules)
        raise InputError(f"modules.json lists {given}; accepted: Transformer and Pooling, with or without Normalize.")
    pooling = _read_json(folder, f"{modules['Pooling']}/{CONFIG_FILE}")
    flags = [name for name, value in pooling.items() if name.startswith("pooling_mode_") and value]
    modes = pooling.get("pooling_mode", flags)
    limits = _read_json(folder, _LIMITS_FILE) if (folder / _LIMITS_FILE).is_file() else {}
    rest = ("Normalize" in modules, limits.get("max_seq_length"))
    match [modes] if isinstance(modes, str) else modes:
        case ["mean" | "pooling_mode_mean_tokens"]:
            return Pooling("mean", *rest)
        case ["cls" | "pooling_mode_cls_token"]:
            return Pooling("cls", *rest)
    raise InputError(f"the sentence vector is pooled by {modes}; accepted: mean or cls.")


def _read_json(folder: Path, name: str) -> Any:  # an object, or the list in modules.json
    try:
        return json.loads((folder / name).read_text())
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; give a folder saved by transformers.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read as JSON: {error}.") from None
