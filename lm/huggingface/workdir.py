"""Converts Hugging Face folders to working directories, which all other scripts accept, and back."""

import dataclasses
import json
import os

import numpy as np
from etils import epath

from lm import checkpoint
from lm.config import CheckpointConfig, Config, DataConfig, ModelConfig, ObjectiveConfig, to_json
from lm.data import tokenizer as tokenizers
from lm.data.tokenizer import Tokenizer
from lm.errors import InputError
from lm.huggingface.folder import Imported, export_folder, import_folder
from lm.huggingface.tokenizer import read_tokenizer, write_tokenizer

POOLING_FILE = "pooling.json"

# The longest input of an imported model without a smaller limit. Attention over more tokens needs much memory.
_MAX_LENGTH = 1024


def import_workdir(
    folder: str | os.PathLike[str], workdir: epath.PathLike, *, vocab_multiple: int = 1, seed: int = 0
) -> Imported:
    """Writes `config.json`, the tokenizer and `checkpoints/0`, and `pooling.json` for a sentence encoder.

    Args:
        folder, vocab_multiple, seed: see `import_folder`.
        workdir: a new working directory, local or remote.

    Returns:
        What was imported.

    Raises:
        InputError: the folder cannot be read or lacks a tokenizer, or `workdir` is in use.
    """
    workdir = epath.Path(workdir)
    if (workdir / "config.json").exists():
        raise InputError(f"{workdir} already holds a config.json; choose a new --workdir.")
    imported = import_folder(folder, vocab_multiple=vocab_multiple, seed=seed)
    tokenizer = read_tokenizer(imported.tokenizer[0].parent if imported.tokenizer else folder, imported.rows)
    model, pooling = imported.config, imported.pooling
    longest = (pooling and pooling.max_length) or min(model.max_length, _MAX_LENGTH, tokenizer.longest or _MAX_LENGTH)
    data, objective = _pretraining(model, tokenizer, longest)
    data.vocab_size = min(tokenizer.vocab_size, imported.rows)
    config = Config(seed=seed, data=data, model=model, objective=objective)
    checkpoint.write_atomically(workdir / tokenizer.file_name, tokenizer.to_bytes())
    if pooling is not None:
        checkpoint.write_atomically(workdir / POOLING_FILE, json.dumps(dataclasses.asdict(pooling)).encode())
    saved = checkpoint.Checkpoints(workdir, CheckpointConfig(asynchronous=False))
    saved.save(0, {"params": imported.params, "step": np.int32(0)})
    saved.close()
    checkpoint.write_atomically(
        workdir / "config.json", to_json(config).encode()
    )  # last: it marks the import as complete
    return imported


def export_workdir(path: str, folder: str | os.PathLike[str]) -> None:
    """Writes the model and the tokenizer of `WORKDIR` or `WORKDIR/checkpoints/N` as a Hugging Face folder.

    Raises:
        InputError: there is no such checkpoint, no family has such a model, or `folder` holds a model already.
    """
    workdir, step = checkpoint.locate(path)
    config = checkpoint.read_config(workdir)
    tokenizer = tokenizers.load_tokenizer(str(workdir))
    special = tokenizer.special
    token_ids = {
        "pad_token_id": special.pad,
        "bos_token_id": special.cls,
        "eos_token_id": special.sep,
        "cls_token_id": special.cls,
        "sep_token_id": special.sep,
    }
    if config.model.decoder_start == "sep":
        token_ids |= {"decoder_start_token_id": special.sep, "forced_eos_token_id": special.sep}
    elif config.model.decoder_depth:
        token_ids["decoder_start_token_id"] = special.pad
    token_ids = {name: index for name, index in token_ids.items() if index >= 0}
    export_folder(folder, config.model, checkpoint.load_params(workdir, step), token_ids=token_ids)
    write_tokenizer(folder, tokenizer, config)


def _pretraining(model: ModelConfig, tokenizer: Tokenizer, longest: int) -> tuple[DataConfig, ObjectiveConfig]:
    """Returns settings of pretraining that fit the model and its tokenizer."""
    if model.architecture == "encoder":
        return DataConfig(seq_length=longest), ObjectiveConfig(nsp=model.pooler)
    if tokenizer.special.num_sentinels:
        # Span corruption of 15% in spans of 3 tokens makes 114 targets for 512 inputs.
        data = DataConfig(seq_length=longest, target_length=round(longest * 114 / 512))
        return data, ObjectiveConfig(name="span_corruption")
    begins = tokenizer.special.cls >= 0 and tokenizer.frame(1).ids[0] == (tokenizer.special.cls,)
    data = DataConfig(seq_length=longest, target_length=longest, begin_with_cls=begins)
    return data, ObjectiveConfig(name="infilling", mask_rate=0.3, permute_sentences=True)
