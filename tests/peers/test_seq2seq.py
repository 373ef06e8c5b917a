"""Logits, loss, gradients and fifty steps of AdamW equal those of transformers' T5 and BART, in float32."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.t5.modeling_t5 import T5Attention

from lm import models
from lm.huggingface import export_folder, import_folder, to_tensors
from lm.models.positions import relative_buckets
from lm.tokenizers.special_ids import SpecialIds
from lm.tokenizers.tokenizer import load_tokenizer
from lm.training import optim
from lm.training.step import gradients, train_step
from tests.huggingface.test_seq2seq import t5_tokenizer
from tests.peers import ragged, ragged_pairs
from tests.peers.test_training import make_torch_optimizer

pytestmark = pytest.mark.peers

STEPS = 50
T5_IDS = SpecialIds(pad=0, sep=1)
BART_IDS = SpecialIds(pad=1, sep=2)
T5_SHAPE: dict[str, Any] = {
    **{"vocab_size": 120, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_heads": 4, "num_layers": 3},
    **{"num_decoder_layers": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20},
    "decoder_start_token_id": 0,
}
BART_SHAPE: dict[str, Any] = {
    **{"vocab_size": 120, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "max_position_embeddings": 48},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
}
FAMILIES = pytest.mark.parametrize("family", ["t5-1.0", "t5-1.1", "t5-1.1-tied", "bart"])
PACKINGS = pytest.mark.parametrize(
    "shapes",
    [
        {"rows": 3, "length": 48, "target_length": 32, "max_segments": 4},
        {"rows": 6, "length": 24, "target_length": 40, "max_segments": 1},
    ],
    ids=["packed", "alone"],
)


def make_theirs(family: str) -> torch.nn.Module:
    """A random model of a family, without dropout."""
    model: Any
    if family == "bart":
        model = transformers.BartForConditionalGeneration(transformers.BartConfig(**BART_SHAPE))
        # A buffer, which no optimizer would move and which is zero; ours is the bias of the output projection,
        # trained like every other. As a parameter theirs computes and learns the same.
        bias = model.final_logits_bias
        del model.final_logits_bias
        model.final_logits_bias = torch.nn.Parameter(bias)
    elif family == "t5-1.0":
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5_SHAPE))
    else:
        # Transformers 5 reads "not tied" as "not scaled", and ties all the same unless a checkpoint was not.
        config = transformers.T5Config(**T5_SHAPE | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})
        model = transformers.T5ForConditionalGeneration(config)
        if family == "t5-1.1":
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
            del model.all_tied_weights_keys["lm_head.weight"]
    ragged.randomise(model)
    return model.eval()


class Pair:
    """One random model and one batch, here and in transformers."""

    def __init__(self, folder, family: str, shapes: dict[str, int]):
        self.special = BART_IDS if family == "bart" else T5_IDS
        self.theirs: Any = make_theirs(family)
        self.theirs.save_pretrained(folder)
        self.imported = import_folder(folder)
        self.config = ragged_pairs.make_config(self.imported.config, **shapes)
        self.model = models.build(self.config.model)
        self.objective = ragged_pairs.make_objective(self.config, self.special)

    def batch(self, seed: int):
        return ragged_pairs.random_batch(self.config, self.special, seed)

    def prepare(self, batch):
        return self.objective.prepare(batch, jax.random.key(0))


def our_logits(model: models.Model, params: models.Params, examples) -> np.ndarray:
    @jax.jit
    def compute(params, examples):
        module = model.merge(params)
        memory = module.encode(*(examples[name] for name in ("tokens", "segments", "positions")))
        sides = (examples[name] for name in ("decoder_inputs", "target_segments", "target_positions"))
        return module.predict(module(memory, *sides))

    return np.asarray(compute(params, examples))


@PACKINGS
@FAMILIES
def test_logits_loss_and_gradients_are_equal(tmp_path, family, shapes):
    pair = Pair(tmp_path, family, shapes)
    examples = pair.prepare(pair.batch(seed=1))
    theirs = pair.theirs(**ragged_pairs.padded(examples, pair.special))
    theirs.loss.backward()

    logits_BTV = our_logits(pair.model, pair.imported.params, examples)
    for index, (row, columns) in enumerate(ragged_pairs.places(examples["target_segments"])):
        their_logits = theirs.logits[index, : len(columns)].detach().numpy()
        np.testing.assert_allclose(logits_BTV[row, columns], their_logits, atol=1e-4, rtol=0)

    compute = jax.jit(functools.partial(gradients, pair.model, pair.objective, parts=1))
    grads, metrics = compute(pair.imported.params, examples, key=None)
    np.testing.assert_allclose(float(metrics["loss"]), theirs.loss.item(), atol=1e-5, rtol=0)
    ours = to_tensors(pair.imported.config, grads)
    parameters = dict(pair.theirs.named_parameters())
    assert ours.keys() == parameters.keys()
    largest = max(parameter.grad.abs().max().item() for parameter in parameters.values())
    for name, parameter in parameters.items():
        gradient = parameter.grad.numpy()
        # The gradient of a key's bias is zero but for rounding: it shifts all scores of a query alike.
        tolerance = 1e-4 * np.abs(gradient).max() + 1e-7 * largest
        np.testing.assert_allclose(ours[name], gradient, atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize("family", ["t5-1.0", "t5-1.1", "bart"])
def test_fifty_steps_of_adamw_have_equal_losses(tmp_path, family):
    """Warm-up, linear decay, clipping and the weight decay mask included; dropout is off."""
    pair = Pair(tmp_path, family, {"rows": 4, "length": 48, "target_length": 32, "max_segments": 4})
    config = pair.config
    config.train.steps = STEPS
    config.optim.learning_rate, config.optim.warmup_steps, config.optim.clip_norm = 2e-3, 10, 0.5
    optimizer = optim.create(config.optim)
    params = jax.tree.map(jnp.asarray, pair.imported.params)
    zero = jnp.zeros((), jnp.int32)
    state = {"params": params, "opt": optimizer.init(params), "step": zero, "skipped": zero}
    step = jax.jit(functools.partial(train_step, config, pair.model, pair.objective, optimizer))
    their_optimizer, their_schedule = make_torch_optimizer(pair.theirs, config)

    ours, norms = [], []
    for index in range(STEPS):
        batch = pair.batch(seed=index)
        state, metrics = step(state, batch)
        ours.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))

        loss = pair.theirs(**ragged_pairs.padded(pair.prepare(batch), pair.special)).loss
        their_optimizer.zero_grad()
        loss.backward()
        their_norm = torch.nn.utils.clip_grad_norm_(pair.theirs.parameters(), config.optim.clip_norm)
        their_optimizer.step()
        their_schedule.step()
        np.testing.assert_allclose(ours[-1], loss.item(), atol=1e-4, rtol=0, err_msg=f"step {index}")
        np.testing.assert_allclose(norms[-1], their_norm.item(), rtol=1e-4, err_msg=f"step {index}")

    assert np.mean(ours[-5:]) < np.mean(ours[:5]) - 0.1  # it learned something
    assert max(norms) > config.optim.clip_norm  # clipping was at work
    parameters = dict(pair.theirs.named_parameters())
    for name, tensor in to_tensors(pair.imported.config, state["params"]).items():
        their_tensor = parameters[name].detach().numpy()
        unused = 2 if "embed_positions" in name else 0  # rows that no position reads
        # At its kink a ReLU may be open in one and closed in the other, and Adam makes steps of small gradients too.
        np.testing.assert_allclose(tensor[unused:], their_tensor[unused:], atol=1e-4, rtol=0, err_msg=name)


@FAMILIES
def test_transformers_loads_what_we_export(tmp_path, family):
    """import(export(params)) is exact, and the exported folder computes what the original does."""
    original: Any = make_theirs(family)
    original.save_pretrained(tmp_path / "original")
    imported = import_folder(tmp_path / "original")
    assert imported.config.tie_embeddings == (family != "t5-1.1")
    assert imported.config.scale_logits == (family == "t5-1.0")
    export_folder(tmp_path / "exported", imported.config, imported.params)
    again = import_folder(tmp_path / "exported")
    assert again.config == imported.config
    jax.tree.map(np.testing.assert_array_equal, again.params, imported.params)

    loaded, report = type(original).from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not any(report.values()), report
    weights = original.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    for name, weight in loaded.state_dict().items():
        unused = 2 if "embed_positions" in name else 0
        torch.testing.assert_close(weight[unused:], weights[name][unused:], atol=0, rtol=0)
    tokens = torch.arange(5, 35)[None]
    with torch.no_grad():
        ours, theirs = (model(tokens, decoder_input_ids=tokens[:, :9]).logits for model in (loaded.eval(), original))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_t5_tokenizers_give_equal_ids(tmp_path):
    """For the `spiece.model` and for the `tokenizer.json` that transformers makes of it."""
    t5_tokenizer(tmp_path)
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "json")
    texts = ["the old river sings under word12", "a  house \u00e9 \u4f60\u597d; number7 and more", ""]
    for folder in (tmp_path, tmp_path / "json"):
        ours = load_tokenizer(str(folder))
        assert (ours.vocab_size, ours.special.first_sentinel) == (
            len(theirs),
            theirs.convert_tokens_to_ids("<extra_id_0>"),
        )
        assert [ids.tolist() for ids in ours.encode(texts)] == theirs(texts, add_special_tokens=False).input_ids
        assert ours.decode(theirs(texts[0]).input_ids) == texts[0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_every_distance_falls_into_the_same_bucket(causal, num_buckets, max_distance):
    distances = np.arange(-1500, 1501)
    settings = {"num_buckets": num_buckets, "max_distance": max_distance}
    theirs = T5Attention._relative_position_bucket(torch.from_numpy(distances), bidirectional=not causal, **settings)
    ours = jax.jit(functools.partial(relative_buckets, causal=causal, **settings))(distances)
    np.testing.assert_array_equal(np.asarray(ours), theirs.numpy())
