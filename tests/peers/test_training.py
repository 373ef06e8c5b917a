"""Fifty steps of AdamW from the same weights on the same batches equal those of torch and transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from lm import models
from lm.huggingface import import_folder, to_tensors
from lm.training import optim
from lm.training.step import MASKING, run_key, train_step
from tests.peers import ragged

pytestmark = pytest.mark.peers

STEPS = 50


@pytest.mark.parametrize("bias_correction", [True, False])
def test_fifty_steps_of_adamw_have_equal_losses(tmp_path, bias_correction):
    """Warm-up, linear decay, clipping and the weight decay mask included; dropout is off."""
    hf_config = transformers.BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = transformers.BertForPreTraining(hf_config)
    ragged.randomise(theirs)
    theirs.save_pretrained(tmp_path)
    imported = import_folder(tmp_path)
    config = ragged.make_config(imported.config, nsp=True, rows=4, length=64, max_segments=6)
    config.train.steps = STEPS
    config.optim.learning_rate, config.optim.warmup_steps = 2e-3, 10
    config.optim.bias_correction = bias_correction

    objective, optimizer = ragged.make_objective(config), optim.create(config.optim)
    params = jax.tree.map(jnp.asarray, imported.params)
    zero = jnp.zeros((), jnp.int32)
    state = {"params": params, "opt": optimizer.init(params), "step": zero, "skipped": zero}
    step = jax.jit(functools.partial(train_step, config, models.build(config.model), objective, optimizer))
    prepare = jax.jit(objective.prepare)
    their_optimizer, their_schedule = make_torch_optimizer(theirs, config)

    ours, norms = [], []
    for index in range(STEPS):
        batch = ragged.random_batch(config, seed=index)
        state, metrics = step(state, batch)
        ours.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))

        examples = prepare(batch, jax.random.fold_in(run_key(config.seed, MASKING), index))
        loss = theirs(**ragged.padded(examples)).loss
        their_optimizer.zero_grad()
        loss.backward()
        their_norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), config.optim.clip_norm)
        np.testing.assert_allclose(float(metrics["learning_rate"]), their_schedule.get_last_lr()[0], rtol=1e-6)
        their_optimizer.step()
        their_schedule.step()
        np.testing.assert_allclose(ours[-1], loss.item(), atol=1e-4, rtol=0, err_msg=f"step {index}")
        np.testing.assert_allclose(norms[-1], their_norm.item(), rtol=1e-4, err_msg=f"step {index}")

    assert np.mean(ours[-5:]) < np.mean(ours[:5]) - 0.1  # it learned something
    assert max(norms) > config.optim.clip_norm  # clipping was at work
    parameters = dict(theirs.named_parameters())
    for name, tensor in to_tensors(imported.config, state["params"]).items():
        np.testing.assert_allclose(tensor, parameters[name].detach().numpy(), atol=1e-5, rtol=0, err_msg=name)


class UncorrectedAdamW(torch.optim.Optimizer):
    """BERT's AdamWeightDecayOptimizer (its optimization.py): no bias correction."""

    def step(self, closure=None):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                state["m"] = b1 * state.get("m", 0) + (1 - b1) * p.grad
                state["v"] = b2 * state.get("v", 0) + (1 - b2) * p.grad**2
                update = state["m"] / (state["v"].sqrt() + group["eps"]) + group["weight_decay"] * p.data
                p.data -= group["lr"] * update


def make_torch_optimizer(model, config):
    """AdamW with weight decay on all but norms and biases, and transformers' linear schedule."""
    settings = config.optim
    plain = [name for name, _ in model.named_parameters() if name.endswith("bias") or "norm" in name.lower()]
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in plain], "weight_decay": 0.01},
        {"params": [p for name, p in model.named_parameters() if name in plain], "weight_decay": 0.0},
    ]
    assert settings.weight_decay == 0.01
    hyper = {"lr": settings.learning_rate, "betas": (settings.b1, settings.b2), "eps": settings.eps}
    optimizer = torch.optim.AdamW(groups, **hyper) if settings.bias_correction else UncorrectedAdamW(groups, hyper)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, settings.warmup_steps, num_training_steps=config.train.steps
    )
    return optimizer, schedule
