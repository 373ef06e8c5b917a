"""Logits, loss and all gradients equal those of transformers' BERT and ModernBERT, in float32."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from lm import models
from lm.huggingface import export_folder, import_folder, to_tensors
from lm.training.step import gradients
from tests.peers import ragged

pytestmark = pytest.mark.peers

SHAPE: dict[str, Any] = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
BERT = transformers.BertConfig(**SHAPE, intermediate_size=64, max_position_embeddings=64)
BERT_TANH = transformers.BertConfig(
    **SHAPE, intermediate_size=64, max_position_embeddings=64, hidden_act="gelu_new", tie_word_embeddings=False
)
MODERNBERT = transformers.ModernBertConfig(
    **{**SHAPE, "num_hidden_layers": 4}, intermediate_size=48, local_attention=8, pad_token_id=0
)
MODERNBERT_BIASED = transformers.ModernBertConfig(
    **SHAPE,
    intermediate_size=48,
    local_attention=6,
    pad_token_id=0,
    norm_bias=True,
    attention_bias=True,
    mlp_bias=True,
    classifier_bias=True,
    tie_word_embeddings=False,
)
PACKINGS = pytest.mark.parametrize(("rows", "length", "max_segments"), [(3, 64, 6), (8, 32, 1)])


class Pair:
    """One random model and one batch, here and in transformers."""

    def __init__(self, folder, model_class, hf_config, attention, rows, length, max_segments):
        hf_config._attn_implementation = attention
        self.theirs = model_class(hf_config).eval()
        ragged.randomise(self.theirs)
        self.theirs.save_pretrained(folder)
        self.imported = import_folder(folder)
        self.has_nsp = self.imported.config.pooler
        shapes = {"rows": rows, "length": length, "max_segments": max_segments}
        config = ragged.make_config(self.imported.config, nsp=self.has_nsp, **shapes)
        self.model = models.build(config.model)
        self.objective = ragged.make_objective(config)
        self.examples = jax.jit(self.objective.prepare)(ragged.random_batch(config, seed=1), jax.random.key(2))
        self.inputs = ragged.padded(self.examples)
        if not self.has_nsp:
            del self.inputs["token_type_ids"], self.inputs["next_sentence_label"]

    def our_logits(self) -> tuple[np.ndarray, np.ndarray | None]:
        """MLM logits of every token, and NSP logits of every segment."""

        @jax.jit
        def compute(params, examples):
            module = self.model.merge(params)
            hidden_BLD = module(*(examples[name] for name in ("tokens", "segments", "positions", "token_types")))
            everywhere_BL = jnp.broadcast_to(jnp.arange(hidden_BLD.shape[1])[None], hidden_BLD.shape[:2])
            nsp_BPC = module.nsp_logits(hidden_BLD, examples["cls_positions"]) if self.has_nsp else None
            return module.mlm_logits(hidden_BLD, everywhere_BL), nsp_BPC

        return jax.tree.map(np.asarray, compute(self.imported.params, self.examples))

    def our_gradients(self, parts: int = 1) -> tuple[dict[str, np.ndarray], float]:
        """Gradients under transformers' names, and the loss."""
        compute = jax.jit(functools.partial(gradients, self.model, self.objective, parts=parts))
        grads, metrics = compute(self.imported.params, self.examples, key=None)
        return to_tensors(self.imported.config, grads), float(metrics["loss"])


def bert(folder, config, rows, length, max_segments):
    return Pair(folder, transformers.BertForPreTraining, config, "sdpa", rows, length, max_segments)


def modernbert(folder, config, attention, rows, length, max_segments):
    return Pair(folder, transformers.ModernBertForMaskedLM, config, attention, rows, length, max_segments)


def assert_equal_logits(pair: Pair) -> None:
    with torch.no_grad():
        theirs = pair.theirs(**pair.inputs)
    their_mlm_NLV = (theirs.prediction_logits if pair.has_nsp else theirs.logits).numpy()
    our_mlm_BLV, our_nsp_BPC = pair.our_logits()
    for index, (row, columns) in enumerate(ragged.places(pair.examples)):
        np.testing.assert_allclose(our_mlm_BLV[row, columns], their_mlm_NLV[index, : len(columns)], atol=1e-4, rtol=0)
    if our_nsp_BPC is not None:
        ours = our_nsp_BPC[np.asarray(pair.examples["nsp_labels"]) >= 0]
        np.testing.assert_allclose(ours, theirs.seq_relationship_logits.numpy(), atol=1e-4, rtol=0)


