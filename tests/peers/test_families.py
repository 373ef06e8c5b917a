"""For every family: logits and gradients equal those of transformers, and what we export computes the same there."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from lm import models
from lm.huggingface import export_folder, import_folder, to_tensors, write_config
from tests.peers import ragged

pytestmark = pytest.mark.peers

ENCODER: dict[str, Any] = {
    **{"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 24},
}
DISTILBERT: dict[str, Any] = {
    **{"vocab_size": 90, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 24},
}
BART: dict[str, Any] = {
    **{"vocab_size": 90, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 24},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
}
T5: dict[str, Any] = {
    **{"vocab_size": 90, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_heads": 2, "num_layers": 2},
    **{"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0},
}
MARIAN = {**BART, "pad_token_id": 89, "decoder_start_token_id": 89, "scale_embedding": True}


@dataclasses.dataclass(frozen=True)
class Case:
    """A family: the prefix of its classes, the class with the vocabulary projection, and a config.

    `heads` are the heads that are new at import, and `dropped` what the folder has and we have not.
    """

    prefix: str
    suffix: str
    config: dict[str, Any]
    heads: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


MLM, WRITER = "ForMaskedLM", "ForConditionalGeneration"
CASES = {
    "roberta": Case("Roberta", MLM, {**ENCODER, "type_vocab_size": 1}),
    "roberta padded with 3": Case("Roberta", MLM, {**ENCODER, "pad_token_id": 3}),
    "roberta untied": Case("Roberta", MLM, {**ENCODER, "tie_word_embeddings": False}),
    "xlm-roberta": Case("XLMRoberta", MLM, {**ENCODER, "type_vocab_size": 1, "hidden_act": "gelu_new"}),
    "xlm-roberta classifier": Case(
        "XLMRoberta", "ForSequenceClassification", ENCODER, ("mlm",), ("classifier.dense", "classifier.out_proj")
    ),
    "camembert": Case("Camembert", MLM, {**ENCODER, "type_vocab_size": 1}),
    "roberta alone": Case("Roberta", "Model", ENCODER, ("mlm",), ("roberta.pooler.dense",)),
    "bert alone": Case("Bert", "Model", ENCODER, ("mlm", "nsp")),
    "bert tagger": Case("Bert", "ForTokenClassification", ENCODER, ("mlm", "pooler", "nsp"), ("classifier",)),
    "distilbert": Case("DistilBert", MLM, DISTILBERT),
    "distilbert for questions": Case("DistilBert", "ForQuestionAnswering", DISTILBERT, ("mlm",), ("qa_outputs",)),
    "electra generator": Case("Electra", MLM, {**ENCODER, "embedding_size": 12}),
    "electra discriminator": Case(
        *("Electra", "ForPreTraining", {**ENCODER, "embedding_size": 16}, ("mlm",)),
        ("discriminator_predictions.dense", "discriminator_predictions.dense_prediction"),
    ),
    "mpnet": Case("MPNet", MLM, ENCODER),
    "albert": Case("Albert", "ForPreTraining", {**ENCODER, "embedding_size": 12}),
    "modernbert alone": Case("ModernBert", "Model", {**ENCODER, "pad_token_id": 0, "local_attention": 4}, ("mlm",)),
    "t5 encoder": Case("T5", "EncoderModel", T5, ("mlm",)),
    "t5 tagger": Case("T5", "ForTokenClassification", T5, ("mlm",), ("classifier",)),
    "umt5 encoder": Case("UMT5", "EncoderModel", T5, ("mlm",)),
    "mt5": Case("MT5", WRITER, {**T5, "feed_forward_proj": "gated-gelu"}),
    "umt5": Case("UMT5", WRITER, {**T5, "feed_forward_proj": "gated-gelu"}),
    "bart classifier": Case(
        *("Bart", "ForSequenceClassification", BART, ()),
        ("classification_head.dense", "classification_head.out_proj"),
    ),
    "mbart": Case("MBart", WRITER, {**BART, "scale_embedding": True}),
    "marian": Case("Marian", "MTModel", {**MARIAN, "activation_function": "swish"}),
    "pegasus": Case("Pegasus", WRITER, {**BART, "scale_embedding": True, "activation_function": "relu"}),
    "m2m100": Case("M2M100", WRITER, BART),
}


class Pair:
    """One random model here and in transformers, and one ragged batch of texts, each padded to 10 tokens."""

    def __init__(self, case: Case, folder: Path):
        transformers.logging.set_verbosity_error()
        self.case = case
        config = getattr(transformers, f"{case.prefix}Config")(**case.config)
        self.theirs: Any = getattr(transformers, case.prefix + case.suffix)(config).eval()
        ragged.randomise(self.theirs)
        for module in self.theirs.modules():
            if hasattr(module, "create_weight"):  # positions that are not trained
                module.weight.data = module.create_weight()
        self.theirs.save_pretrained(folder)
        self.imported = import_folder(folder)
        self.pad = config.pad_token_id
        rng = np.random.default_rng(0)
        self.mask = np.arange(10) < np.array([10, 7])[:, None]
        self.tokens, self.targets = (np.where(self.mask, rng.integers(5, 80, (2, 10)), self.pad) for _ in range(2))
        self.writes = self.imported.config.architecture != "encoder"
        self.settings = write_config(
            self.imported.config,
            model_type=self.imported.settings["model_type"],
            token_ids={"pad_token_id": self.pad},
        )

    @property
    def body_only(self) -> bool:
        """Whether hidden states are compared, for want of a vocabulary projection."""
        return "mlm" in self.case.heads or self.case.suffix not in (MLM, WRITER, "MTModel", "ForPreTraining")

    def their_outputs(self, model: Any) -> torch.Tensor:
        """Logits, or hidden states, of every token."""
        inputs = {"input_ids": torch.tensor(self.tokens), "attention_mask": torch.tensor(self.mask).long()}
        if self.writes:
            inputs["decoder_input_ids"] = torch.tensor(self.targets)
        if self.body_only:
            body = getattr(model, "base_model", model)
            return (model.transformer.encoder if self.case.prefix == "T5" and body is not model else body)(
                **inputs
            ).last_hidden_state
        found = model(**inputs)
        return found.prediction_logits if "prediction_logits" in found else found.logits

    def our_outputs(self, module: Any) -> jax.Array:
        segments, columns = jnp.asarray(self.mask, jnp.int32), jnp.broadcast_to(jnp.arange(10)[None], (2, 10))
        if self.writes:
            hidden = module(module.encode(self.tokens, segments, columns), self.targets, segments, columns)
            return hidden if self.body_only else module.predict(hidden)
        hidden = module(self.tokens, segments, columns, jnp.zeros_like(columns))
        return hidden if self.body_only else module.mlm_logits(hidden, columns)


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return Pair(CASES[request.param], tmp_path / "theirs")


@pytest.mark.parametrize("pair", CASES, indirect=True)
def test_a_family_computes_what_transformers_computes(pair: Pair, tmp_path: Path) -> None:
    case, imported = pair.case, pair.imported
    assert (imported.fresh, imported.dropped) == (case.heads, case.dropped)

    # The sum of the outputs of real tokens, weighted at random, has a gradient for every weight.
    theirs = pair.their_outputs(pair.theirs)
    weights = np.random.default_rng(1).normal(size=theirs.shape).astype(np.float32) * pair.mask[:, :, None]
    (theirs * torch.tensor(weights)).sum().backward()
    model = models.build(imported.config)

    def weighted(params: models.Params) -> tuple[jax.Array, jax.Array]:
        outputs = pair.our_outputs(model.merge(params))
        return (outputs * weights).sum(), outputs

    (_, ours), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(imported.params)
    np.testing.assert_allclose(np.asarray(ours)[pair.mask], theirs.detach().numpy()[pair.mask], atol=1e-4, rtol=0)
    parameters = {name: each.grad for name, each in pair.theirs.named_parameters() if each.grad is not None}
    named = to_tensors(imported.config, gradients, pair.settings)
    largest = max(gradient.abs().max().item() for gradient in parameters.values())
    compared = 0
    for name, gradient in named.items():
        if (found := _same(parameters, name)) is not None:
            tolerance = 1e-4 * found.abs().max().item() + 1e-6 * largest
            np.testing.assert_allclose(gradient, found.numpy(), atol=tolerance, rtol=0, err_msg=name)
            compared += 1
    assert compared >= len(parameters) - 1  # untied, a bias that only repeats another has no gradient

    exported = tmp_path / "ours"
    export_folder(
        exported,
        imported.config,
        imported.params,
        model_type=imported.settings["model_type"],
        token_ids={"pad_token_id": pair.pad},
    )
    again = import_folder(exported)
    assert again.config == imported.config
    jax.tree.map(np.testing.assert_array_equal, again.params, imported.params)
    loaded, report = type(pair.theirs).from_pretrained(exported, output_loading_info=True)
    # Pegasus names the positions that it computes anew.
    missing = [name.rpartition(".")[0] for name in report["missing_keys"] if "embed_positions" not in name]
    assert {name for name in missing if not any(each.endswith(name) for each in case.dropped)} == set(), report
    with torch.no_grad():
        theirs_again = pair.their_outputs(loaded.eval()).numpy()
    np.testing.assert_allclose(theirs_again[pair.mask], theirs.detach().numpy()[pair.mask], atol=1e-6, rtol=0)


def _same(parameters: dict[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """The parameter of a name. A model without heads names its body without a prefix, or with another."""
    short = name.partition(".")[2]
    return next((parameters[each] for each in (name, short, f"transformer.{name}") if each in parameters), None)
