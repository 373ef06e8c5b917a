"""Folders are converted without torch: round trips are exact, old formats are read, and refusals name the fault."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm import families, models
from lm.config import ModelConfig
from lm.errors import InputError
from lm.huggingface import export_folder, import_folder, read_config, to_tensors, write_config

SMALL = {"vocab_size": 40, "d_model": 16, "num_layers": 3, "num_heads": 2, "d_ff": 24, "max_length": 32}
BERT = families.bert(**SMALL)
MODERNBERT = families.modernbert(**SMALL, global_every=2, window=4)


def random_params(config: ModelConfig) -> models.Params:
    """Every parameter random, but the norm of layer 0 that ModernBERT does not have."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(models.build(config).init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
    if not config.first_attention_norm:
        params["encoder"]["layers"]["attention_norm"]["scale"][0] = 1
        if config.norm_bias:
            params["encoder"]["layers"]["attention_norm"]["bias"][0] = 0
    return params


def assert_equal(left: models.Params, right: models.Params) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def rewrite(folder, settings=None, tensors=None):
    """Replaces what an exported folder says; a setting of None is left out."""
    if settings is not None:
        written = {**json.loads((folder / "config.json").read_text()), **settings}
        written = {name: value for name, value in written.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(written))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def bert(tmp_path):
    export_folder(tmp_path / "bert", BERT, random_params(BERT))
    return tmp_path / "bert"


@pytest.fixture
def modernbert(tmp_path):
    export_folder(tmp_path / "modernbert", MODERNBERT, random_params(MODERNBERT))
    return tmp_path / "modernbert"


@pytest.mark.parametrize(
    "config",
    [
        BERT,
        dataclasses.replace(BERT, tie_embeddings=False, activation="gelu", head_activation="gelu"),
        dataclasses.replace(BERT, pooler=True, dropout=0.2, token_types=3, norm_eps=1e-7),
        MODERNBERT,
        dataclasses.replace(MODERNBERT, tie_embeddings=False, norm_bias=True, attention_bias=True, mlp_bias=True),
        dataclasses.replace(MODERNBERT, head_bias=True, head_activation="silu", global_every=1, dropout=0.1),
    ],
)
def test_import_inverts_export(tmp_path, config):
    params = random_params(config)
    export_folder(tmp_path / "model", config, params)
    imported = import_folder(tmp_path / "model")
    assert imported.config == config
    assert_equal(imported.params, params)
    assert imported.fresh == ()
    assert imported.sentence_encoder is None


def test_a_fused_projection_is_query_then_key_then_value():
    params = random_params(MODERNBERT)
    fused = to_tensors(MODERNBERT, params)["model.layers.1.attn.Wqkv.weight"]
    key = params["encoder"]["layers"]["attention"]["key"]["kernel"][1]
    np.testing.assert_array_equal(fused[16:32], key.reshape(16, 16).T)


def test_missing_heads_are_initialised_and_named(bert):
    """A plain BertModel: no prefix, no heads."""
    tensors = load_file(bert / "model.safetensors")
    rewrite(bert, tensors={name[5:]: array for name, array in tensors.items() if name.startswith("bert.e")})
    imported = import_folder(bert, seed=3)
    initial = jax.jit(models.build(BERT).init)(jax.random.key(3))
    expected = random_params(BERT)
    assert imported.fresh == ("mlm", "pooler", "nsp")
    assert_equal(imported.params, {**expected, **{head: initial[head] for head in imported.fresh}})


def test_the_head_of_another_task_is_dropped_and_named(bert):
    tensors = load_file(bert / "model.safetensors")
    rewrite(bert, tensors={**tensors, "classifier.weight": np.zeros((2, 16), np.float32)})
    imported = import_folder(bert)
    assert imported.dropped == ("classifier",)
    assert_equal(imported.params, random_params(BERT))


