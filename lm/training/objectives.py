"""What the model is asked to predict: masking on the device, and losses as sums with their weights.

An objective turns a packed batch into examples (`prepare`), says how much each of its losses weighs
(`weights`: a property of the data alone) and computes their sums (`sums`). Means are taken over the
global batch, so they do not depend on packing, micro-batches or the mesh.

Array names carry their shape: B batch, L length, D model, V vocabulary, M masked positions,
P segments of a row.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Config
from lm.data.tokenizer import Tokenizer
from lm.models import Encoder
from lm.sharding import constrain

Batch = Mapping[str, jax.Array]
Examples = dict[str, jax.Array]


def cross_entropy(logits_BNV: jax.Array, labels_BN: jax.Array) -> jax.Array:
    """-log softmax(logits)[label], float32 [B, N]."""
    logits_BNV = logits_BNV.astype(jnp.float32)
    label_BN = jnp.take_along_axis(logits_BNV, labels_BN[:, :, None], axis=-1)[:, :, 0]
    return jax.nn.logsumexp(logits_BNV, axis=-1) - label_BN


def max_masked(seq_length: int, max_segments: int, mask_rate: float) -> int:
    """M: an upper bound of the tokens masked in a row of up to `max_segments` segments.

    Each segment masks max(1, round(rate n)) of its n tokens: at most rate n + 1/2, or 1 where that is more
    (n is at least 3).
    """
    rounding = max_segments * max(0.5, 1 - 3 * mask_rate)
    return min(seq_length, int(mask_rate * seq_length + rounding))


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Masked language model, with next-sentence prediction where `nsp` is set (Devlin et al., 2019).

    L_MLM = -sum over masked positions of log P(x_i | X~), and for NSP
    L_NSP = -y log y^ - (1 - y) log(1 - y^), where y^ is the second class of a softmax over two, that is the
    sigmoid of the difference of the logits; each a mean over its own positions, and their sum.

    Attributes:
        mask_rate, mask_token_rate, random_token_rate, whole_word: see `ObjectiveConfig`.
        max_segments: P; max_positions: M, the static count of predicted positions in a row.
        mask_id: the id of [MASK].
        special_V: bool, ids never masked; ordinary_ids: what a random token is drawn from.
        starts_word_V: bool, pieces that begin a word.
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
    def create(cls, config: Config, tokenizer: Tokenizer) -> "MaskedLM":
        objective, data = config.objective, config.data
        starts_word = tokenizer.starts_word()
        special = np.zeros(len(starts_word), bool)
        special[tokenizer.special_ids] = True
        return cls(
            mask_rate=objective.mask_rate,
            mask_token_rate=objective.mask_token_rate,
            random_token_rate=objective.random_token_rate,
            whole_word=objective.whole_word,
            nsp=objective.nsp,
            max_segments=data.max_segments,
            max_positions=max_masked(data.seq_length, data.max_segments, objective.mask_rate),
            mask_id=tokenizer.special.mask,
            special_V=special,
            ordinary_ids=np.flatnonzero(~special).astype(np.int32),
            starts_word_V=starts_word,
        )

    def select(self, key: jax.Array, tokens_BL: jax.Array, segments_BL: jax.Array, positions_BL: jax.Array):
        """Chooses the positions to predict: max(1, round(rate n)) of each segment's n tokens.

        Whole words are taken in random order while they fit into that number.

        Args:
            positions_BL: restarting at 0 in each segment; segments are contiguous and ascend within a row.

        Returns:
            int32 [B, M], ascending; L where a row has fewer than M.
        """
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

        # Sorting by (segment, score) permutes tokens inside their own segment only, so slot j of the sorted
        # row has rank positions[j] in the random order of its segment.
        segment_key_BL = jnp.where(segments_BL == 0, self.max_segments + 1, segments_BL)
        operands = (segment_key_BL, score_BL, index_BL, word_size_BL, index_BL - word_start_BL, special_BL)
        _, _, index_BL, word_size_BL, offset_BL, special_BL = jax.lax.sort(operands, dimension=1, num_keys=3)
        word_end_rank_BL = positions_BL - offset_BL + word_size_BL
        chosen_BL = (word_end_rank_BL <= quota_BL) & ~special_BL
        return jnp.sort(jnp.where(chosen_BL, index_BL, L), axis=1)[:, : self.max_positions]

    def prepare(self, batch: Batch, key: jax.Array) -> Examples:
        """Masks a packed batch anew: of the chosen tokens 80% become [MASK], 10% random, 10% stay.

        Args:
            batch: `tokens`, `segments`, `positions`, `token_types` [B, L] and, for NSP, `cls_positions` and
                `nsp_labels` [B, P], as built by `lm.data.batches`.
            key: of this step.

        Returns:
            The batch with masked `tokens`, and `masked_positions`, `labels` and `mlm_weights` [B, M].
        """
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
        # Index L, where a row has fewer positions, falls outside and is dropped.
        write = jax.vmap(lambda tokens_L, at_M, shown_M: tokens_L.at[at_M].set(shown_M, mode="drop"))
        return {
            **batch,
            "tokens": constrain(write(tokens_BL, chosen_BM, shown_BM), "BL"),
            "masked_positions": constrain(positions_BM, "BM"),
            "labels": constrain(labels_BM, "BM"),
            "mlm_weights": constrain((chosen_BM < L).astype(jnp.float32), "BM"),
        }

    def weights(self, examples: Examples) -> dict[str, jax.Array]:
        """How many predictions each loss is a mean over."""
        weights = {"mlm": examples["mlm_weights"].sum()}
        if self.nsp:
            weights["nsp"] = (examples["nsp_labels"] >= 0).sum().astype(jnp.float32)
        return weights

    def sums(self, model: Encoder, examples: Examples, key: jax.Array | None) -> dict[str, dict[str, jax.Array]]:
        """Sums of losses and of hits over a batch or a part of one, for each of `weights`.

        Args:
            model: the encoder, its parameters merged in.
            examples: from `prepare`.
            key: dropout; None computes without.

        Returns:
            `{"mlm": {"loss": ..., "accuracy": ...}, "nsp": {...}}`, float32 scalars, not yet divided.
        """
        hidden_BLD = model(
            examples["tokens"], examples["segments"], examples["positions"], examples["token_types"], key
        )
        logits_BMV = model.mlm_logits(hidden_BLD, examples["masked_positions"])
        sums = {"mlm": weighted_sums(logits_BMV, examples["labels"], examples["mlm_weights"])}
        if self.nsp:
            present_BP = (examples["nsp_labels"] >= 0).astype(jnp.float32)
            logits_BPC = model.nsp_logits(hidden_BLD, examples["cls_positions"])
            sums["nsp"] = weighted_sums(logits_BPC, jnp.maximum(examples["nsp_labels"], 0), present_BP)
        return sums


def weighted_sums(logits_BNV: jax.Array, labels_BN: jax.Array, weights_BN: jax.Array) -> dict[str, jax.Array]:
    """Weighted sums of the cross-entropy and of correct predictions."""
    hits_BN = (logits_BNV.argmax(axis=-1) == labels_BN).astype(jnp.float32)
    return {
        "loss": (cross_entropy(logits_BNV, labels_BN) * weights_BN).sum(),
        "accuracy": (hits_BN * weights_BN).sum(),
    }


def total_loss(sums: dict[str, dict[str, jax.Array]], weights: dict[str, jax.Array]) -> jax.Array:
    """The sum of the mean losses; a loss without any prediction in the batch counts as zero."""
    return sum((sums[name]["loss"] / jnp.maximum(weights[name], 1.0) for name in sums), start=jnp.float32(0))


def mean_metrics(sums: dict[str, dict[str, jax.Array]], weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`{"mlm_loss": ..., "mlm_accuracy": ..., "nsp_loss": ...}` from sums and weights."""
    return {
        f"{name}_{metric}": value / jnp.maximum(weights[name], 1.0)
        for name, metrics in sums.items()
        for metric, value in metrics.items()
    }


def create(config: Config, tokenizer: Tokenizer) -> MaskedLM:
    """The objective that a config names."""
    return MaskedLM.create(config, tokenizer)
