"""Masked language model, with next-sentence prediction where `objective.nsp` is set (Devlin et al., 2019).

B batch, L length, D model, V vocabulary, M masked positions, P segments of a row, N examples.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lm.config import Config, DataConfig, ObjectiveConfig
from lm.data.batches import Arrays, Placement
from lm.data.examples import Examples, running_text, sentence_pairs
from lm.data.special_ids import SpecialIds, require
from lm.data.store import Split
from lm.tasks.registry import register
from lm.tasks.rows import SOURCE, ended, write_side, write_values
from lm.tasks.task import ArraySpec, Batch, Sums, Task, Vocabulary

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


def max_masked(seq_length: int, max_segments: int, mask_rate: float) -> int:
    """Returns M, an upper bound of the tokens masked in a row of up to `max_segments` segments.

    Of n tokens, at least 3, a segment masks max(1, round(rate n)), which is at most max(1, rate n + 1/2).
    """
    rounding = max_segments * max(0.5, 1 - 3 * mask_rate)
    return min(seq_length, int(mask_rate * seq_length + rounding))


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Masked language model, with next-sentence prediction where `nsp` is set (Devlin et al., 2019).

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

    @classmethod
    def create(cls, config: Config, vocabulary: Vocabulary) -> MaskedLM:
        objective, data = config.objective, config.data
        starts_word = vocabulary.starts_word()
        special = np.zeros(len(starts_word), bool)
        special[vocabulary.special_ids] = True
        return cls(
            mask_rate=objective.mask_rate,
            mask_token_rate=objective.mask_token_rate,
            random_token_rate=objective.random_token_rate,
            whole_word=objective.whole_word,
            nsp=objective.nsp,
            max_segments=data.max_segments,
            max_positions=max_masked(data.seq_length, data.max_segments, objective.mask_rate),
            mask_id=vocabulary.special.mask,
            special_V=special,
            ordinary_ids=np.flatnonzero(~special).astype(np.int32),
            starts_word_V=starts_word,
        )

    @property
    def token_losses(self) -> tuple[str, ...]:
        return ("mlm",)

    def select(
        self, key: jax.Array, tokens_BL: jax.Array, segments_BL: jax.Array, positions_BL: jax.Array
    ) -> jax.Array:
        """Chooses the positions to predict: max(1, round(rate n)) of each segment's n tokens.

        With `whole_word`, words come in random order. A word that no longer fits into that number is skipped, and the
        next ones are tried (`create_masked_lm_predictions` in create_pretraining_data.py of google-research/bert).

        Args:
            key: a random key.
            tokens_BL, segments_BL, positions_BL: from `MaskedLMRows`. Segments are contiguous and ascend in a row.

        Returns:
            int32 [B, M], ascending. Where a row has fewer than M, the rest is L.
        """
        import jax
        import jax.numpy as jnp

        B, L = tokens_BL.shape
        index_BL = jnp.broadcast_to(jnp.arange(L)[None], (B, L))
        number_BLP = segments_BL[:, :, None] == jnp.arange(self.max_segments + 1)[None, None]
        size_BP = number_BLP.sum(axis=1)
        size_BL = jnp.take_along_axis(size_BP, segments_BL, axis=1)
        quota_BL = jnp.maximum(1, jnp.round(self.mask_rate * size_BL).astype(jnp.int32))
        special_BL = jnp.asarray(self.special_V)[tokens_BL] | (segments_BL == 0)

        score_BL = jax.random.uniform(key, (B, L))
        word_size_BL = jnp.ones((B, L), jnp.int32)
        word_start_BL = index_BL
        if self.whole_word:
            starts_BL = jnp.asarray(self.starts_word_V)[tokens_BL] | special_BL | (positions_BL == 0)
            # A token after a special one begins a word even when its piece does not say so.
            starts_BL = starts_BL | jnp.pad(special_BL[:, :-1], ((0, 0), (1, 0)), constant_values=True)
            word_start_BL = jax.lax.cummax(jnp.where(starts_BL, index_BL, 0), axis=1)
            next_start_BL = jnp.where(starts_BL, index_BL, L)
            next_start_BL = jnp.pad(next_start_BL[:, 1:], ((0, 0), (0, 1)), constant_values=L)
            word_end_BL = jax.lax.cummin(next_start_BL, axis=1, reverse=True)
            word_size_BL = word_end_BL - word_start_BL
            score_BL = jnp.take_along_axis(score_BL, word_start_BL, axis=1)
        score_BL = jnp.where(special_BL, 2.0, score_BL)

        # Sorting by (segment, score) permutes tokens only within their segment. So the token at column j of the sorted
        # row has rank positions[j] in the random order of its segment.
        segment_key_BL = jnp.where(segments_BL == 0, self.max_segments + 1, segments_BL)
        operands = (segment_key_BL, score_BL, index_BL, word_size_BL, index_BL - word_start_BL, special_BL)
        _, _, index_BL, word_size_BL, offset_BL, special_BL = jax.lax.sort(operands, dimension=1, num_keys=3)
        if self.whole_word:
            chosen_BL = words_that_fit(offset_BL, word_size_BL, positions_BL, quota_BL, special_BL)
        else:
            chosen_BL = (positions_BL < quota_BL) & ~special_BL
        return jnp.sort(jnp.where(chosen_BL, index_BL, L), axis=1)[:, : self.max_positions]

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

        from lm.tasks.losses import weighted_sums

        hidden_BLD = model(batch["tokens"], batch["segments"], batch["positions"], batch["token_types"], key)
        logits_BMV = model.mlm_logits(hidden_BLD, batch["masked_positions"])
        sums = {"mlm": weighted_sums(logits_BMV, batch["labels"], batch["mlm_weights"])}
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


def words_that_fit(
    offset_BL: jax.Array, word_size_BL: jax.Array, positions_BL: jax.Array, quota_BL: jax.Array, special_BL: jax.Array
) -> jax.Array:
    """Returns which tokens belong to a chosen word, bool [B, L], where each word is chosen that still fits.

    Args:
        offset_BL, word_size_BL: the place of a token in its word, and the number of tokens of the word.
        positions_BL: 0 where a segment begins.
        quota_BL: how many tokens the words of a segment may have together.
        special_BL: tokens that are never chosen.
    """
    import jax
    import jax.numpy as jnp

    def add(carry: tuple[jax.Array, jax.Array], column: tuple[jax.Array, ...]):
        room_B, takes_B = carry
        offset_B, size_B, position_B, quota_B, special_B = column
        room_B = jnp.where(position_B == 0, quota_B, room_B)
        begins_B = offset_B == 0
        takes_B = jnp.where(begins_B, (size_B <= room_B) & ~special_B, takes_B)
        return (jnp.where(begins_B & takes_B, room_B - size_B, room_B), takes_B), takes_B

    columns = jax.tree.map(jnp.transpose, (offset_BL, word_size_BL, positions_BL, quota_BL, special_BL))
    _, chosen_LB = jax.lax.scan(add, (jnp.zeros_like(quota_BL[:, 0]), jnp.zeros_like(special_BL[:, 0])), columns)
    return chosen_LB.T


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
