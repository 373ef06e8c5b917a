"""Reads and writes Hugging Face folders: `config.json`, safetensors, tokenizer files, generation, sentence encoders."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lm import storage
from lm.config import ModelConfig
from lm.data.sentence_encoder import SentenceEncoder
from lm.errors import InputError
from lm.huggingface import generation, sentence
from lm.huggingface.convert import from_tensors, to_tensors, write_config
from lm.huggingface.family import Settings
from lm.huggingface.generation import Generation
from lm.huggingface.sentence import read_sentence_encoder, transformer_folder, write_sentence_encoder
from lm.huggingface.tensors import WEIGHTS_FILE, open_tensors, read_json
from lm.models import Params

CONFIG_FILE = "config.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "source.spm", "target.spm"),
    *("spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model"),
)

# The bias of padding rows of the vocabulary: a softmax gives them a probability of zero.
_NEVER = -1e4


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a Hugging Face folder holds.

    Attributes:
        config: the model.
        params: float32 NumPy arrays in the tree of `lm.models.build(config).init`.
        fresh: the heads among `mlm`, `pooler` and `nsp` that the folder lacks and that are initialised.
        rows: of the embedding table that the folder has, without padding rows.
        tokenizer: the tokenizer's files that the folder has.
        dropped: the names of tensors that we have no place for: the heads of other tasks.
        settings: the content of `config.json`.
        sentence_encoder: None if the folder was not written by sentence-transformers.
        generation: how the folder says that the model writes; None for an encoder.
    """

    config: ModelConfig
    params: Params
    fresh: tuple[str, ...]
    rows: int
    tokenizer: tuple[Path, ...]
    dropped: tuple[str, ...]
    settings: Settings
    sentence_encoder: SentenceEncoder | None = None
    generation: Generation | None = None

    @property
    def said(self) -> list[str]:
        """Lines for people: the settings that the folder brings along, and those that we do not follow."""
        lines = []
        if self.dropped:
            lines.append(f"not imported, of other tasks: {', '.join(self.dropped)}")
        if self.sentence_encoder is not None:
            lines.append(f"embeddings as the folder says: {sentence.described(self.sentence_encoder)}")
        if self.generation is not None and (settings := generation.described(self.generation.config)):
            lines.append(f"generation as the folder says: {settings}")
        if self.generation is not None and self.generation.not_done:
            lines.append(f"generation settings that are not followed: {', '.join(self.generation.not_done)}")
        return lines


def refuse_remote(folder: str | os.PathLike[str]) -> None:
    """Refuses a Hugging Face folder that is not on this machine.

    Raises:
        InputError: it is in object storage, or its path can be on no storage.
    """
    storage.check_path(os.fspath(folder))
    if storage.is_remote(os.fspath(folder)):
        raise InputError(
            f"{folder} is in object storage; accepted: a Hugging Face folder on this machine. Give a local folder, and "
            "copy it from or to there."
        )


def import_folder(folder: str | os.PathLike[str], *, vocab_multiple: int = 1, seed: int = 0) -> Imported:
    """Reads a model of a family in `FAMILIES`. An encoder may lack the heads of pretraining.

    Args:
        folder: holds `config.json`, and `model.safetensors` or `pytorch_model.bin`, or shards with their index.
        vocab_multiple: the vocabulary is padded to a multiple of this, so that a mesh can split it. The padding rows
            are zero and never predicted.
        seed: decides the initial values of missing heads.

    Raises:
        InputError: something is missing, unexpected, of the wrong shape or not supported; names it.
    """
    refuse_remote(folder)
    folder = Path(folder)
    try:
        body = transformer_folder(folder)
        settings = read_json(body, CONFIG_FILE)
        config, params, fresh, dropped = from_tensors(settings, open_tensors(body), seed=seed)
        positions = settings.get("max_position_embeddings")
        longest = config.max_length if config.has_position_table or positions else None
        encoder = read_sentence_encoder(folder, longest) if config.architecture == "encoder" else None
        writes = None if config.architecture == "encoder" else _read_generation(folder, config, settings)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    rows = config.vocab_size
    if rows % vocab_multiple:
        config = _pad_vocabulary(config, params, -config.vocab_size % vocab_multiple)
    tokenizer = tuple(body / name for name in TOKENIZER_FILES if (body / name).is_file())
    return Imported(config, params, fresh, rows, tokenizer, dropped, settings, encoder, writes)


def export_folder(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Params,
    *,
    tokenizer: Iterable[str | os.PathLike[str]] = (),
    token_ids: Mapping[str, int] | None = None,
    sentence_encoder: SentenceEncoder | None = None,
    generation_settings: Settings | None = None,
    model_type: str | None = None,
) -> None:
    """Writes a folder that transformers loads.

    Args:
        folder: a new one, or one without a `config.json`.
        config: a model of a family in `FAMILIES`.
        params: in the tree of `lm.models.build(config).init`.
        tokenizer: files to copy beside the weights.
        token_ids: keys of `config.json` such as `cls_token_id`. By default the ids are the family's own.
        model_type: the family, if it has such a model; another family computes the same.
        sentence_encoder: what sentence-transformers puts around the model; None for none.
        generation_settings: the content of `generation_config.json`; None for no such file.

    Raises:
        InputError: no family has such a model, or the folder holds a model already.
    """
    refuse_remote(folder)
    folder = Path(folder)
    settings = write_config(config, model_type=model_type, token_ids=token_ids)
    if (folder / CONFIG_FILE).exists():
        raise InputError(f"{folder} already holds a {CONFIG_FILE}; choose a new folder.")
    with storage.errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in tokenizer:
            shutil.copy(file, folder)
        save_file(to_tensors(config, params, settings), folder / WEIGHTS_FILE, metadata={"format": "pt"})
        if sentence_encoder is not None:
            write_sentence_encoder(folder, sentence_encoder, config.d_model)
        if generation_settings is not None:
            (folder / generation.FILE).write_text(json.dumps(generation_settings, indent=2) + "\n")
        (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)  # safetensors gives read access to the owner alone


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


def _read_generation(folder: Path, config: ModelConfig, settings: Settings) -> Generation:
    """Returns how the folder says that the model writes."""
    own = read_json(folder, generation.FILE) if (folder / generation.FILE).is_file() else None
    if own is not None and not isinstance(own, Mapping):
        raise InputError(f"{generation.FILE} holds {type(own).__name__}; accepted: a JSON object.")
    key, default = {"pad": ("pad_token_id", 0), "sep": ("eos_token_id", 2)}[config.decoder_start]
    start = settings.get(key, default)
    found = generation.read_generation(settings, own, start if isinstance(start, int) else default)
    named = found.config
    for name in ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"):
        if getattr(named, name) >= config.vocab_size:
            raise InputError(f"{name} is {getattr(named, name)}, but the model has {config.vocab_size} tokens.")
    return found
