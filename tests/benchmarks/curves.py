"""Trains transformers on the very batches of a run of ours, and draws both curves in one picture.

    python tests/benchmarks/curves.py --workdir=runs/mini --picture=curves.png

Same initial weights (exported), same rows, same masks, same optimizer settings, dropout as the config says (the
comparison means most at 0); transformers gets the packed rows with a block-diagonal mask and its heads on
the positions that count, so that it computes the same loss. Encoders and encoder-decoders alike. Its losses go to
WORKDIR/transformers.jsonl; an interrupted comparison goes on from its last saved step.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl import flags
from etils import epath
from tqdm import tqdm

from lm import checkpoint, cli, huggingface, models, tasks
from lm.config import Config
from lm.data import batches
from lm.data.store import Store
from lm.tasks import members
from lm.training import metrics, optim
from lm.training import step as step_lib

_workdir = flags.DEFINE_string("workdir", None, "A finished run of ours.", required=True)
_picture = flags.DEFINE_string("picture", None, "Where to draw; default WORKDIR/curves.png.")
_log_every = flags.DEFINE_integer("log_every", 10, "Steps between the lines of transformers.jsonl.")
_dtype = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "bfloat16: transformers under autocast.")
_save_every = flags.DEFINE_integer("save_every", 100, "Steps between the saves of the comparison's own state.")


def masked_batches(config: Config, workdir: Path, start: int) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of the run from `start` on, masked by the run's own keys."""
    store = Store.open(checkpoint.store_path(config, epath.Path(workdir)))
    source = members.batches(config, "", store, store.train)
    prepare = jax.jit(tasks.create_objective(config, store.tokenizer).prepare)
    for step, batch in enumerate(batches.loader(source, start), start):
        key = jax.random.fold_in(step_lib.run_key(config.seed, step_lib.MASKING), step)
        yield {name: torch.from_numpy(np.array(value)).long() for name, value in prepare(batch, key).items()}


def initial_model(config: Config) -> torch.nn.Module:
    """transformers' BERT, ModernBERT or T5 with the weights that the run started from."""
    model = models.build(config.model)
    params = model.init(step_lib.run_key(config.seed, step_lib.INIT))
    with tempfile.TemporaryDirectory() as folder:
        huggingface.export_folder(folder, config.model, params)
        if config.model.architecture == "encoder-decoder":
            kind = transformers.AutoModelForSeq2SeqLM
        else:
            kind = transformers.AutoModelForPreTraining if config.objective.nsp else transformers.AutoModelForMaskedLM
        return kind.from_pretrained(folder, attn_implementation="sdpa")


def losses(config: Config, model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean losses of a packed batch: `mlm_loss` and perhaps `nsp_loss`, or `seq2seq_loss`."""
    if config.model.architecture == "encoder-decoder":
        return seq2seq_losses(model, batch)
    visible = batch["segments"][:, None, :, None] == batch["segments"][:, None, None, :]
    inputs: dict[str, Any] = {"input_ids": batch["tokens"], "position_ids": batch["positions"]}
    if config.model.token_types:
        inputs |= {"token_type_ids": batch["token_types"], "attention_mask": visible}
    else:
        place = torch.arange(visible.shape[-1])
        near = (place[:, None] - place[None, :]).abs() <= config.model.window
        inputs["attention_mask"] = {"full_attention": visible, "sliding_attention": visible & near}
    hidden_BLD = model.base_model(**inputs).last_hidden_state
    rows, slots = torch.nonzero(batch["mlm_weights"], as_tuple=True)
    hidden_ND = hidden_BLD[rows, batch["masked_positions"][rows, slots]]
    logits = model.cls.predictions(hidden_ND) if config.objective.nsp else model.decoder(model.head(hidden_ND))
    found = {"mlm_loss": torch.nn.functional.cross_entropy(logits, batch["labels"][rows, slots])}
    if config.objective.nsp:
        rows, pairs = torch.nonzero(batch["nsp_labels"] >= 0, as_tuple=True)
        pooler = model.bert.pooler
        pooled = pooler.activation(pooler.dense(hidden_BLD[rows, batch["cls_positions"][rows, pairs]]))
        logits = model.cls.seq_relationship(pooled)
        found["nsp_loss"] = torch.nn.functional.cross_entropy(logits, batch["nsp_labels"][rows, pairs])
    return found


def seq2seq_losses(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean loss over the targets of a packed batch."""

    def visible(queries: str, keys: str, causal: bool = False) -> torch.Tensor:
        same = batch[queries][:, None, :, None] == batch[keys][:, None, None, :]
        if causal:
            same = same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()
        return torch.zeros(same.shape).masked_fill(~same, torch.finfo(torch.float32).min)

    source, target = "segments", "target_segments"
    memory = model.get_encoder()(input_ids=batch["tokens"], attention_mask=visible(source, source))
    hidden_BTD = model.get_decoder()(
        input_ids=batch["decoder_inputs"],
        attention_mask=visible(target, target, causal=True),
        encoder_hidden_states=memory.last_hidden_state,
        encoder_attention_mask=visible(target, source),
        use_cache=False,
    ).last_hidden_state
    real = batch[target] > 0
    return {"seq2seq_loss": torch.nn.functional.cross_entropy(model.lm_head(hidden_BTD[real]), batch["targets"][real])}


def make_optimizer(config: Config, model: torch.nn.Module) -> torch.optim.Optimizer:
    """torch's AdamW with the run's settings."""
    spared = [p for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name.lower()]
    spared_ids = {id(parameter) for parameter in spared}
    decayed = [parameter for parameter in model.parameters() if id(parameter) not in spared_ids]
    groups = [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.optim.b1, config.optim.b2), eps=config.optim.eps)


