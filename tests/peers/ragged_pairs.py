"""The same ragged pairs twice: packed into rows of two sides for us, padded one a row for transformers."""

import dataclasses
from typing import Any

import numpy as np
import torch

from lm.config import Config, ModelConfig
from lm.tasks.seq2seq import Seq2SeqLM
from lm.tokenizers.special_ids import SpecialIds

FIRST_ORDINARY = 5


class Vocabulary:
    """What the objective asks of a tokenizer: the ids of padding and of the end, which differ between families."""

    def __init__(self, pad: int, end: int, size: int):
        self.special = SpecialIds(pad=pad, sep=end)
        self.vocab_size = size

    def starts_word(self) -> np.ndarray:
        return np.ones(self.vocab_size, bool)


def make_config(model: ModelConfig, *, rows: int, length: int, target_length: int, max_segments: int) -> Config:
    """A config for batches of these shapes, everything that is random in training turned off."""
    config = Config()
    config.model = dataclasses.replace(model, dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0)
    config.data.vocab_size = max(400, model.vocab_size)
    config.data.batch_size, config.data.max_segments = rows, max_segments
    config.data.seq_length, config.data.target_length = length, target_length
    config.objective.name = "span_corruption"
    return config


def make_objective(config: Config, special: SpecialIds) -> Seq2SeqLM:
    vocabulary: Any = Vocabulary(special.pad, special.sep, config.model.vocab_size)
    return Seq2SeqLM.create(config, vocabulary)


def random_batch(config: Config, special: SpecialIds, seed: int) -> dict[str, np.ndarray]:
    """Rows of segments of random lengths, unlike on the two sides, as `lm.data.batches` packs them."""
    rng = np.random.default_rng(seed)
    ordinary = config.model.vocab_size - FIRST_ORDINARY
    B, P = config.data.batch_size, config.data.max_segments
    batch = {}
    for tokens_name, prefix, L in (
        ("tokens", "", config.data.seq_length),
        ("targets", "target_", config.data.target_length),
    ):
        tokens_BL = np.full((B, L), special.pad, np.int32)
        segments_BL, positions_BL = np.zeros((2, B, L), np.int32)
        for row in range(B):
            start = 0
            for segment in range(P):
                size = int(rng.integers(2, L // P + 1))  # all pairs fit on both sides
                span = slice(start, start + size)
                tokens = FIRST_ORDINARY + (ordinary * rng.random(size) ** 3).astype(np.int32)  # few are frequent
                tokens[-1] = special.sep
                tokens_BL[row, span], segments_BL[row, span] = tokens, segment + 1
                positions_BL[row, span] = np.arange(size)
                start += size
        batch |= {tokens_name: tokens_BL, f"{prefix}segments": segments_BL, f"{prefix}positions": positions_BL}
    return batch


def places(segments_BL) -> list[tuple[int, np.ndarray]]:
    """Row and columns of each segment of one side, in the same order on both."""
    segments_BL = np.asarray(segments_BL)
    return [
        (row, np.flatnonzero(segments_BL[row] == number))
        for row in range(len(segments_BL))
        for number in range(1, segments_BL[row].max() + 1)
    ]


def padded(examples, special: SpecialIds, chosen: slice = slice(None)) -> dict[str, torch.Tensor]:
    """What T5 and BART for conditional generation take: the chosen pairs of a packed batch, each a row."""
    examples = {name: np.asarray(array) for name, array in examples.items()}

    def pad(name: str, segments: str, fill: int) -> torch.Tensor:
        found = places(examples[segments])[chosen]
        out = np.full((len(found), max(len(columns) for _, columns in found)), fill)
        for index, (row, columns) in enumerate(found):
            out[index, : len(columns)] = examples[name][row, columns]
        return torch.from_numpy(out)

    return {
        "input_ids": pad("tokens", "segments", special.pad),
        "attention_mask": (pad("segments", "segments", 0) > 0).long(),
        "decoder_input_ids": pad("decoder_inputs", "target_segments", special.pad),
        "decoder_attention_mask": (pad("target_segments", "target_segments", 0) > 0).long(),
        "labels": pad("targets", "target_segments", -100),
    }
