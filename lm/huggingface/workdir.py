"""Converts Hugging Face folders to working directories, which all other scripts accept, and back."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from etils import epath

from lm import checkpoint, parameters, storage
from lm.config import CheckpointConfig, Config, DataConfig, GenerationConfig, ModelConfig, ObjectiveConfig, to_json
from lm.data import sentence_encoder
from lm.errors import InputError
from lm.huggingface.convert import FAMILIES
from lm.huggingface.family import Fields, Settings
from lm.huggingface.folder import CONFIG_FILE, Imported, export_folder, import_folder, refuse_remote
from lm.huggingface.generation import write_generation
from lm.huggingface.tokenizer import read_tokenizer, write_tokenizer
from lm.parameters import Params
from lm.tasks import heads
from lm.tokenizers import tokenizer as tokenizers
from lm.tokenizers.special_ids import SpecialIds, decoder_start, end_ids
from lm.tokenizers.tokenizer import Tokenizer

# The family of an imported model and the ids of its special tokens, for its export.
SOURCE_FILE = "huggingface.json"

# The longest input of an imported model without a smaller limit. Attention over more tokens needs much memory.
_MAX_LENGTH = 1024


def import_workdir(
    folder: str | os.PathLike[str], workdir: epath.PathLike, *, vocab_multiple: int = 1, seed: int = 0
) -> Imported:
    """Writes `config.json`, the tokenizer and `checkpoints/0`, and the settings of a sentence encoder.

    Args:
        folder, vocab_multiple, seed: see `import_folder`.
        workdir: a new working directory, local or remote.

    Returns:
        What was imported.

    Raises:
        InputError: the folder cannot be read or lacks a tokenizer, or `workdir` is in use.
    """
    refuse_remote(folder)
    workdir = storage.as_path(workdir)
    if not checkpoint.is_new(workdir):
        raise InputError(f"{workdir} already holds a config.json; choose a new --workdir.")
    if storage.list_keys(str(workdir / "checkpoints")):
        raise InputError(
            f"{workdir} has checkpoints but no config.json, as an interrupted import leaves it; delete it, or choose a "
            "new --workdir."
        )
    imported = import_folder(folder, vocab_multiple=vocab_multiple, seed=seed)
    tokenizer = read_tokenizer(imported.tokenizer[0].parent if imported.tokenizer else folder, imported.rows)
    model, encoder = imported.config, imported.sentence_encoder
    longest = (encoder and encoder.max_length) or min(model.max_length, _MAX_LENGTH, tokenizer.longest or _MAX_LENGTH)
    data, objective = _pretraining(model, tokenizer, longest)
    data.vocab_size = min(tokenizer.vocab_size, imported.rows)
    generation = _generation_of(imported, tokenizer.special.sep)
    config = Config(seed=seed, data=data, model=model, objective=objective, generation=generation)
    checkpoint.write_atomically(workdir / tokenizer.file_name, tokenizer.to_bytes())
    if encoder is not None:
        sentence_encoder.write(str(workdir), encoder)
    heads.write_untrained(str(workdir), imported.fresh)
    checkpoint.write_atomically(workdir / SOURCE_FILE, json.dumps(_source(imported.settings)).encode())
    saved = checkpoint.Checkpoints(workdir, CheckpointConfig(asynchronous=False))
    saved.save(0, {"params": imported.params, "step": np.int32(0)})
    saved.close()
    checkpoint.write_atomically(
        workdir / "config.json", to_json(config).encode()
    )  # last: it marks the import as complete
    return imported


def export_workdir(path: str, folder: str | os.PathLike[str]) -> list[str]:
    """Writes the model and the tokenizer of `WORKDIR` or `WORKDIR/checkpoints/N` as a Hugging Face folder.

    Returns:
        What its reader should know, a line each.

    Raises:
        InputError: there is no such checkpoint, no family has such a model, or `folder` holds a model already.
    """
    refuse_remote(folder)
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
    if config.model.decoder_depth:
        token_ids["decoder_start_token_id"] = decoder_start(config, special)
    token_ids = {name: index for name, index in token_ids.items() if index >= 0}
    (content,) = storage.read_keys(str(workdir), [SOURCE_FILE])
    source = json.loads(content) if content else {}
    model, params = config.model, checkpoint.load_params(workdir, step)
    if step or special.rows:  # rows that an import without padding had come back as they were
        model, params = _without_padding(model, params, special.rows or tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as files:
        write_tokenizer(files, tokenizer, config)
        export_folder(
            folder,
            model,
            params,
            tokenizer=sorted(Path(files).iterdir()),
            token_ids=token_ids | {name: index for name, index in source.items() if name != "model_type"},
            model_type=source.get("model_type"),
            sentence_encoder=sentence_encoder.read(str(workdir)) if config.model.architecture == "encoder" else None,
            generation_settings=_generation(config, special) if config.model.decoder_depth else None,
        )
    written = json.loads(storage.read_keys(str(folder), [CONFIG_FILE])[0] or b"{}")
    if FAMILIES[written["model_type"]].tied_by_values and not model.tie_embeddings:
        # Its configs of T5 and relatives force tie_word_embeddings to be true, so no key avoids the warning.
        return ["transformers 5 warns that it does not tie shared.weight to lm_head.weight; this model has both"]
    return []


def _generation_of(imported: Imported, end: int) -> GenerationConfig:
    """Returns how a model writes by default. `eos_token_id` is empty if a text ends with the tokenizer's end token."""
    says = imported.generation
    if says is None:
        return GenerationConfig()
    ends = [index for index in says.ends if index < imported.rows]  # the others are never written
    return dataclasses.replace(says.config, eos_token_id=[] if set(ends) <= {end} else ends)


def _generation(config: Config, special: SpecialIds) -> Fields:
    """Returns the content of `generation_config.json`: how the model writes here, by default."""
    own = config.generation
    is_imported = own.decoder_start_token_id >= 0
    as_trained = special.cls if config.data.begin_with_cls and not is_imported else -1
    ids = {
        "pad_token_id": special.pad,
        "bos_token_id": special.cls,
        "decoder_start_token_id": decoder_start(config, special),
        "forced_bos_token_id": max(own.forced_bos_token_id, as_trained),
    }
    longest = 0 if is_imported else config.data.target_length - config.data.begin_with_cls
    known: Fields = {name: index for name, index in ids.items() if index >= 0}
    end, *others = end_ids(config, special)
    return write_generation(own, {**known, "eos_token_id": [end, *others] if others else end}, longest)


def _source(settings: Settings) -> Fields:
    """Returns what an export of the model repeats of its `config.json`."""
    ids = {
        name: value for name, value in settings.items() if name.endswith("_token_id") and isinstance(value, int | list)
    }
    return {"model_type": settings["model_type"], **ids}


def _without_padding(model: ModelConfig, params: Params, pieces: int) -> tuple[ModelConfig, Params]:
    """Returns a trained model without the rows that only pad the vocabulary: elsewhere they would get probability."""
    if pieces >= model.vocab_size:
        return model, params
    axes = {"embedding/token": 0, "logits/kernel": 1, "logits/bias": 0}
    leaves = parameters.flatten(params)
    for path, leaf in leaves.items():
        for name, axis in axes.items():
            if path.endswith(name):
                leaves[path] = leaf[:pieces] if axis == 0 else leaf[:, :pieces]
    return dataclasses.replace(model, vocab_size=pieces), parameters.unflatten(leaves)


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
