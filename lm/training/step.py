"""The training step: how a state `{params, opt, step, skipped}` is made and updated, compiled for a mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm import models, parameters
from lm.config import Config, OptimConfig
from lm.models import Model
from lm.tasks import Batch, Objective, Sums, losses
from lm.training import adapters, optim

State = dict[str, Any]
Metrics = dict[str, jax.Array]

# Uses of the run's seed. Each is folded into the key, so that no two use the same random numbers.
INIT, MASKING, DROPOUT, EVALUATION = range(4)


def run_key(seed: int, use: int) -> jax.Array:
    """Returns the random key of one use of the run's seed."""
    return jax.random.fold_in(jax.random.key(seed), use)


def init_state(model: Model, optimizer: optax.GradientTransformation, seed: int, config: OptimConfig) -> State:
    """Returns the state of step 0. Call it under jit with `out_shardings`, so that every array is created sharded."""
    params = model.init(run_key(seed, INIT))
    trained, _ = adapters.partition(params, config)
    zero = jnp.zeros((), jnp.int32)
    return {"params": params, "opt": optimizer.init(trained), "step": zero, "skipped": zero}


def gradients(
    model: Model,
    objective: Objective,
    params: models.Params,
    examples: Batch,
    key: jax.Array | None,
    parts: int,
    frozen: models.Params | None = None,
) -> tuple[models.Params, Metrics]:
    """Returns the gradient of a batch's loss, and its metrics, accumulated over `parts` micro-batches.

    The sums of each micro-batch are divided by the weights of the whole batch, so the result does not depend on
    `parts`.

    Args:
        params: the parameters to differentiate.
        examples: from `objective.prepare`.
        key: the random key of dropout; None computes without dropout.
        parts: the number of micro-batches.
        frozen: the other parameters of the model.
    """
    weights = objective.weights(examples)

    def loss(params: models.Params, examples: Batch, key: jax.Array | None):
        sums = objective.sums(model.merge(parameters.merge(params, frozen or {})), examples, key)
        return losses.total_loss(sums, weights), sums

    compute = jax.grad(loss, has_aux=True)
    if parts == 1:
        grads, sums = compute(params, examples, key)
    else:
        # Row r goes to part r % parts: every device keeps its rows.
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), examples)

        def add(carry: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            examples, index = part
            part_key = None if key is None else jax.random.fold_in(key, index)
            return jax.tree.map(jnp.add, carry, compute(params, examples, part_key)), None

        shapes = jax.eval_shape(compute, params, jax.tree.map(lambda x: x[0], split), key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, sums), _ = jax.lax.scan(add, zeros, (split, jnp.arange(parts)))
    return grads, means(sums, weights)


def means(sums: Sums, weights: dict[str, jax.Array]) -> Metrics:
    """Returns the total loss and every mean metric."""
    return {"loss": losses.total_loss(sums, weights), **losses.mean_metrics(sums, weights)}


def train_step(
    config: Config,
    model: Model,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: State,
    batch: Batch,
) -> tuple[State, Metrics]:
    """Returns the state after one update. A step whose loss or gradient is not finite is skipped.

    A skipped step changes nothing but the counts `step` and `skipped`.

    Args:
        state: `{params, opt, step, skipped}`; `step` counts all steps, `skipped` the skipped ones.
        batch: the global batch of this step.

    Returns:
        The new state, and scalar metrics: `loss`, its parts, `gradient_norm`, `learning_rate`, `skipped_steps` and
        `predictions`, the number of predicted tokens.
    """
    step = state["step"]
    dropout = config.model.dropout or config.model.attention_dropout or config.model.mlp_dropout
    dropout_key = jax.random.fold_in(run_key(config.seed, DROPOUT), step) if dropout else None
    examples = objective.prepare(batch, jax.random.fold_in(run_key(config.seed, MASKING), step))
    trained, frozen = adapters.partition(state["params"], config.optim)
    grads, metrics = gradients(model, objective, trained, examples, dropout_key, config.train.accumulation, frozen)
    norm = optax.tree.norm(grads)
    rate = optim.learning_rate(config.optim, config.train.steps, step)
    updates, opt = optimizer.update(grads, state["opt"], trained)
    params = jax.tree.map(lambda param, update: param - rate * update, trained, updates)

    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
    skipped = state["skipped"] + 1 - finite.astype(jnp.int32)
    params = parameters.merge(keep(params, trained), frozen)
    state = {"params": params, "opt": keep(opt, state["opt"]), "step": step + 1}
    weights = objective.weights(examples)
    predictions = sum((weights[name] for name in objective.token_losses), jnp.zeros(()))
    metrics |= {"gradient_norm": norm, "learning_rate": rate, "skipped_steps": skipped, "predictions": predictions}
    return {**state, "skipped": skipped}, metrics


def eval_step(
    config: Config, model: Model, objective: Objective, params: models.Params, batch: Batch, index: jax.Array
) -> tuple[Sums, dict[str, jax.Array]]:
    """Returns the sums and weights of one held-out batch. Every evaluation masks it the same way."""
    key = jax.random.fold_in(run_key(config.seed, EVALUATION), index)
    examples = objective.prepare(batch, key)
    return objective.sums(model.merge(params), examples, None), objective.weights(examples)
