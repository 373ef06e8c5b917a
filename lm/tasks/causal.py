"""Causal language model: a decoder predicts running text from left to right (Radford et al., 2019)."""

import numpy as np

from lm.config import Config, DataConfig, ObjectiveConfig
from lm.data.batches import Arrays, Placement
from lm.data.examples import Examples, running_text
from lm.data.store import Split
from lm.tasks.registry import register
from lm.tasks.rows import TARGET, ended, write_side
from lm.tasks.seq2seq import Seq2SeqLM
from lm.tasks.task import ArraySpec, Task
from lm.tokenizers.special_ids import SpecialIds


class CausalRows:
    """Running text and [SEP]: `targets`, `target_segments` and `target_positions`, int32 [B, L]."""

    def __init__(self, data: DataConfig, objective: ObjectiveConfig, special: SpecialIds, prefix: np.ndarray):
        del objective, prefix  # a prefix goes before a source, and a decoder has none
        self._special = special
        self.capacities = (data.seq_length,)

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        return running_text(split, self.capacities[0] - 1, 1, rng)

    def sizes(self, examples: Examples) -> np.ndarray:
        return examples.lengths.astype(np.int64) + 1

    def arrays(self, split: Split, examples: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        del keys
        lengths = examples.lengths[:, 0].astype(np.int64)
        text = split.read(examples.starts[:, 0], lengths)
        tokens = ended(text, lengths, self._special, np.zeros(0, np.int32))
        return write_side(TARGET, tokens, lengths + 1, place, self.capacities, self._special.pad)


def shapes(config: Config) -> dict[str, ArraySpec]:
    return {name: ArraySpec((config.data.seq_length,)) for name in TARGET}


register(
    Task(
        name="causal_lm",
        architecture="decoder",
        row_format=CausalRows,
        shapes=shapes,
        objective=Seq2SeqLM.create,
        answers=lambda _: ("generate",),
    )
)