def train(config: Config, workdir: Path) -> None:
    """Trains transformers for as many steps as the run and writes its curve."""
    model = initial_model(config).train()
    optimizer = make_optimizer(config, model)
    state_path, lines_path = workdir / "transformers.pt", workdir / "transformers.jsonl"
    start, lines, seconds = 0, [], 0.0
    if state_path.exists():
        saved = torch.load(state_path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start, lines, seconds = saved["step"], saved["lines"], saved["seconds"]
    source = masked_batches(config, workdir, start)
    for step in tqdm(range(start + 1, config.train.steps + 1), initial=start, total=config.train.steps):
        began = time.monotonic()
        with torch.autocast("cpu", torch.bfloat16, enabled=_dtype.value == "bfloat16"):
            found = losses(config, model, next(source))
        total = torch.stack(list(found.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        if config.optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(optim.learning_rate(config.optim, config.train.steps, jnp.int32(step - 1)))
        optimizer.step()
        seconds += time.monotonic() - began
        if step % _log_every.value == 0 or step == config.train.steps:
            values = {name: loss.item() for name, loss in found.items()}
            lines.append({"step": step, **values, "loss": total.item(), "seconds": seconds})
        if step % _save_every.value == 0 or step == config.train.steps:
            saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            partial = state_path.with_suffix(".partial")
            torch.save({**saved, "lines": lines, "seconds": seconds}, partial)
            partial.rename(state_path)
            lines_path.write_text("".join(json.dumps(each) + "\n" for each in lines))


def draw(config: Config, workdir: Path, picture: Path) -> dict[str, float]:
    """Draws both curves and their difference; returns the largest and mean absolute difference of the loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    theirs = {line["step"]: line for line in map(json.loads, (workdir / "transformers.jsonl").read_text().splitlines())}
    ours = {line["step"]: line for line in metrics.read_metrics(workdir) if line["step"] in theirs}
    steps = sorted(ours)
    names = [name for name in ("mlm_loss", "nsp_loss", "seq2seq_loss") if name in theirs[steps[-1]]]
    figure, axes = plt.subplots(1, len(names) + 1, figsize=(6 * len(names) + 6, 4.5), layout="constrained")
    for axis, name in zip(axes, names, strict=False):
        axis.plot(
            steps,
            [theirs[s][name] for s in steps],
            color="tab:orange",
            linewidth=2.5,
            label=f"transformers, {_dtype.value}",
        )
        axis.plot(
            steps, [ours[s][name] for s in steps], color="tab:blue", linewidth=0.9, label=f"lm, {config.train.dtype}"
        )
        axis.set(title=name.removesuffix("_loss").upper() + " loss", xlabel="step", ylabel="nats per prediction")
        axis.legend()
        axis.grid(alpha=0.3)
    difference = np.array([ours[s]["loss"] - theirs[s]["loss"] for s in steps])
    axes[-1].plot(steps, difference, color="tab:gray", linewidth=0.9)
    axes[-1].set(title="lm minus transformers", xlabel="step", ylabel="total loss, nats")
    axes[-1].grid(alpha=0.3)
    figure.savefig(picture, dpi=110)
    return {
        "steps": steps[-1],
        "mean_difference": float(difference.mean()),
        "mean_absolute_difference": float(np.abs(difference).mean()),
        "largest_difference": float(np.abs(difference).max()),
        "first_100_largest": float(np.abs(difference[: max(1, 100 // _log_every.value)]).max()),
        "transformers_seconds": theirs[steps[-1]]["seconds"],
    }


def main() -> None:
    workdir = Path(_workdir.value)
    config = checkpoint.read_config(workdir)
    train(config, workdir)
    picture = Path(_picture.value or workdir / "curves.png")
    print(json.dumps(draw(config, workdir, picture), indent=2))


if __name__ == "__main__":
    cli.run(main)
