"""Masked language model, with next-sentence prediction where `objective.nsp` is set (Devlin et al., 2019).

Array names carry their shape: B batch, L length, D model, V vocabulary, M masked positions, P segments of a row.

`MaskedLMRows` runs in processes that only read data, so the functions of `MaskedLM` import jax themselves.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lm.config import Config, DataConfig, ObjectiveConfig
from lm.data.batches import Arrays, Placement
from lm.data.examples import Examples, running_text, sentence_pairs
from lm.data.store import Split
from lm.tasks import masked_positions
from lm.tasks.masked_positions import max_masked
from lm.tasks.registry import register
from lm.tasks.rows import SOURCE, ended, write_side, write_values
from lm.tasks.task import ArraySpec, Batch, Sums, Task, Vocabulary
from lm.tokenizers.special_ids import SpecialIds, require

if TYPE_CHECKING:
    import jax

    from lm.models import Encoder


class MaskedLMRows:
    """Rows of [CLS] text [SEP], or with next-sentence prediction of [CLS] text [SEP] text [SEP].

    The arrays are int32. Those of shape [B, L]:
        `tokens`.
        `segments`: 1 to P; 0 is padding.
        `positions`: they restart at 0 in every segment.
        `token_types`: 1 in the second text of a pair and its [SEP], else 0.
    Those of shape [B, P], only with next-sentence prediction:
        `cls_positions`: the column of each pair's [CLS].
        `nsp_labels`: 0 for next, 1 for random, -1 where the row has no such pair.
    """

    def __init__(self, data: DataConfig, objective: ObjectiveConfig, special: SpecialIds, prefix: np.ndarray):
        del prefix  # a prefix goes before a source, and an encoder alone has none
        require(special, "cls", "mask", use=f"objective.name={objective.name}")
        self._data, self._nsp, self._special = data, objective.nsp, special
        self.capacities = (data.seq_length,)

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        length = self._data.seq_length
        if self._nsp:
            return sentence_pairs(split, length, self._data.short_seq_prob, rng)
        return running_text(split, length - 2, 2, rng)

    def sizes(self, examples: Examples) -> np.ndarray:
        return examples.row_lengths[:, None]

    def arrays(self, split: Split, examples: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        del keys  # `MaskedLM.prepare` masks, on the device
        total = examples.row_lengths
        text = split.read(examples.starts.ravel(), examples.lengths.ravel())
        tokens = ended(text, examples.lengths, self._special, np.array([self._special.cls]))
        num_examples, num_spans = examples.lengths.shape
        runs = examples.lengths + 1  # each span has a [SEP]
        runs[:, 0] += 1  # the first span also has the [CLS]
        types = np.repeat(np.tile(np.arange(num_spans), num_examples), runs.ravel())
        batch = write_side(SOURCE, tokens, total, place, self.capacities, self._special.pad)
        batch["token_types"] = write_values(types, total, place, self.capacities)
        if self._nsp:
            assert examples.labels is not None, "sentence pairs have labels"
            shape = (place.rows, self._data.max_segments)
            batch["cls_positions"] = np.zeros(shape, np.int32)
            batch["nsp_labels"] = np.full(shape, -1, np.int32)
            batch["cls_positions"][place.row, place.nth] = place.offsets[:, 0]
            batch["nsp_labels"][place.row, place.nth] = examples.labels
        return batch


def shapes(config: Config) -> dict[str, ArraySpec]:
    data = config.data
    found = {name: ArraySpec((data.seq_length,)) for name in (*SOURCE, "token_types")}
    if config.objective.nsp:
        found |= {name: ArraySpec((data.max_segments,)) for name in ("cls_positions", "nsp_labels")}
    return found


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Masks a batch, and computes the losses of masked tokens and, where `nsp` is set, of next sentences.

    The loss at a masked position is -log P(x_i | X~). The loss of a pair is -y log y^ - (1 - y) log(1 - y^), where y^
    is the probability of class 1 in a softmax over two classes. Each loss is a mean over its predictions. The total
    loss is their sum.

    Attributes:
        mask_rate, mask_token_rate, random_token_rate, whole_word, nsp: see `ObjectiveConfig`.
        max_segments: P.
        max_positions: M, the static number of predicted positions in a row.
        mask_id: the id of [MASK].
        special_V: bool, the ids that are never masked.
        ordinary_ids: the ids from which random tokens are drawn.
        starts_word_V: bool, the pieces that begin a word.
        vocab_size: the number of tokens. Logits from this one on get no probability. None: every logit is a token's.
    """

    mask_rate: float
    mask_token_rate: float
    random_token_rate: float
    whole_word: bool
    nsp: bool
    max_segments: int
    max_positions: int
    mask_id: int
    special_V: np.ndarray
    ordinary_ids: np.ndarray
    starts_word_V: np.ndarray
    vocab_size: int | None = None

    @classmethod
    def create(cls, config: Config, vocabulary: Vocabulary) -> MaskedLM:
        objective, data = config.objective, config.data
        special = np.zeros(vocabulary.vocab_size, bool)
        special[vocabulary.special_ids] = True
        return cls(
            mask_rate=objective.mask_rate,
            mask_token_rate=objective.mask_token_rate,
            random_token_rate=objective.random_token_rate,
            whole_word=objective.whole_word,
            nsp=objective.nsp,
            vocab_size=vocabulary.vocab_size,
            max_segments=data.max_segments,
            max_positions=max_masked(data.seq_length, data.max_segments, objective.mask_rate),
            mask_id=vocabulary.special.mask,
            special_V=special,
            ordinary_ids=np.flatnonzero(~special).astype(np.int32),
            starts_word_V=vocabulary.starts_word(),
        )

    @property
    def token_losses(self) -> tuple[str, ...]:
        return ("mlm",)

    def select(
        self, key: jax.Array, tokens_BL: jax.Array, segments_BL: jax.Array, positions_BL: jax.Array
    ) -> jax.Array:
        """Chooses the positions to predict, int32 [B, M]; see `masked_positions.choose`."""
        import jax.numpy as jnp

        special_BL = jnp.asarray(self.special_V)[tokens_BL] | (segments_BL == 0)
        starts_BL = jnp.asarray(self.starts_word_V)[tokens_BL] if self.whole_word else None
        chosen_BL = masked_positions.choose(
            key, segments_BL, positions_BL, special_BL, starts_BL, self.mask_rate, self.max_segments
        )
        return chosen_BL[:, : self.max_positions]

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Masks a packed batch: by default 80% of the chosen tokens become [MASK], 10% a random token, 10% stay.

        Args:
            batch: the arrays of `MaskedLMRows`.
            key: the random key of this step.

        Returns:
            The batch with masked `tokens`, and `masked_positions`, `labels` and `mlm_weights` [B, M].
        """
        import jax
        import jax.numpy as jnp

        from lm.sharding import constrain

        select_key, kind_key, random_key = jax.random.split(key, 3)
        tokens_BL = batch["tokens"]
        L = tokens_BL.shape[1]
        chosen_BM = self.select(select_key, tokens_BL, batch["segments"], batch["positions"])
        positions_BM = jnp.minimum(chosen_BM, L - 1)
        labels_BM = jnp.take_along_axis(tokens_BL, positions_BM, axis=1)

        kind_BM = jax.random.uniform(kind_key, chosen_BM.shape)
        draw_BM = jax.random.randint(random_key, chosen_BM.shape, 0, len(self.ordinary_ids))
        random_BM = jnp.asarray(self.ordinary_ids)[draw_BM]
        is_random_BM = kind_BM < self.mask_token_rate + self.random_token_rate
        shown_BM = jnp.where(
            kind_BM < self.mask_token_rate, self.mask_id, jnp.where(is_random_BM, random_BM, labels_BM)
        )
        # Where a row has fewer than M positions, the index is L. `mode="drop"` ignores it.
        write = jax.vmap(lambda tokens_L, at_M, shown_M: tokens_L.at[at_M].set(shown_M, mode="drop"))
        return {
            **batch,
            "tokens": constrain(write(tokens_BL, chosen_BM, shown_BM), "BL"),
            "masked_positions": constrain(positions_BM, "BM"),
            "labels": constrain(labels_BM, "BM"),
            "mlm_weights": constrain((chosen_BM < L).astype(jnp.float32), "BM"),
        }

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        weights = {"mlm": batch["mlm_weights"].sum()}
        if self.nsp:
            weights["nsp"] = (batch["nsp_labels"] >= 0).sum().astype("float32")
        return weights

    def sums(self, model: Encoder, batch: Batch, key: jax.Array | None) -> Sums:
        import jax.numpy as jnp

        from lm.tasks.losses import projected_sums, weighted_sums

        hidden_BLD = model(batch["tokens"], batch["segments"], batch["positions"], batch["token_types"], key)
        projection = model.mlm_projection(hidden_BLD, batch["masked_positions"])
        sums = {"mlm": projected_sums(projection, batch["labels"], batch["mlm_weights"], vocab_size=self.vocab_size)}
        if self.nsp:
            present_BP = (batch["nsp_labels"] >= 0).astype(jnp.float32)
            logits_BPC = model.nsp_logits(hidden_BLD, batch["cls_positions"])
            sums["nsp"] = weighted_sums(logits_BPC, jnp.maximum(batch["nsp_labels"], 0), present_BP)
        return sums

    def baseline_hits(self, batch: Batch, most_frequent: jax.Array) -> dict[str, jax.Array]:
        import jax.numpy as jnp

        hits = {"mlm": ((batch["labels"] == most_frequent) * batch["mlm_weights"]).sum()[None]}
        if self.nsp:
            hits_2 = jnp.stack([(batch["nsp_labels"] == label).sum() for label in (0, 1)])
            hits["nsp"] = hits_2.astype(jnp.float32)
        return hits


def answers(config: Config) -> tuple[str, ...]:
    return ("fill-mask", "embed", *(["next-sentence"] if config.objective.nsp else []))


register(
    Task(
        name="mlm",
        architecture="encoder",
        row_format=MaskedLMRows,
        shapes=shapes,
        objective=MaskedLM.create,
        answers=answers,
    )
)
