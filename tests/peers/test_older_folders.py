"""Folders as transformers 4 wrote them give the ids, the numbers and the settings that transformers 5 reads in them."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.activations import ACT2FN

from lm import models
from lm.huggingface import family, import_folder
from lm.huggingface.tokenizer import read_tokenizer
from lm.ops.activation import ACTIVATIONS
from tests.peers import ragged
from tests.peers.test_families import BART, ENCODER, MARIAN, T5
from tests.peers.tokenizer_folders import LINES, hard_texts, model_type, vocabularies, write

pytestmark = pytest.mark.peers

TEXTS = [*LINES[:5], *hard_texts()[::4], "a<hl>b <hl> c", "NEW x <mask> [MASK] </s>"]
# What config.json held beside the model. The type of the weights had another key.
OLD: dict[str, Any] = {
    **{"transformers_version": "4.11.3", "gradient_checkpointing": False, "use_cache": True, "_name_or_path": "/tmp/x"},
    **{"output_past": True, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}},
    "task_specific_params": {"summarization": {"num_beams": 2, "prefix": "summarize: "}},
}
GENERATION: dict[str, Any] = {
    **{"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "max_length": 14, "min_length": 5},
    "early_stopping": True,
}
ADDED = {"<hl>": 950, "NEW": 951}


def described(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, **flags}


TOKENIZER = {"model_max_length": 32, "special_tokens_map_file": None, "name_or_path": "/tmp/x"}
MAP = {"mask_token": described("<mask>", lstrip=True), "pad_token": described("<pad>"), "eos_token": "</s>"}


def of_bert(tensors: dict[str, torch.Tensor]) -> None:
    tensors["bert.embeddings.position_ids"] = torch.arange(24)[None]


def of_bart(tensors: dict[str, torch.Tensor]) -> None:
    shared = tensors["model.shared.weight"]
    tensors |= {f"model.{side}.embed_tokens.weight": shared for side in ("encoder", "decoder")}
    tensors |= {f"model.{side}.version": torch.tensor([3.0]) for side in ("encoder", "decoder")}


def of_t5(tensors: dict[str, torch.Tensor]) -> None:
    tensors |= {f"{side}.embed_tokens.weight": tensors["shared.weight"] for side in ("encoder", "decoder")}


# Family: class, config.json, tokenizer's files, what the state has beside today's names.
FOLDERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], Callable[[dict[str, torch.Tensor]], None]]] = {
    "bert": (
        "BertForMaskedLM",
        {**ENCODER, "position_embedding_type": "absolute", "architectures": ["BertForMaskedLM"]},
        {
            "tokenizer_config.json": {**TOKENIZER, "do_lower_case": False, "tokenizer_class": "BertTokenizer"},
            "special_tokens_map.json": {"mask_token": "[MASK]", "additional_special_tokens": ["<hl>"]},
            "added_tokens.json": ADDED,
        },
        of_bert,
    ),
    "xlm-roberta": (
        "XLMRobertaForMaskedLM",
        {**ENCODER, "torch_dtype": "float16", "pad_token_id": 1, "type_vocab_size": 1},
        {"tokenizer_config.json": TOKENIZER, "special_tokens_map.json": MAP},
        lambda tensors: tensors.update({"roberta.embeddings.position_ids": torch.arange(24)[None]}),
    ),
    "bart": (
        "BartForConditionalGeneration",
        {**BART, **GENERATION, "forced_bos_token_id": 0, "forced_eos_token_id": 2, "add_bias_logits": False},
        {"tokenizer_config.json": TOKENIZER, "special_tokens_map.json": MAP, "added_tokens.json": ADDED},
        of_bart,
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {**T5, "n_positions": 512, "repetition_penalty": 1.2, "num_beams": 2},
        {"special_tokens_map.json": {**MAP, "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)]}},
        of_t5,
    ),
    "mbart": (
        "MBartForConditionalGeneration",
        {**BART, "scale_embedding": True, "decoder_start_token_id": 7, "max_length": 12, "normalize_before": True},
        {"tokenizer_config.json": {**TOKENIZER, "src_lang": "ro_RO"}, "special_tokens_map.json": MAP},
        of_bart,
    ),
    "marian": (
        "MarianMTModel",
        {**MARIAN, **GENERATION, "bad_words_ids": [[89]], "forced_eos_token_id": 0, "eos_token_id": 0},
        {"tokenizer_config.json": {"source_lang": "en", "target_lang": "fr"}},
        of_bart,
    ),
}


def make_folder(family: str, folder: Path) -> None:
    name, settings, files, old_names = FOLDERS[family]
    write(folder, vocabularies()[family], family, files)
    torch.manual_seed(0)
    given = {key: value for key, value in settings.items() if key not in {*GENERATION, "torch_dtype", "bad_words_ids"}}
    given.pop("repetition_penalty", None)
    config = getattr(transformers, name).config_class(**given)
    model = getattr(transformers, name)(config)
    ragged.randomise(model)
    for module in model.modules():
        if hasattr(module, "create_weight"):  # positions that are not trained
            module.weight.data = module.create_weight()
    tensors = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    old_names(tensors)
    if settings.get("torch_dtype") == "float16":
        tensors = {key: each.half() if each.is_floating_point() else each for key, each in tensors.items()}
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=family != "t5")
    ids = {key: value for key, value in config.to_dict().items() if key.endswith("_token_id") and value is not None}
    content = {"torch_dtype": "float32", **OLD, "model_type": model_type(family), "architectures": [name], **ids}
    (folder / "config.json").write_text(json.dumps(content | settings))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_version_4_is_read(name: str, tmp_path: Path) -> None:
    transformers.logging.set_verbosity_error()
    make_folder(name, tmp_path / "folder")
    folder = tmp_path / "folder"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Marian's asks for a package that normalises punctuation
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    own = read_tokenizer(folder)
    for text, ids, found in zip(TEXTS, tokenizer(TEXTS)["input_ids"], own.encode(TEXTS), strict=True):
        assert own.frame(1).around([found])[0].tolist() == ids, text

    imported = import_folder(folder)
    writes = imported.config.architecture != "encoder"
    kind = transformers.AutoModelForSeq2SeqLM if writes else transformers.AutoModelForMaskedLM
    theirs: Any = kind.from_pretrained(folder, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(5, 80, (2, 2, 9))
    inputs = {"input_ids": torch.tensor(tokens)} | ({"decoder_input_ids": torch.tensor(targets)} if writes else {})
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()
    ones, columns = jnp.ones((2, 9), jnp.int32), jnp.broadcast_to(jnp.arange(9)[None], (2, 9))

    def compute(params: models.Params) -> jax.Array:
        module = models.build(imported.config).merge(params)
        if writes:
            return module.predict(module(module.encode(tokens, ones, columns), targets, ones, columns))
        return module.mlm_logits(module(tokens, ones, columns, jnp.zeros_like(columns)), columns)

    np.testing.assert_allclose(jax.jit(compute)(imported.params), expected, atol=1e-4, rtol=0)
    if writes:
        assert imported.generation is not None
        assert_settings(imported.generation.config, theirs.generation_config)


def assert_settings(ours: Any, theirs: Any) -> None:
    """Theirs count the start token and a forced first token in their lengths."""
    forced = int(theirs.forced_bos_token_id is not None)
    for name, default in (
        ("num_beams", 1),
        ("length_penalty", 1),
        ("no_repeat_ngram_size", 0),
        ("repetition_penalty", 1),
    ):
        assert getattr(ours, name) == (getattr(theirs, name) or default), name
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        assert getattr(ours, name) == (-1 if getattr(theirs, name) is None else getattr(theirs, name)), name
    assert ours.decoder_start_token_id == theirs.decoder_start_token_id
    assert (ours.early_stopping == "true") is (theirs.early_stopping is True)
    if theirs.max_length is not None:
        assert ours.max_length == theirs.max_length - 1 - forced
    if theirs.min_length:
        assert ours.min_length == theirs.min_length - forced
    bad = [word for word in theirs.bad_words_ids or [] if word != [theirs.eos_token_id]]
    assert ours.bad_words_ids == bad


def test_every_name_of_an_activation_has_its_meaning() -> None:
    values = np.linspace(-6, 6, 97, dtype=np.float32)
    for name, ours in family._ACTIVATIONS.items():
        expected = ACT2FN[name](torch.tensor(values)).numpy()
        np.testing.assert_allclose(ACTIVATIONS[ours](jnp.asarray(values)), expected, atol=2e-6, rtol=0, err_msg=name)