def assert_equal_loss_and_gradients(pair: Pair) -> None:
    loss = pair.theirs(**pair.inputs).loss
    loss.backward()
    parameters = dict(pair.theirs.named_parameters())
    theirs = {name: parameter.grad.numpy() for name, parameter in parameters.items() if parameter.grad is not None}
    ours, our_loss = pair.our_gradients()

    np.testing.assert_allclose(our_loss, loss.item(), atol=1e-5, rtol=0)
    # Untied, predictions.bias only repeats decoder.bias and transformers does not use it.
    assert ours.keys() - theirs.keys() <= {"cls.predictions.bias"}
    assert theirs.keys() <= ours.keys()
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        # The gradient of a key's bias is zero but for rounding: it shifts all scores of a query alike.
        tolerance = 1e-4 * np.abs(gradient).max() + 1e-7 * largest
        np.testing.assert_allclose(ours[name], gradient, atol=tolerance, rtol=0, err_msg=name)


@PACKINGS
@pytest.mark.parametrize("config", [BERT, BERT_TANH], ids=["gelu-tied", "tanh-untied"])
def test_bert_has_equal_logits_loss_and_gradients(tmp_path, config, rows, length, max_segments):
    pair = bert(tmp_path, config, rows, length, max_segments)
    assert_equal_logits(pair)
    assert_equal_loss_and_gradients(pair)


@PACKINGS
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("config", [MODERNBERT, MODERNBERT_BIASED], ids=["plain", "biased"])
def test_modernbert_has_equal_logits_loss_and_gradients(tmp_path, config, attention, rows, length, max_segments):
    pair = modernbert(tmp_path, config, attention, rows, length, max_segments)
    assert_equal_logits(pair)
    assert_equal_loss_and_gradients(pair)


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (transformers.BertForPreTraining, BERT),
        (transformers.BertForPreTraining, BERT_TANH),
        (transformers.ModernBertForMaskedLM, MODERNBERT),
        (transformers.ModernBertForMaskedLM, MODERNBERT_BIASED),
    ],
)
def test_transformers_loads_what_we_export(tmp_path, model_class, config):
    """import(export(params)) is exact, and the exported folder computes what the original does."""
    original = model_class(config).eval()
    ragged.randomise(original)
    original.save_pretrained(tmp_path / "original")
    imported = import_folder(tmp_path / "original")
    export_folder(tmp_path / "exported", imported.config, imported.params)
    again = import_folder(tmp_path / "exported")
    assert again.config == imported.config
    jax.tree.map(np.testing.assert_array_equal, again.params, imported.params)

    loaded, report = model_class.from_pretrained(tmp_path / "exported", output_loading_info=True)
    assert not any(report.values()), report
    weights = original.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    for name, weight in loaded.state_dict().items():
        if name != "cls.predictions.bias":  # repeats decoder.bias, or is not used
            torch.testing.assert_close(weight, weights[name], atol=0, rtol=0)
    tokens = torch.arange(5, 35)[None]
    with torch.no_grad():
        for ours, theirs in zip(loaded.eval()(tokens)[:2], original(tokens)[:2], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("without", ["mlm", "nsp"])
def test_an_encoder_without_heads_has_equal_hidden_states(tmp_path, without):
    model_class = {"mlm": transformers.BertModel, "nsp": transformers.BertForMaskedLM}[without]
    theirs = model_class(BERT).eval()
    ragged.randomise(theirs)
    theirs.save_pretrained(tmp_path)
    imported = import_folder(tmp_path)
    assert imported.fresh == {"mlm": ("mlm", "nsp"), "nsp": ("pooler", "nsp")}[without]
    tokens = np.arange(5, 35)[None]
    ones, zeros = np.ones_like(tokens), np.zeros_like(tokens)
    ours = models.build(imported.config).merge(imported.params)(tokens, ones, np.arange(30)[None], zeros)
    with torch.no_grad():
        hidden = theirs.base_model(torch.from_numpy(tokens)).last_hidden_state
    np.testing.assert_allclose(np.asarray(ours), hidden.numpy(), atol=1e-5, rtol=0)


def test_micro_batches_add_up_to_the_padded_batch(tmp_path):
    """However unequally the predictions are spread over the parts."""
    pair = bert(tmp_path, BERT, 4, 64, 6)
    loss = pair.theirs(**pair.inputs).loss
    loss.backward()
    ours, our_loss = pair.our_gradients(parts=2)
    theirs = pair.theirs.bert.embeddings.word_embeddings.weight.grad.numpy()
    np.testing.assert_allclose(our_loss, loss.item(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(
        ours["bert.embeddings.word_embeddings.weight"], theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0
    )
