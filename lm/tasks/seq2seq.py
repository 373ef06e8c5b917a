"""The objective of the tasks that predict a target from left to right, with or without a source.

B batch, S source length, T target length, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lm.config import Config
from lm.tasks.task import Batch, Sums, Vocabulary
from lm.tokenizers.special_ids import decoder_start

if TYPE_CHECKING:
    import jax

    from lm.models import Seq2Seq


@dataclasses.dataclass(frozen=True)
class Seq2SeqLM:
    """The mean of -log P(y_t | y_<t, X) over all target tokens, including the [SEP] that ends a target.

    The row format decides what source X and target Y are. They are a text with hidden spans and those spans, or a pair
    of texts, or no source and a running text.

    Attributes:
        name: the name of the loss.
        has_source: whether there is an X.
        start_id: the decoder's first input.
        max_positions: T.
        vocab_size: the number of tokens. Logits from this one on get no probability. None: every logit is a token's.
        label_smoothing, z_loss: see `ObjectiveConfig`.
    """

    name: str
    has_source: bool
    start_id: int
    max_positions: int
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    vocab_size: int | None = None

    @classmethod
    def create(cls, config: Config, vocabulary: Vocabulary) -> Seq2SeqLM:
        has_source = config.model.architecture == "encoder-decoder"
        return cls(
            name="seq2seq" if has_source else "lm",
            has_source=has_source,
            start_id=decoder_start(config, vocabulary.special),
            max_positions=config.data.target_length if has_source else config.data.seq_length,
            label_smoothing=config.objective.label_smoothing,
            z_loss=config.objective.z_loss,
            vocab_size=vocabulary.vocab_size,
        )

    @property
    def token_losses(self) -> tuple[str, ...]:
        return (self.name,)

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Returns the batch with `decoder_inputs` [B, T]: the targets, shifted right within each segment."""
        import jax.numpy as jnp

        from lm.sharding import constrain

        del key
        before_BT = jnp.pad(batch["targets"][:, :-1], ((0, 0), (1, 0)))
        inputs_BT = jnp.where(batch["target_positions"] == 0, self.start_id, before_BT)
        return {**batch, "decoder_inputs": constrain(inputs_BT, "BT")}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {self.name: (batch["target_segments"] > 0).sum().astype("float32")}

    def sums(self, model: Seq2Seq, batch: Batch, key: jax.Array | None) -> Sums:
        from lm.tasks.losses import projected_sums

        memory = None
        if self.has_source:
            memory = model.encode(batch["tokens"], batch["segments"], batch["positions"], key)
        hidden_BTD = model(memory, batch["decoder_inputs"], batch["target_segments"], batch["target_positions"], key)
        projection = model.projection(hidden_BTD)
        real_BT = (batch["target_segments"] > 0).astype("float32")
        found = projected_sums(
            projection, batch["targets"], real_BT, self.label_smoothing, self.z_loss, self.vocab_size
        )
        return {self.name: found}

    def baseline_hits(self, batch: Batch, most_frequent: jax.Array) -> dict[str, jax.Array]:
        hits_BT = (batch["targets"] == most_frequent) & (batch["target_segments"] > 0)
        return {self.name: hits_BT.sum().astype("float32")[None]}