def test_names_that_tensorflow_left_behind_are_understood(bert):
    tensors = load_file(bert / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in tensors.items()
    }
    renamed["bert.embeddings.position_ids"] = np.arange(32)[None]
    renamed["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    renamed["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    rewrite(bert, tensors=renamed)
    assert_equal(import_folder(bert).params, random_params(BERT))


def test_shards_are_read_through_their_index(bert):
    tensors = load_file(bert / "model.safetensors")
    weight_map = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, bert / shard)
    (bert / "model.safetensors").unlink()
    (bert / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_equal(import_folder(bert).params, random_params(BERT))


def test_half_precision_weights_become_float32(bert):
    tensors = load_file(bert / "model.safetensors")
    rewrite(bert, tensors={name: array.astype(jnp.bfloat16) for name, array in tensors.items()})
    halved = jax.tree.map(lambda array: array.astype(jnp.bfloat16).astype(np.float32), random_params(BERT))
    assert_equal(import_folder(bert).params, halved)


def test_a_padded_vocabulary_is_never_predicted(bert):
    plain, padded = import_folder(bert), import_folder(bert, vocab_multiple=64)
    assert padded.config == dataclasses.replace(BERT, vocab_size=64)
    hidden = np.random.default_rng(1).normal(size=(1, 5, 16)).astype(np.float32)
    positions = np.arange(5)[None]
    probabilities = [
        jax.nn.softmax(models.build(each.config).merge(each.params).mlm_logits(hidden, positions))
        for each in (plain, padded)
    ]
    np.testing.assert_allclose(probabilities[1][..., :40], probabilities[0], rtol=1e-5)
    assert not probabilities[1][..., 40:].any()


def test_both_spellings_of_modernberts_attention_agree():
    written = write_config(MODERNBERT)
    new = {
        name: value
        for name, value in written.items()
        if name not in ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
    }
    old = {name: value for name, value in written.items() if name not in ("layer_types", "rope_parameters")}
    assert read_config(new) == read_config(old) == MODERNBERT


def test_settings_left_out_take_the_defaults_of_transformers():
    assert read_config({"model_type": "bert"}) == ModelConfig(
        vocab_size=30522, d_model=768, num_layers=12, num_heads=12, d_ff=3072
    )
    modernbert = read_config({"model_type": "modernbert"})
    assert (modernbert.global_every, modernbert.window, modernbert.rope_theta) == (3, 64, 160_000.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'; accepted: bert, modernbert, t5, bart, roberta"),
        ({"model_type": None}, "model_type None; accepted"),
        ({"hidden_act": "mish"}, "hidden_act with the activation 'mish'; accepted: gelu, gelu_new"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'; accepted: 'absolute'"),
        ({"num_hidden_layers": 4}, r"lacks bert.encoder.layer.3.* and 13 more"),
        ({"num_hidden_layers": 2}, r"has the unexpected bert.encoder.layer.2.*accepted: the 2 layers"),
        ({"vocab_size": 50}, r"word_embeddings.weight has shape \(40, 16\), but config.json implies \(50, 16\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(bert, settings, message):
    rewrite(bert, settings=settings)
    with pytest.raises(InputError, match=message):
        import_folder(bert)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_types": ["full_attention", "full_attention", "sliding_attention"]}, "irregular layer_types"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type 'yarn'; accepted: 'default'"),
        ({"mlp_dropout": 0.3}, "different mlp_dropout and embedding_dropout"),
        ({"decoder_bias": False}, "decoder_bias False; accepted: True"),
    ],
)
def test_modernberts_that_differ_are_refused(modernbert, settings, message):
    rewrite(modernbert, settings=settings)
    with pytest.raises(InputError, match=message):
        import_folder(modernbert)


def test_weights_that_do_not_fit_are_refused(bert):
    tensors = load_file(bert / "model.safetensors")
    rewrite(bert, tensors={name: array for name, array in tensors.items() if "transform.dense" not in name})
    with pytest.raises(InputError, match=r"lacks cls.predictions.transform.dense.bias, .*weight; accepted"):
        import_folder(bert)
    rewrite(bert, tensors={**tensors, "bert.adapter.weight": np.zeros((2, 16), np.float32)})
    with pytest.raises(InputError, match=r"has the unexpected bert.adapter.weight"):
        import_folder(bert)
    untied = {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"] + 1}
    rewrite(bert, tensors={**tensors, **untied})
    with pytest.raises(InputError, match=r"decoder.weight differs from .*set tie_word_embeddings to false"):
        import_folder(bert)


def test_folders_without_readable_weights_are_refused(bert, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: config.json does not exist"):
        import_folder(tmp_path / "nowhere")
    (bert / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"model.safetensors cannot be read as safetensors"):
        import_folder(bert)
    shutil.move(bert / "model.safetensors", bert / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin cannot be read as PyTorch weights"):
        import_folder(bert)
    (bert / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"there is no file with weights; accepted: model.safetensors, .*bin.index"):
        import_folder(bert)
    (bert / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json cannot be read as JSON"):
        import_folder(bert)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(BERT, norm="rmsnorm"), r"bert, needs model.norm='layernorm' \(not 'rmsnorm'\)"),
        (dataclasses.replace(BERT, first_attention_norm=False), "bert, needs model.first_attention_norm=True"),
        (dataclasses.replace(BERT, head_dim=4), r"needs model.head_dim=8 \(not 4\)"),
        (dataclasses.replace(BERT, head_activation="relu"), "needs model.activation and model.head_activation to be"),
        (dataclasses.replace(BERT, share_layers=True), "model.share_layers=False"),
        (dataclasses.replace(MODERNBERT, token_types=2), r"modernbert, needs model.token_types=0 \(not 2\)"),
    ],
)
def test_a_model_of_no_family_is_not_exported(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        export_folder(tmp_path / "model", config, {})
    assert not (tmp_path / "model").exists()


def test_export_overwrites_no_model(bert):
    with pytest.raises(InputError, match=r"already holds a config.json"):
        export_folder(bert, BERT, random_params(BERT))


def test_export_copies_the_tokenizer_and_its_ids(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    folder = tmp_path / "model"
    export_folder(folder, BERT, random_params(BERT), tokenizer=[tmp_path / "vocab.txt"], token_ids={"cls_token_id": 7})
    assert import_folder(folder).tokenizer == (folder / "vocab.txt",)
    settings = json.loads((folder / "config.json").read_text())
    assert (settings["pad_token_id"], settings["cls_token_id"]) == (0, 7)
