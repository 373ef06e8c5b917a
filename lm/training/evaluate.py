"""How well a checkpoint predicts text that it was not trained on."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from etils import epath

from lm import checkpoint, models
from lm.config import Config, DataConfig
from lm.data import batches, prepare
from lm.data import tokenizer as tokenizers
from lm.data.store import Split, Store
from lm.training import objectives
from lm.training import train as training


def evaluate(path: str, input_path: str = "") -> dict[str, float]:
    """Masked language model and next sentence on the whole held-out split, or on a file.

    The baselines are what one gets without a model: always predicting the most frequent token of the
    training text, and always the more frequent of next and random.

    Args:
        path: `WORKDIR` or `WORKDIR/checkpoints/N`.
        input_path: a text or .jsonl file, folder or glob; empty for the held-out split of the run's store.

    Returns:
        `step`, `predictions`, `mlm_loss` (nats), `mlm_perplexity`, `mlm_accuracy`, `mlm_baseline_accuracy` and,
        for models trained with it, `nsp_loss`, `nsp_accuracy`, `nsp_baseline_accuracy`.

    Raises:
        InputError: when checkpoint, store or file cannot be used.
    """
    workdir, step = checkpoint.locate(path)
    config = checkpoint.read_config(workdir)
    tokenizer = tokenizers.load_tokenizer(str(workdir))
    objective = objectives.create(config, tokenizer)
    model = models.build(config.model, models.Execution(config.train.dtype))
    params = checkpoint.load_params(workdir, step)

    store_path = training.store_path(config, workdir)
    most_frequent = Store.open(store_path, tokenizer).manifest["most_frequent_token"]["id"]

    @jax.jit
    def compute(params: models.Params, batch: objectives.Batch, index: jax.Array):
        sums, weights = training.eval_step(config, model, objective, params, batch, index)
        key = jax.random.fold_in(training.run_key(config.seed, training.EVALUATION), index)
        examples = objective.prepare(batch, key)
        hits = {"mlm": ((examples["labels"] == most_frequent) * examples["mlm_weights"]).sum()}
        if objective.nsp:
            hits["nsp"] = (examples["nsp_labels"] == 1).sum().astype(jnp.float32)
        return sums, weights, hits

    with _split(config, store_path, input_path, workdir) as split:
        source = batches.Batches(split, tokenizer.special, config.data, config.objective, config.seed)
        count = max(1, int(source.steps_per_epoch))
        results = [compute(params, source(index), jnp.int32(index)) for index in range(count)]
    sums, weights, hits = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), results)
    means = {name: float(value) for name, value in objectives.mean_metrics(sums, weights).items()}
    metrics = {"step": step, "predictions": int(weights["mlm"]), **means}
    metrics["mlm_perplexity"] = float(jnp.exp(means["mlm_loss"]))
    metrics["mlm_baseline_accuracy"] = float(hits["mlm"] / weights["mlm"])
    if objective.nsp:
        share = float(hits["nsp"] / weights["nsp"])
        metrics["nsp_baseline_accuracy"] = max(share, 1 - share)
    return metrics


@contextlib.contextmanager
def _split(config: Config, store_path: str, input_path: str, workdir: epath.Path) -> Iterator[Split]:
    """The held-out split of the run's store, or a file made into a split of its own for the while."""
    if not input_path:
        yield Store.open(store_path).heldout
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = next(str(path) for path in workdir.iterdir() if path.name.startswith("tokenizer."))
        source = "jsonl" if ".jsonl" in input_path else "text"
        data = DataConfig(source=source, path=input_path, tokenizer=tokenizer, heldout_fraction=0.0)
        data = dataclasses.replace(data, field=config.data.field)
        yield prepare.prepare(data, folder, progress=False).train
