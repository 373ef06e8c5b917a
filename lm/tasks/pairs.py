"""Supervised pairs: the model reads a source and predicts its target."""

import numpy as np

from lm.config import DataConfig, ObjectiveConfig
from lm.data.batches import Arrays, Placement
from lm.data.examples import Examples, pairs
from lm.data.store import Split
from lm.errors import InputError
from lm.tasks.registry import register
from lm.tasks.rows import SOURCE, TARGET, begins, ended, source_and_target_shapes, write_side
from lm.tasks.seq2seq import Seq2SeqLM
from lm.tasks.task import Task
from lm.tokenizers.special_ids import SpecialIds


class PairRows:
    """Rows of a source and its target. Each ends in [SEP]; with `data.begin_with_cls` each begins with [CLS].

    A prefix comes before the source. The arrays are int32: `tokens`, `segments` and `positions` [B, S] for the sources,
    and `targets`, `target_segments` and `target_positions` [B, T] for the targets.
    """

    def __init__(self, data: DataConfig, objective: ObjectiveConfig, special: SpecialIds, prefix: np.ndarray):
        del objective
        self._special, self._begins = special, begins(data, special, prefix)
        self.capacities = (data.seq_length, data.target_length)
        self._added = np.array([len(begin) + 1 for begin in self._begins])
        if data.seq_length <= self._added[0]:
            raise InputError(
                f"data.seq_length={data.seq_length} holds no source after a prefix of {len(prefix)} tokens; raise it."
            )

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        del rng
        return pairs(split, tuple((np.array(self.capacities) - self._added).tolist()))

    def sizes(self, examples: Examples) -> np.ndarray:
        return examples.lengths.astype(np.int64) + self._added

    def arrays(self, split: Split, examples: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        del keys
        batch: Arrays = {}
        sizes = self.sizes(examples)
        for side, names in enumerate((SOURCE, TARGET)):
            lengths = examples.lengths[:, side].astype(np.int64)
            text = split.read(examples.starts[:, side], lengths)
            tokens = ended(text, lengths, self._special, self._begins[side])
            batch |= write_side(names, tokens, sizes[:, side], place, self.capacities, self._special.pad, side)
        return batch


register(
    Task(
        name="pairs",
        architecture="encoder-decoder",
        row_format=PairRows,
        shapes=source_and_target_shapes,
        objective=Seq2SeqLM.create,
        answers=lambda _: ("generate", "translate", "answer"),
        reads="pairs",
    )
)
