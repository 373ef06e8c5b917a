"""Measures the losses, perplexities and baselines of a checkpoint on text that it was not trained on."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from etils import epath

from lm import checkpoint, models, tasks
from lm.config import Config, MixtureConfig, effect
from lm.data import corpus, mixture, prepare, workers
from lm.data.store import Store
from lm.errors import InputError
from lm.tasks import Batch, Objective, Sums, heads, losses, members
from lm.tokenizers import tokenizer as tokenizers
from lm.tokenizers.tokenizer import Tokenizer
from lm.training import step as step_lib


def measure(path: str, input_path: str = "", mask_rate: float | None = None) -> dict[str, float]:
    """Returns losses and accuracies of a model's own objective on the held-out split or a file.

    Each example counts once. A baseline is the accuracy of one constant answer: the most frequent token of the training
    text or of the file, or the most frequent class.

    Args:
        path: `WORKDIR` or `WORKDIR/checkpoints/N`.
        input_path: files of text, JSON lines or Parquet: a name, a folder or a glob. TSV in place of text where the run
            has pairs. The first task of a mixture reads them. Empty for the held-out split of the run's store.
        mask_rate: the share of tokens to mask or hide; None for the share of the run, or of an import's settings.
            Losses at different shares do not compare.

    Returns:
        `step`, `seq_length`, `mask_rate` if tokens are masked or hidden, `predictions` and the metrics of each loss.
        The losses are `mlm` and perhaps `nsp`, `seq2seq`, or `lm`. The metrics of `mlm` are `mlm_loss` (nats),
        `mlm_perplexity`, `mlm_accuracy` and `mlm_baseline_accuracy`. For a mixture, names begin with that of the
        member: `NAME/predictions`, `NAME/mlm_loss` and so on.

    Raises:
        InputError: checkpoint, store or file cannot be used, or `mask_rate` has no effect.
    """
    workdir, step = checkpoint.locate(path)
    config = _with_trained_heads(checkpoint.read_config(workdir), str(workdir), step)
    prefix = ""
    if input_path:
        config, prefix = _on_files(config, input_path)
    config, masked = _masking(config, mask_rate)
    tokenizer = tokenizers.load_tokenizer(str(workdir))
    objective = tasks.create_objective(config, tokenizer)
    model = models.build(config.model, models.Execution(config.train.activations))
    params = checkpoint.load_params(workdir, step)

    @jax.jit
    def compute(params: models.Params, batch: Batch, index: jax.Array, most_frequent: jax.Array):
        sums, weights = step_lib.eval_step(config, model, objective, params, batch, index)
        key = jax.random.fold_in(step_lib.run_key(config.seed, step_lib.EVALUATION), index)
        prepared = objective.prepare(batch, key)
        return sums, weights, objective.baseline_hits(prepared, most_frequent)

    metrics: dict[str, float] = {"step": step, "seq_length": config.data.seq_length, **masked}
    what = f"evaluating {path}, step {step:,}, on {input_path or 'the held-out split'}"
    what += f" in rows of {config.data.seq_length:,} tokens"
    what += "".join(f", with {rate:.3g} of the tokens masked" for rate in masked.values())
    with workers.announced(what), _stores(config, workdir, tokenizer, input_path) as stores:
        for name, store in stores.items():
            split = store.train if input_path else store.heldout
            source = members.batches(config, name, store, split, prefix=prefix)
            most_frequent = jnp.int32(store.manifest["most_frequent_token"]["id"])
            results = [
                compute(params, source.once(index), jnp.int32(index), most_frequent)
                for index in range(source.batches_per_epoch)
            ]
            totals = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), results)
            found = _metrics(objective, *totals)
            metrics |= {f"{name}/{metric}" if name else metric: value for metric, value in found.items()}
    return metrics


def _metrics(
    objective: Objective, sums: Sums, weights: dict[str, jax.Array], hits: dict[str, jax.Array]
) -> dict[str, float]:
    means = {name: float(value) for name, value in losses.mean_metrics(sums, weights).items()}
    metrics = {"predictions": int(next(iter(weights.values()))), **means}
    for name in weights:
        metrics[f"{name}_baseline_accuracy"] = float(hits[name].max() / weights[name])
        if name in objective.token_losses:
            cross_entropy = means.get(f"{name}_cross_entropy", means[f"{name}_loss"])
            metrics[f"{name}_perplexity"] = float(jnp.exp(cross_entropy))
    return metrics


def _masking(config: Config, mask_rate: float | None) -> tuple[Config, dict[str, float]]:
    """Returns the config with a share of masked tokens, and that share by its name; nothing if none are masked.

    Raises:
        InputError: a share is given, but the run masks nothing.
    """
    if why := effect.without_effect(config).get("objective.mask_rate"):
        if mask_rate is not None:
            raise InputError(f"--mask_rate has no effect: {why}; leave it out.")
        return config, {}
    if mask_rate is not None:
        config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, mask_rate=mask_rate))
    return config, {"mask_rate": config.objective.mask_rate}


def _with_trained_heads(config: Config, workdir: str, step: int) -> Config:
    """Returns the config without next sentences if that head of an import has random weights.

    Raises:
        InputError: the head of masked tokens has.
    """
    untrained = heads.read_untrained(workdir, step)
    if not untrained or config.objective.name != "mlm":
        return config
    heads.require_trained("fill-mask", untrained)
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, nsp=False))


def _on_files(config: Config, path: str) -> tuple[Config, str]:
    """Returns the config of a run on these files alone, with the objective and the fields of the first task.

    The second is the prefix of that task. Pairs have theirs in the file.
    """
    first = next(iter(config.mixture.tasks), None)
    pairs = tasks.of_run(config).reads == "pairs"
    data = corpus.on_files(config, path, "tsv" if pairs else "text")
    if first is None:
        return dataclasses.replace(config, data=data), ""
    prefix, objective = "" if pairs else config.mixture.tasks[first].prefix, config.task_objective(first)
    return dataclasses.replace(config, data=data, objective=objective, mixture=MixtureConfig()), prefix


@contextlib.contextmanager
def _stores(config: Config, workdir: epath.Path, tokenizer: Tokenizer, input_path: str) -> Iterator[dict[str, Store]]:
    """Yields the run's stores by member, or a temporary store whose train split holds the file."""
    if not input_path:
        stores = mixture.open_to_evaluate(config, checkpoint.store_path(config, workdir), tokenizer)
        if empty := next((store.path for store in stores.values() if not store.heldout.num_tokens), None):
            raise InputError(f"the token store {empty!r} holds out no text to evaluate on; give --input=FILE.")
        yield stores
        return
    data = dataclasses.replace(config.data, tokenizer=str(workdir), heldout_fraction=0.0, near_duplicates=0.0)
    with tempfile.TemporaryDirectory() as folder:
        yield {"": prepare.prepare(data, folder, progress=False)}
