"""What the model is asked to predict: masking on the device, and losses as sums with their weights.

An objective turns a packed batch into examples (`prepare`), says how much each of its losses weighs
(`weights`: a property of the data alone) and computes their sums (`sums`). Means are taken over the
global batch, so they do not depend on packing, micro-batches or the mesh.

Array names carry their shape: B batch, L length, S source length, T target length, D model, V vocabulary,
M masked positions, N any of these, P segments of a row.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Config
from lm.data.tokenizer import Tokenizer
from lm.models import Encoder, Seq2Seq
from lm.ops.vocabulary import argmax
from lm.sharding import constrain

Batch = Mapping[str, jax.Array]
Examples = dict[str, jax.Array]


class Objective(Protocol):
    """See the module's docstring.

    Attributes:
        max_positions: predictions in a row at most, a static count.
    """

    @property
    def max_positions(self) -> int: ...

    def prepare(self, batch: Batch, key: jax.Array) -> Examples:
        """What the model is shown and asked, from a packed batch; `key` is that of the step."""
        ...

    def weights(self, examples: Examples) -> dict[str, jax.Array]:
        """How many predictions each loss is a mean over."""
        ...

    def sums(self, model: Any, examples: Examples, key: jax.Array | None) -> dict[str, dict[str, jax.Array]]:
        """Sums of losses and of hits over a batch or a part of one, for each of `weights`, not yet divided.

        Args:
            model: the module, its parameters merged in.
            examples: from `prepare`.
            key: dropout; None computes without.

        Returns:
            `{"mlm": {"loss": ..., "accuracy": ...}, ...}`, float32 scalars.
        """
        ...

    def baseline_hits(self, examples: Examples, most_frequent: jax.Array) -> dict[str, jax.Array]:
        """How many predictions of each kind the same answer every time gets right: that token, or class 1."""
        ...


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
        weights = {"mlm": examples["mlm_weights"].sum()}
        if self.nsp:
            weights["nsp"] = (examples["nsp_labels"] >= 0).sum().astype(jnp.float32)
        return weights

    def sums(self, model: Encoder, examples: Examples, key: jax.Array | None) -> dict[str, dict[str, jax.Array]]:
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

    def baseline_hits(self, examples: Examples, most_frequent: jax.Array) -> dict[str, jax.Array]:
        hits = {"mlm": ((examples["labels"] == most_frequent) * examples["mlm_weights"]).sum()}
        if self.nsp:
            hits["nsp"] = (examples["nsp_labels"] == 1).sum().astype(jnp.float32)
        return hits


@dataclasses.dataclass(frozen=True)
class Seq2SeqLM:
    """L_Seq2Seq = -sum over t of log P(y_t | y_<t, X): a mean over target tokens, the end of the sequence included.

    What X and Y are (a text with spans hidden and the spans, a source and its target, nothing and a text) is the
    affair of the batch.

    Attributes:
        name: of the metrics.
        has_source: whether there is an X.
        start_id: the token that the decoder is given first.
        max_positions: T.
        label_smoothing, z_loss: see `ObjectiveConfig`.
    """

    name: str
    has_source: bool
    start_id: int
    max_positions: int
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    @classmethod
    def create(cls, config: Config, tokenizer: Tokenizer) -> "Seq2SeqLM":
        special, has_source = tokenizer.special, config.model.architecture == "encoder-decoder"
        return cls(
            name="seq2seq" if has_source else "lm",
            has_source=has_source,
            start_id=special.start(config.model.decoder_start),
            max_positions=config.data.target_length if has_source else config.data.seq_length,
            label_smoothing=config.objective.label_smoothing,
            z_loss=config.objective.z_loss,
        )

    def prepare(self, batch: Batch, key: jax.Array) -> Examples:
        """Adds `decoder_inputs` [B, T]: the targets, shifted right within each segment."""
        del key
        before_BT = jnp.pad(batch["targets"][:, :-1], ((0, 0), (1, 0)))
        inputs_BT = jnp.where(batch["target_positions"] == 0, self.start_id, before_BT)
        return {**batch, "decoder_inputs": constrain(inputs_BT, "BT")}

    def weights(self, examples: Examples) -> dict[str, jax.Array]:
        return {self.name: (examples["target_segments"] > 0).sum().astype(jnp.float32)}

    def sums(self, model: Seq2Seq, examples: Examples, key: jax.Array | None) -> dict[str, dict[str, jax.Array]]:
        memory = None
        if self.has_source:
            memory = model.encode(examples["tokens"], examples["segments"], examples["positions"], key)
        hidden_BTD = model(
            memory, examples["decoder_inputs"], examples["target_segments"], examples["target_positions"], key
        )
        logits_BTV = model.predict(hidden_BTD)
        real_BT = (examples["target_segments"] > 0).astype(jnp.float32)
        found = weighted_sums(logits_BTV, examples["targets"], real_BT, self.label_smoothing, self.z_loss)
        return {self.name: found}

    def baseline_hits(self, examples: Examples, most_frequent: jax.Array) -> dict[str, jax.Array]:
        hits_BT = (examples["targets"] == most_frequent) & (examples["target_segments"] > 0)
        return {self.name: hits_BT.sum().astype(jnp.float32)}


def weighted_sums(
    logits_BNV: jax.Array,
    labels_BN: jax.Array,
    weights_BN: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> dict[str, jax.Array]:
    """Weighted sums of the loss and of correct predictions.

    The loss is -log softmax(logits)[label]. Label smoothing (Szegedy et al., 2016) gives a share of the label's
    probability to the whole vocabulary alike; the z-loss (Chowdhery et al., 2022, section 5) adds
    `z_loss` log^2 Z. With either, `cross_entropy` is the loss without them.
    """
    logits_BNV = logits_BNV.astype(jnp.float32)
    # Compared, not indexed: the gradient of an index is a scatter, which nothing else fuses with.
    is_label_BNV = jnp.arange(logits_BNV.shape[-1])[None, None] == labels_BN[:, :, None]
    label_BN = jnp.where(is_label_BNV, logits_BNV, 0.0).sum(axis=-1)
    log_z_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
    cross_entropy_BN = loss_BN = log_z_BN - label_BN
    if label_smoothing:
        uniform_BN = log_z_BN - logits_BNV.mean(axis=-1)
        loss_BN = (1 - label_smoothing) * cross_entropy_BN + label_smoothing * uniform_BN
    if z_loss:
        loss_BN = loss_BN + z_loss * jnp.square(log_z_BN)
    hits_BN = (argmax(logits_BNV) == labels_BN).astype(jnp.float32)
    sums = {"loss": (loss_BN * weights_BN).sum(), "accuracy": (hits_BN * weights_BN).sum()}
    if label_smoothing or z_loss:
        sums["cross_entropy"] = (cross_entropy_BN * weights_BN).sum()
    return sums


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


def create(config: Config, tokenizer: Tokenizer) -> Objective:
    """The objective that a config names."""
    kind = MaskedLM if config.objective.name == "mlm" else Seq2SeqLM
    return kind.create(config, tokenizer)
