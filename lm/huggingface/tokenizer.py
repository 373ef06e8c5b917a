"""The tokenizer of a Hugging Face folder: which class it is of, and how it is written again."""

import os
from collections.abc import Mapping
from pathlib import Path

from lm.data import tokenizer_folder
from lm.data.tokenizer import Tokenizer
from lm.errors import InputError

# The class that transformers 5 registers for each model type. It reads folders that name no class.
CLASSES = {
    "albert": "AlbertTokenizer",
    "bart": "RobertaTokenizer",
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "deberta": "DebertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "m2m_100": "M2M100Tokenizer",
    "marian": "MarianTokenizer",
    "mbart": "MBartTokenizer",
    "modernbert": tokenizer_folder.GENERIC,
    "mpnet": "MPNetTokenizer",
    "mt5": "T5Tokenizer",
    "pegasus": "PegasusTokenizer",
    "roberta": "RobertaTokenizer",
    "t5": "T5Tokenizer",
    "umt5": tokenizer_folder.GENERIC,
    "xlm-roberta": "XLMRobertaTokenizer",
}


def read_tokenizer(
    folder: str | os.PathLike[str], settings: Mapping[str, object], rows: int | None = None
) -> Tokenizer:
    """Returns the tokenizer of a folder. Its ids are those of transformers' `AutoTokenizer`.

    Args:
        folder: holds the tokenizer's files.
        settings: the content of its `config.json`.
        rows: of the model's embedding table.

    Raises:
        InputError: there is no tokenizer, it cannot be read, or a setting is not supported; names it.
    """
    registered = CLASSES.get(str(settings.get("model_type")))
    try:
        return tokenizer_folder.read(Path(folder), registered, settings, rows)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
