"""The same ragged examples twice: packed into rows for us, padded one a row for transformers."""

import dataclasses
from typing import Any

import numpy as np
import torch

from lm.config import Config, ModelConfig
from lm.tasks.mlm import MaskedLM
from lm.tokenizers.special_ids import SpecialIds

SPECIAL = SpecialIds()
FIRST_ORDINARY = 5


class Vocabulary:
    """What masking asks of a tokenizer: five special ids, then ordinary ones, each a word."""

    special = SPECIAL
    special_ids = np.arange(FIRST_ORDINARY, dtype=np.int32)

    def __init__(self, size: int):
        self.vocab_size = size

    def starts_word(self) -> np.ndarray:
        return np.ones(self.vocab_size, bool)


def make_config(model: ModelConfig, *, nsp: bool, rows: int, length: int, max_segments: int) -> Config:
    """A config for batches of these shapes, everything that is random in training turned off."""
    config = Config()
    config.model = dataclasses.replace(model, dropout=0.0, attention_dropout=0.0)
    config.data.vocab_size = max(400, model.vocab_size)
    config.data.batch_size, config.data.seq_length, config.data.max_segments = rows, length, max_segments
    config.objective.nsp = nsp
    return config


def make_objective(config: Config) -> MaskedLM:
    vocabulary: Any = Vocabulary(config.model.vocab_size)
    return MaskedLM.create(config, vocabulary)


def random_batch(config: Config, seed: int) -> dict[str, np.ndarray]:
    """Rows of [CLS] a [SEP] b [SEP] segments of random lengths, as `lm.data.batches` packs them."""
    rng = np.random.default_rng(seed)
    ordinary = config.model.vocab_size - FIRST_ORDINARY
    B, L, P = config.data.batch_size, config.data.seq_length, config.data.max_segments
    batch = {name: np.zeros((B, L), np.int32) for name in ("tokens", "segments", "positions", "token_types")}
    batch["cls_positions"] = np.zeros((B, P), np.int32)
    batch["nsp_labels"] = np.full((B, P), -1, np.int32)
    for row in range(B):
        start = 0
        for segment in range(P):
            size = int(rng.integers(6, min(L, 2 * L // P) + 1))
            if start + size > L:
                break
            split = int(rng.integers(3, size - 2))
            span = slice(start, start + size)
            tokens = FIRST_ORDINARY + (ordinary * rng.random(size) ** 3).astype(np.int32)  # few are frequent
            tokens[[0, split - 1, -1]] = SPECIAL.cls, SPECIAL.sep, SPECIAL.sep
            batch["tokens"][row, span] = tokens
            batch["segments"][row, span] = segment + 1
            batch["positions"][row, span] = np.arange(size)
            batch["token_types"][row, span] = np.arange(size) >= split
            batch["cls_positions"][row, segment] = start
            batch["nsp_labels"][row, segment] = rng.integers(2)
            start += size
    return batch


def places(examples) -> list[tuple[int, np.ndarray]]:
    """Row and columns of each segment of a packed batch."""
    segments_BL = np.asarray(examples["segments"])
    found = []
    for row in range(len(segments_BL)):
        found += [(row, np.flatnonzero(segments_BL[row] == number)) for number in range(1, segments_BL[row].max() + 1)]
    return found


def padded(examples, chosen: slice = slice(None)) -> dict[str, torch.Tensor]:
    """What BertForPreTraining takes: the chosen segments of a packed batch, each a row."""
    examples = {name: np.asarray(array) for name, array in examples.items()}
    labels_BL = np.full(examples["tokens"].shape, -100)
    for row, (positions, labels, weights) in enumerate(
        zip(examples["masked_positions"], examples["labels"], examples["mlm_weights"], strict=True)
    ):
        labels_BL[row, positions[weights > 0]] = labels[weights > 0]
    segments = places(examples)[chosen]
    longest = max(len(columns) for _, columns in segments)

    def pad(array_BL: np.ndarray, fill: int) -> torch.Tensor:
        out = np.full((len(segments), longest), fill)
        for index, (row, columns) in enumerate(segments):
            out[index, : len(columns)] = array_BL[row, columns]
        return torch.from_numpy(out)

    return {
        "input_ids": pad(examples["tokens"], 0),
        "attention_mask": pad(examples["segments"] > 0, 0),
        "token_type_ids": pad(examples["token_types"], 0),
        "labels": pad(labels_BL, -100),
        "next_sentence_label": torch.from_numpy(examples["nsp_labels"][examples["nsp_labels"] >= 0][chosen]).long(),
    }


def randomise(model: torch.nn.Module, std: float = 0.1) -> None:
    """Makes every parameter random, those that start as zero or one among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(is_scale + std * torch.randn(parameter.shape, generator=generator))
