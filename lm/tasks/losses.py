"""Sums of losses over a batch, and their means. B rows, N predictions in a row, V vocabulary."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from lm.tasks.task import Sums

if TYPE_CHECKING:
    import jax

    from lm.models.logits import Projection

PART = 2**28  # bytes of logits that a loss on a GPU computes at once

_NEVER = -1e30  # the logit of a token that cannot be; finite, so that no product of it is NaN


def weighted_sums(
    logits_BNV: jax.Array,
    labels_BN: jax.Array,
    weights_BN: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
) -> dict[str, jax.Array]:
    """Returns the weighted sums of the losses (`loss`) and of the correct predictions (`accuracy`).

    The loss is -log softmax(logits)[label]. Label smoothing (Szegedy et al., 2016) spreads a share of the label's
    probability evenly over the vocabulary. The z-loss (Chowdhery et al., 2022, section 5) adds `z_loss` log^2 Z. With
    either, the result also has `cross_entropy`, the loss without them.

    `vocab_size` is the number of tokens. Logits from this one on get no probability: they only pad the vocabulary.
    None: every logit is a token's.
    """
    import jax
    import jax.numpy as jnp

    from lm.ops.vocabulary import argmax

    logits_BNV = logits_BNV.astype(jnp.float32)
    size = logits_BNV.shape[-1] if vocab_size is None else min(vocab_size, logits_BNV.shape[-1])
    if size < logits_BNV.shape[-1]:
        is_token_V = jnp.arange(logits_BNV.shape[-1])[None, None] < size
        logits_BNV = jnp.where(is_token_V, logits_BNV, _NEVER)
    # A comparison, not an index: the gradient of an index is a scatter, which does not fuse with other operations.
    is_label_BNV = jnp.arange(logits_BNV.shape[-1])[None, None] == labels_BN[:, :, None]
    label_BN = jnp.where(is_label_BNV, logits_BNV, 0.0).sum(axis=-1)
    log_z_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
    cross_entropy_BN = loss_BN = log_z_BN - label_BN
    if label_smoothing:
        if size < logits_BNV.shape[-1]:
            mean_BN = jnp.where(is_token_V, logits_BNV, 0.0).sum(axis=-1) / size
        else:
            mean_BN = logits_BNV.mean(axis=-1)
        uniform_BN = log_z_BN - mean_BN
        loss_BN = (1 - label_smoothing) * cross_entropy_BN + label_smoothing * uniform_BN
    if z_loss:
        loss_BN = loss_BN + z_loss * jnp.square(log_z_BN)
    hits_BN = (argmax(logits_BNV) == labels_BN).astype(jnp.float32)
    sums = {"loss": (loss_BN * weights_BN).sum(), "accuracy": (hits_BN * weights_BN).sum()}
    if label_smoothing or z_loss:
        sums["cross_entropy"] = (cross_entropy_BN * weights_BN).sum()
    return sums


def projected_sums(
    projection: Projection,
    labels_BN: jax.Array,
    weights_BN: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    vocab_size: int | None = None,
) -> dict[str, jax.Array]:
    """Returns `weighted_sums` of the logits of a projection.

    On one GPU the logits of a large batch are computed part by part, so that they and their gradients do not exist at
    once. Over several devices each part would add up the gradient of the weights over them.
    """
    from lm.ops import parts
    from lm.sharding import is_trivial, platform

    options = (label_smoothing, z_loss, vocab_size)
    size = 4 * labels_BN.size * projection.weights_DV.shape[1]
    count = min(labels_BN.shape[1], -(-size // PART)) if platform() == "gpu" and is_trivial() else 1
    if count == 1:
        return weighted_sums(projection.logits(), labels_BN, weights_BN, *options)
    shared = (projection.weights_DV, projection.bias_V)
    function = functools.partial(_sums_of_part, projection.scale, options)
    return parts.sums(function, count, shared, projection.hidden_BLD, labels_BN, weights_BN)


def _sums_of_part(
    scale: float,
    options: tuple[float, float, int | None],
    shared: tuple[jax.Array, jax.Array | None],
    hidden_BND: jax.Array,
    labels_BN: jax.Array,
    weights_BN: jax.Array,
) -> dict[str, jax.Array]:
    from lm.models.logits import project

    return weighted_sums(project(scale, shared, hidden_BND), labels_BN, weights_BN, *options)


def total_loss(sums: Sums, weights: dict[str, jax.Array]) -> jax.Array:
    """Returns the sum of the mean losses. A loss without a prediction in the batch counts as zero."""
    import jax.numpy as jnp

    return sum((sums[name]["loss"] / jnp.maximum(weights[name], 1.0) for name in sums), start=jnp.float32(0))


def mean_metrics(sums: Sums, weights: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the means `{"mlm_loss": ..., "mlm_accuracy": ..., "nsp_loss": ...}` from sums and weights."""
    import jax.numpy as jnp

    return {
        f"{name}_{metric}": value / jnp.maximum(weights[name], 1.0)
        for name, metrics in sums.items()
        for metric, value in metrics.items()
    }
