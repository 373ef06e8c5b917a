"""The tokenizer of a Hugging Face folder: which class it is of, and how it is written again."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from lm.config import Config
from lm.errors import InputError
from lm.huggingface import own_tokenizer
from lm.tokenizers import folders
from lm.tokenizers.huggingface_tokenizer import HuggingFace
from lm.tokenizers.piece_tokenizer import MODELS, VOCABULARY, PieceTokenizer
from lm.tokenizers.sentencepiece_tokenizer import SentencePiece
from lm.tokenizers.settings import CONFIG, FAST, ROLES_MAP
from lm.tokenizers.special_ids import SpecialIds
from lm.tokenizers.tokenizer import Tokenizer


def read_tokenizer(folder: str | os.PathLike[str], rows: int | None = None) -> Tokenizer:
    """Returns the tokenizer of a folder. Its ids are those of transformers' `AutoTokenizer`.

    Args:
        folder: holds the tokenizer's files, and `config.json` beside them.
        rows: of the model's embedding table; a text with a larger id is refused when it comes.

    Raises:
        InputError: there is no tokenizer, it cannot be read, or a setting is not supported; names it.
    """
    try:
        return folders.read(Path(folder), rows)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def write_tokenizer(folder: str | os.PathLike[str], tokenizer: Tokenizer, config: Config) -> None:
    """Writes a tokenizer so that `AutoTokenizer` gives the ids that it gives here.

    Args:
        folder: of the export.
        tokenizer: the model's.
        config: of the run: whether the source begins with [CLS], and how long a text may be.
    """
    folder = Path(folder)
    if isinstance(tokenizer, PieceTokenizer):
        _write_pieces(folder, tokenizer)
        return
    if isinstance(tokenizer, SentencePiece) and tokenizer.special != SpecialIds():  # T5's, imported by an older version
        (folder / "spiece.model").write_bytes(tokenizer.to_bytes())
        return
    settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    if isinstance(tokenizer, HuggingFace):
        content, roles = tokenizer.tokenizer_json, tokenizer.about.roles
        longest = tokenizer.longest
        settings["clean_up_tokenization_spaces"] = tokenizer.about.clean_up
        if tokenizer.about.split_special_tokens:
            settings["split_special_tokens"] = True
    else:
        assert isinstance(tokenizer, SentencePiece)
        is_encoder, begins = config.model.architecture == "encoder", config.data.begin_with_cls
        begin = "[CLS] " if is_encoder or begins else ""
        pair = f"{begin}$A [SEP] $B:1 [SEP]:1" if is_encoder else f"{begin}$A [SEP] $B [SEP]"
        content = own_tokenizer.to_tokenizer_json(tokenizer, f"{begin}$A [SEP]", pair)
        roles, longest = own_tokenizer.ROLES, None
    if longest is None:
        longest = min(config.model.max_length, config.data.seq_length) if config.model.has_position_table else None
    if tokenizer.cuts_left:
        settings["truncation_side"] = "left"
    types = ["token_type_ids"] if config.model.token_types > 1 else []
    settings |= {"model_input_names": ["input_ids", *types, "attention_mask"], **roles}
    if longest is not None:
        settings["model_max_length"] = longest
    (folder / FAST).write_text(content, encoding="utf-8")
    _write(folder / CONFIG, settings)
    _write(folder / ROLES_MAP, roles)


def _write_pieces(folder: Path, tokenizer: PieceTokenizer) -> None:
    contents = tokenizer.contents
    for name, model in zip(MODELS[contents.class_name], tokenizer.models, strict=True):
        (folder / name).write_bytes(model)
    added = {index: {"content": content, **flags} for content, (index, flags) in contents.added.items()}
    longest = {"model_max_length": contents.longest} if contents.longest else {}
    settings: dict[str, object] = {
        "tokenizer_class": contents.class_name,
        **contents.roles,
        **contents.settings,
        **longest,
    }
    _write(folder / VOCABULARY, contents.vocabulary)
    if contents.split_special_tokens:
        settings["split_special_tokens"] = True
    _write(folder / CONFIG, settings | {"added_tokens_decoder": added})
    _write(folder / ROLES_MAP, contents.roles)


def _write(file: Path, content: Mapping[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
