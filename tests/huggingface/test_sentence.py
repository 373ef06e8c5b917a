"""The files of sentence-transformers, in the forms of its versions 2 to 6, are read, refused by name and written."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from lm.data import sentence_encoder
from lm.data.sentence_encoder import Dense, Normalize, SentenceEncoder, lowered
from lm.errors import InputError
from lm.huggingface.sentence import read_sentence_encoder, transformer_folder, write_sentence_encoder

OLD, NEW = "sentence_transformers.models", "sentence_transformers.sentence_transformer.modules.pooling"


def write(folder, files: dict):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def modules(*others: str, types: str = OLD) -> list[dict]:
    paths = {"Transformer": "", **{kind: f"{number}_{kind}" for number, kind in enumerate(("Pooling", *others), 1)}}
    return [{"idx": 0, "name": "0", "path": path, "type": f"{types}.{kind}"} for kind, path in paths.items()]


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ("mean",)),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_lasttoken": True}, ("weightedmean", "lasttoken")),
        ({"pooling_mode": "max", "pooling_mode_cls_token": True}, ("max",)),
        ({"pooling_mode": ["mean", "cls"], "include_prompt": False}, ("mean", "cls")),
        ({}, ("mean",)),
    ],
)
def test_pooling_is_read_in_every_form(tmp_path, pooling, expected):
    write(tmp_path, {"modules.json": modules("Normalize", types=NEW), "1_Pooling/config.json": pooling})
    found = read_sentence_encoder(tmp_path, longest=None)
    assert found == SentenceEncoder(
        expected, include_prompt=pooling.get("include_prompt", True), steps=(Normalize(),), max_length=None
    )
    assert read_sentence_encoder(tmp_path / "1_Pooling", None) is None


@pytest.mark.parametrize(
    ("own", "tokenizer", "longest", "expected"),
    [
        (24, 512, 64, 24),
        (None, 48, 64, 48),
        (None, 512, 64, 64),
        (None, 10**30, 64, 64),
        (None, 10**30, None, None),
        (None, None, None, None),
    ],
)
def test_the_length_has_three_sources(tmp_path, own, tokenizer, longest, expected):
    files = {"0_Transformer/tokenizer_config.json": {"model_max_length": tokenizer}, "1_Pooling/config.json": {}}
    listed = modules()
    listed[0]["path"] = "0_Transformer"  # where old versions put it
    write(
        tmp_path,
        {"modules.json": listed, "0_Transformer/sentence_roberta_config.json": {"max_seq_length": own}, **files},
    )
    assert transformer_folder(tmp_path) == tmp_path / "0_Transformer"
    found = read_sentence_encoder(tmp_path, longest)
    assert found is not None
    assert found.max_length == expected


def test_everything_there_and_back(tmp_path):
    rng = np.random.default_rng(0)
    array = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    encoder = SentenceEncoder(
        pooling=("mean", "cls"),
        include_prompt=False,
        steps=(
            Dense(array(6, 8), array(6), "gelu", is_residual=True, residual_ED=array(6, 8)),
            Normalize(),
            Dense(array(6, 6), activation="identity", is_residual=True),
        ),
        max_length=24,
        lower_case=True,
        prompts={"query": "find: ", "document": ""},
        default_prompt_name="query",
        similarity="dot",
    )
    sentence_encoder.write(str(tmp_path), encoder)
    (tmp_path / "folder").mkdir()
    write_sentence_encoder(tmp_path / "folder", encoder, 4)
    vector = array(8)
    for found in (sentence_encoder.read(str(tmp_path)), read_sentence_encoder(tmp_path / "folder", 64)):
        assert found is not None
        for name in ("pooling", "include_prompt", "max_length", "lower_case", "prompts", "default_prompt_name"):
            assert getattr(found, name) == getattr(encoder, name)
        assert found.similarity == "dot"
        np.testing.assert_array_equal(found.finish(vector), encoder.finish(vector))


def test_other_poolings_and_lengths_of_vectors_can_be_asked_for():
    encoder = SentenceEncoder(("mean", "cls"), steps=(Normalize(),))
    assert encoder.changed("max", normalize=False) == SentenceEncoder(("max",))
    assert encoder.changed(None, normalize=True) == encoder
    dense = SentenceEncoder(("mean", "cls"), steps=(Dense(np.eye(2)),))
    with pytest.raises(InputError, match="this model's dense layer needs mean and cls"):
        dense.changed("max", None)
    with pytest.raises(InputError, match="pooling is 'median'; accepted: cls, max"):
        encoder.changed("median", None)


def test_special_tokens_keep_their_case():
    assert lowered("The [MASK] ÄΣ [SEP]X", ["[SEP]", "[MASK]"]) == "the [MASK] äσ [SEP]x"


def test_a_dense_layer_without_weights_is_refused(tmp_path):
    dense = {"in_features": 4, "out_features": 2}
    write(tmp_path, {"modules.json": modules("Dense"), "1_Pooling/config.json": {}, "2_Dense/config.json": dense})
    with pytest.raises(InputError, match="2_Dense: there is no file with weights; accepted: model"):
        read_sentence_encoder(tmp_path, 64)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": "{"}, "modules.json cannot be read as JSON"),
        ({"modules.json": {"a": 1}}, "modules.json is no list of modules"),
        ({"modules.json": modules("LSTM")}, "modules.json lists Transformer, Pooling, LSTM; accepted"),
        ({"modules.json": [{"type": "x.Transformer", "path": "../other"}]}, "accepted: a path inside the folder"),
        ({"1_Pooling/config.json": {"pooling_mode": "median"}}, r"pooling_mode \['median'\]; accepted: cls, max"),
        ({"1_Pooling/config.json": {"pooling_mode_new": True}}, "1_Pooling/config.json has pooling_mode_new"),
        ({"1_Pooling/config.json": []}, "1_Pooling/config.json holds list; accepted: a JSON object"),
        ({"sentence_bert_config.json": {"max_seq_length": "9"}}, "the longest text is '9'"),
        ({"sentence_bert_config.json": {"query_expansion": {"length": 9}}}, "query_expansion {'length': 9}, which is"),
        ({"config_sentence_transformers.json": {"prompts": [1]}}, r"prompts \[1\]; accepted: an object of texts"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "q"}}, "default_prompt_name 'q', which is not"),
        (
            {"config_sentence_transformers.json": {"similarity_fn_name": "x"}},
            "similarity_fn_name 'x'; accepted: cosine",
        ),
        ({"2_Dense/config.json": {"activation_function": "my.Own"}}, "activation_function 'my.Own'; accepted: torch"),
        ({"2_Dense/config.json": {"in_features": 4, "out_features": 3}}, "2_Dense holds .*; its config.json asks for"),
        ({"2_Dense/config.json": {"module_input_name": "token_embeddings"}}, "module_input_name 'token_embeddings'"),
    ],
)
def test_what_we_do_not_do_is_refused_by_name(tmp_path, files, message):
    kinds = ["Dense"] if any("Dense" in name for name in files) else []
    write(tmp_path, {"modules.json": modules(*kinds), "1_Pooling/config.json": {}, **files})
    if kinds:
        save_file({"linear.weight": np.ones((2, 4), np.float32)}, tmp_path / "2_Dense/model.safetensors")
    with pytest.raises(InputError, match=message):
        read_sentence_encoder(tmp_path, 64)
