"""T5 and BART folders are converted without torch, to a working directory and back; old formats are read."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
import sentencepiece
from safetensors.numpy import load_file

from lm import checkpoint, families
from lm.config import Config, DataConfig, TrainConfig
from lm.errors import InputError
from lm.huggingface import export_folder, export_workdir, import_folder, import_workdir, read_config
from lm.huggingface.tokenizer import read_tokenizer
from lm.training.loop import train
from tests.huggingface.test_folder import assert_equal, random_params, rewrite
from tests.training.conftest import WORDS, make_corpus

SHAPE = {"vocab_size": 40, "d_model": 16, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2, "d_ff": 24}
T5 = families.t5(**SHAPE, head_dim=6)
T5_1_1 = families.t5_1_1(**SHAPE, head_dim=6)
BART = families.bart(**SHAPE, max_length=32, attention_dropout=0.0, mlp_dropout=0.0)
EMBEDDING = "shared.weight"


def exported(folder, config):
    export_folder(folder, config, random_params(config))
    return folder


@pytest.fixture
def t5(tmp_path):
    return exported(tmp_path / "t5", T5)


@pytest.fixture
def t5_1_1(tmp_path):
    return exported(tmp_path / "t5_1_1", T5_1_1)


@pytest.fixture
def bart(tmp_path):
    return exported(tmp_path / "bart", BART)


@pytest.mark.parametrize(
    "config",
    [
        T5,
        T5_1_1,
        dataclasses.replace(T5, tie_embeddings=False),
        dataclasses.replace(T5_1_1, tie_embeddings=True, activation="silu", num_decoder_layers=0),
        dataclasses.replace(T5, activation="gelu", relative_buckets=8, relative_max_distance=20),
        BART,
        dataclasses.replace(BART, activation="relu", mlp_dropout=0.2, init_std=0.1, max_length=24),
    ],
)
def test_import_inverts_export(tmp_path, config):
    imported = import_folder(exported(tmp_path / "model", config))
    assert imported.config == config
    assert imported.fresh == ()
    assert_equal(imported.params, random_params(config))


def test_depths_and_head_widths_left_open_come_back_as_what_they_mean(tmp_path):
    config = dataclasses.replace(BART, num_decoder_layers=0)
    assert import_folder(exported(tmp_path / "bart", config)).config.num_decoder_layers == 3
    config = dataclasses.replace(T5, head_dim=0)
    assert import_folder(exported(tmp_path / "t5", config)).config.head_dim == 8


def test_settings_left_out_take_the_defaults_of_transformers():
    t5, bart = read_config({"model_type": "t5"}), read_config({"model_type": "bart"})
    assert (t5.vocab_size, t5.decoder_depth, t5.width_per_head, t5.activation, t5.gated) == (
        32128,
        6,
        64,
        "relu",
        False,
    )
    assert (t5.tie_embeddings, t5.scale_logits, t5.mlp_dropout) == (True, True, 0.1)
    assert (bart.vocab_size, bart.d_model, bart.decoder_depth, bart.max_length) == (50265, 1024, 12, 1024)


def test_the_first_t5_as_transformers_4_saved_it(t5):
    """No word on tying, the embedding four times, and a table that was never read."""
    tensors = load_file(t5 / "model.safetensors")
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors |= {**dict.fromkeys(copies, tensors[EMBEDDING]), unread: np.zeros((32, 2), np.float32)}
    rewrite(t5, settings={"tie_word_embeddings": None, "num_decoder_layers": 2}, tensors=tensors)
    assert import_folder(t5).config == T5
    assert_equal(import_folder(t5).params, random_params(T5))
    tensors["encoder.embed_tokens.weight"] = tensors.pop(EMBEDDING)
    del tensors["lm_head.weight"], tensors["decoder.embed_tokens.weight"]
    rewrite(t5, tensors=tensors)
    assert_equal(import_folder(t5).params, random_params(T5))


def test_a_later_t5_as_transformers_5_saves_it(t5_1_1):
    """It calls every T5 tied, whatever was saved, and names the scale."""
    rewrite(t5_1_1, settings={"tie_word_embeddings": True, "scale_decoder_outputs": False})
    assert import_folder(t5_1_1).config == T5_1_1
    assert_equal(import_folder(t5_1_1).params, random_params(T5_1_1))


def test_an_untied_t5_may_have_equal_tables(t5_1_1):
    """As transformers 4 reads it: false means two tables, of whatever values."""
    tensors = load_file(t5_1_1 / "model.safetensors")
    rewrite(t5_1_1, tensors={**tensors, "lm_head.weight": tensors[EMBEDDING]})
    assert import_folder(t5_1_1).config == T5_1_1


def test_bart_without_its_head_has_a_bias_of_zero(bart):
    """A plain BartModel: no prefix, no bias; and copies of the embedding."""
    tensors = load_file(bart / "model.safetensors")
    plain = {name.removeprefix("model."): array for name, array in tensors.items() if name != "final_logits_bias"}
    plain |= {f"{side}.embed_tokens.weight": plain[EMBEDDING] for side in ("encoder", "decoder")}
    rewrite(bart, tensors=plain)
    expected = random_params(BART)
    expected["logits"]["bias"] = np.zeros(40, np.float32)
    imported = import_folder(bart)
    assert imported.fresh == ()
    assert_equal(imported.params, expected)


def test_rows_that_no_position_reads_are_dropped(bart):
    tensors = load_file(bart / "model.safetensors")
    positions = tensors["model.decoder.embed_positions.weight"]
    assert positions.shape == (34, 16)
    positions[:2] = 7
    rewrite(bart, tensors=tensors)
    assert_equal(import_folder(bart).params, random_params(BART))


def test_only_a_bias_can_keep_padding_from_being_predicted(bart, t5):
    imported = import_folder(bart, vocab_multiple=64)
    assert imported.config.vocab_size == 64
    assert imported.params["encoder"]["embedding"]["token"].shape == (64, 16)
    assert (imported.params["logits"]["bias"][40:] == -1e4).all()
    with pytest.raises(InputError, match=r"vocabulary of 40 cannot be padded.*accepted: a --vocab_multiple that"):
        import_folder(t5, vocab_multiple=64)


@pytest.mark.parametrize(
    ("folder", "settings", "message"),
    [
        ("t5", {"decoder_start_token_id": 40}, "decoder_start_token_id is 40, but the model has 40 tokens"),
        ("t5", {"feed_forward_proj": "gated-mish"}, "activation 'mish'; accepted: gelu"),
        ("t5", {"num_layers": 2}, r"unexpected encoder.block.2.*the 2 \+ 2 layers that config.json"),
        ("t5", {"num_decoder_layers": None}, r"lacks decoder.block.2.*the 3 \+ 3 layers"),
        ("bart", {"tie_word_embeddings": False}, "tie_word_embeddings False; accepted: True"),
        ("bart", {"decoder_attention_heads": 4}, "different decoder_attention_heads and encoder_attention_heads"),
        ("bart", {"decoder_ffn_dim": 48}, "different decoder_ffn_dim and encoder_ffn_dim"),
        ("bart", {"max_position_embeddings": 30}, r"embed_positions.weight has shape \(34, 16\), but .* \(32, 16\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(request, folder, settings, message):
    folder = request.getfixturevalue(folder)
    rewrite(folder, settings=settings)
    with pytest.raises(InputError, match=message):
        import_folder(folder)


def test_stacks_with_embeddings_of_their_own_are_refused(t5):
    tensors = load_file(t5 / "model.safetensors")
    rewrite(t5, tensors={**tensors, "decoder.embed_tokens.weight": tensors[EMBEDDING] + 1})
    with pytest.raises(InputError, match=r"embed_tokens.weight differs from shared.weight; accepted: one token"):
        import_folder(t5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(T5, attention_scale=True), "the nearest, t5, needs model.attention_scale=False"),
        (dataclasses.replace(T5, final_dropout=False), "t5, needs model.final_dropout=True"),
        (dataclasses.replace(T5_1_1, activation="gelu"), "t5, needs model.activation='gelu_tanh'"),
        (dataclasses.replace(T5, attention_dropout=0.0), "model.dropout and model.attention_dropout to be equal"),
        (dataclasses.replace(BART, tie_embeddings=False), "bart, needs model.tie_embeddings=True"),
        (dataclasses.replace(BART, head_dim=4), r"bart, needs model.head_dim=8 \(not 4\)"),
    ],
)
def test_a_model_of_no_family_is_not_exported(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        export_folder(tmp_path / "model", config, {})


# --- working directories


def t5_tokenizer(folder):
    """A `spiece.model`."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS), *WORDS, *map("word{} number{}".format, range(300), range(300))]),
        model_writer=buffer,
        vocab_size=400,
        hard_vocab_limit=False,
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"},
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(buffer.getvalue())
    return folder / "spiece.model"


def bart_tokenizer(folder):
    """A byte-level `tokenizer.json`, its vocabulary filled up."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *letters, *map("piece{}".format, range(200)), "<mask>"]
    bpe = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    bpe.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


CASES = {
    "t5": (T5_1_1, t5_tokenizer, {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}),
    "bart": (BART, bart_tokenizer, {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}),
}


START = {"t5": {"decoder_start_token_id": 0}, "bart": {"decoder_start_token_id": 2, "forced_bos_token_id": 0}}
SAID = {
    "t5": "max_length 19, num_beams 2, early_stopping true, bad_words_ids [[7]]",
    "bart": "forced_bos_token_id 0, max_length 18, num_beams 2, early_stopping true, bad_words_ids [[7]]",
}


@pytest.mark.parametrize("family", CASES)
def test_to_a_working_directory_a_run_and_back(tmp_path, family):
    model, make_tokenizer, token_ids = CASES[family]
    model = dataclasses.replace(model, vocab_size=512, max_length=64)
    tokenizer = make_tokenizer(tmp_path)
    export_folder(tmp_path / "there", model, random_params(model), tokenizer=[tokenizer])
    settings = {"num_beams": 2, "max_length": 20, "bad_words_ids": [[7]], "early_stopping": True, **START[family]}
    (tmp_path / "there/generation_config.json").write_text(json.dumps(settings))
    imported = import_workdir(tmp_path / "there", tmp_path / "imported")
    assert imported.said == ["generation as the folder says: " + SAID[family]]
    config = checkpoint.read_config(tmp_path / "imported")
    if family == "t5":
        # Nothing in a T5 folder limits the length; ours has a default.
        assert (config.objective.name, config.data.begin_with_cls) == ("span_corruption", False)
        assert (config.data.seq_length, config.data.target_length) == (512, 114)
    else:
        assert (config.objective.name, config.data.begin_with_cls) == ("infilling", True)
        assert (config.data.seq_length, config.data.target_length) == (64, 64)

    said = export_workdir(str(tmp_path / "imported"), tmp_path / "back")
    untied = ["transformers 5 warns that it does not tie shared.weight to lm_head.weight; this model has both"]
    assert said == (untied if family == "t5" else [])
    there, back = import_folder(tmp_path / "there"), import_folder(tmp_path / "back")
    assert there.config == back.config
    assert there.generation is not None
    assert there.generation.config == config.generation
    assert settings.items() <= json.loads((tmp_path / "back/generation_config.json").read_text()).items()
    assert_equal(there.params, back.params)
    texts = ["<s> one two </s>", "drei  Häuser", "你好"]
    ids = [[part.tolist() for part in read_tokenizer(tmp_path / name).encode(texts)] for name in ("there", "back")]
    assert ids[0] == ids[1]
    assert any(ids[0])
    settings = json.loads((tmp_path / "back/config.json").read_text())
    assert token_ids.items() <= settings.items()
    assert ("bos_token_id" in settings, settings.get("forced_eos_token_id")) == {
        "t5": (False, None),
        "bart": (True, 2),
    }[family]

    data = {"source": "text", "path": str(make_corpus(tmp_path / "corpus.txt")), "heldout_fraction": 0.0}
    data |= {"tokenizer": str(tmp_path / "imported"), "seq_length": 64, "target_length": 64, "batch_size": 8}
    config.data = DataConfig(**{**dataclasses.asdict(config.data), **data})
    config.train = TrainConfig(steps=1)
    config.optim.learning_rate = 0.0
    config.checkpoint.init_from = str(tmp_path / "imported")
    metrics = train(Config(**vars(config)), str(tmp_path / "run"))
    assert np.isfinite(metrics["loss"])
    trained = checkpoint.load_params(*checkpoint.locate(str(tmp_path / "run")))
    assert_equal(jax.tree.map(np.asarray, trained), there.params)
