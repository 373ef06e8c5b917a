"""BART (Lewis et al., 2020) and its relatives as transformers writes them: mBART, Marian, Pegasus, M2M-100 and NLLB."""

from lm import families
from lm.config import ModelConfig
from lm.huggingface.family import (
    Family,
    Fields,
    Setting,
    Weight,
    activation,
    linear,
    norm,
    rate,
    table,
)

# The number of unused rows at the top of the position tables of BART and mBART.
_OFFSET = 2
# The published size of BART, which every relative has where config.json says nothing.
_LARGE = {"vocab_size": 50_265, "d_model": 1024, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 16}
_RATES = {"d_ff": 4096, "attention_dropout": 0.0, "mlp_dropout": 0.0}

_SETTINGS = (
    Setting("vocab_size", "vocab_size"),
    Setting("d_model", "d_model"),
    Setting("num_layers", "encoder_layers"),
    Setting("num_decoder_layers", "decoder_layers"),
    Setting("num_heads", "encoder_attention_heads"),
    Setting("num_heads", "decoder_attention_heads"),
    Setting("d_ff", "encoder_ffn_dim"),
    Setting("d_ff", "decoder_ffn_dim"),
    activation("activation", "activation_function"),
    Setting("max_length", "max_position_embeddings"),
    Setting("scale_embedding", "scale_embedding"),
    Setting("init_std", "init_std"),
    rate("dropout", "dropout"),
    rate("attention_dropout", "attention_dropout"),
    rate("mlp_dropout", "activation_dropout"),
)


def _attention(theirs: str, ours: str) -> tuple[Weight, ...]:
    return (
        *linear(f"{theirs}.q_proj", f"{ours}/query"),
        *linear(f"{theirs}.k_proj", f"{ours}/key"),
        *linear(f"{theirs}.v_proj", f"{ours}/value"),
        *linear(f"{theirs}.out_proj", f"{ours}/out", inputs=2),
        *norm(f"{theirs}_layer_norm", f"{ours}_norm"),
    )


def _stack(side: str) -> tuple[Weight, ...]:
    theirs, ours = f"model.{side}.layers.*", f"{side}/layers"
    return (
        *table(f"model.{side}.embed_positions", f"{side}/embedding/position", unused_rows=_OFFSET),
        *norm(f"model.{side}.layernorm_embedding", f"{side}/embedding/norm"),
        *_attention(f"{theirs}.self_attn", f"{ours}/attention"),
        *linear(f"{theirs}.fc1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.fc2", f"{ours}/mlp/down"),
        *norm(f"{theirs}.final_layer_norm", f"{ours}/mlp_norm"),
        *norm(f"model.{side}.layer_norm", f"{side}/final_norm"),
    )


# All tensors that any of the relatives has. A row does not apply to a model that lacks its parameters.
_WEIGHTS = (
    *table("model.shared", "encoder/embedding/token"),
    *_stack("encoder"),
    *_stack("decoder"),
    *_attention("model.decoder.layers.*.encoder_attn", "decoder/layers/memory_attention"),
    # In transformers this is a buffer of zeros. A plain BartModel does not have it.
    Weight("final_logits_bias", ("logits/bias",), "row", optional=True),
)


def _family(
    model_type: str,
    model: ModelConfig,
    architecture: str,
    token_ids: dict[str, int],
    *,
    sinusoidal: bool = False,
    required: dict[str, object] | None = None,
) -> Family:
    """Returns a relative of BART.

    Args:
        model_type, model: see `Family`.
        architecture: the class with the vocabulary projection.
        token_ids: `pad_token_id`, `eos_token_id` and, where there is one, `bos_token_id`, as the family's own tokenizer
            has them.
        sinusoidal: whether the positions are computed. Old versions saved them nevertheless.
        required: see `Family`; the embeddings are tied in all.
    """
    start = {"pad": "pad_token_id", "sep": "eos_token_id"}[model.decoder_start]

    def write(config: ModelConfig, pad: int) -> Fields:
        ids = {**token_ids, "pad_token_id": pad}
        return {
            "architectures": [architecture],
            "decoder_layers": config.decoder_depth,
            "is_encoder_decoder": True,
            **ids,
            "decoder_start_token_id": ids[start],
            "forced_eos_token_id": ids["eos_token_id"],
        }

    return Family(
        model_type=model_type,
        model=model,
        settings=_SETTINGS,
        required={"tie_word_embeddings": True, **(required or {})},
        weights=_WEIGHTS,
        renames=((r"^(?=(shared|encoder|decoder)\.)", "model."),),  # a plain BartModel
        ignored=r"\b(encoder|decoder)\.version$|\bembed_positions\._float_tensor$",  # of old versions
        tied={"lm_head.weight": "model.shared.weight"},
        repeated={},
        aliases={f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")},
        read=lambda settings: {},
        write=write,
        body=r"^(model\.|lm_head\.|final_logits_bias$)",
        sinusoids=r"\bembed_positions\.weights?$" if sinusoidal else r"(?!)",
        pad_token_id=token_ids["pad_token_id"],
    )


BART = _family(
    "bart",
    families.bart(**_LARGE, **_RATES),
    "BartForConditionalGeneration",
    {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
)
MBART = _family(
    "mbart",
    families.mbart(**_LARGE, **_RATES, scale_embedding=False),
    "MBartForConditionalGeneration",
    {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
)
MARIAN = _family(
    "marian",
    families.marian(**{**_LARGE, "vocab_size": 58_101}, **_RATES, activation="gelu", scale_embedding=False),
    "MarianMTModel",
    {"eos_token_id": 0, "pad_token_id": 58_100},
    sinusoidal=True,
    required={"share_encoder_decoder_embeddings": True},
)
PEGASUS = _family(
    "pegasus",
    families.pegasus(**_LARGE, **_RATES, activation="gelu", scale_embedding=False),
    "PegasusForConditionalGeneration",
    {"pad_token_id": 0, "eos_token_id": 1},
    sinusoidal=True,
)
M2M100 = _family(
    "m2m_100",
    families.m2m100(**{**_LARGE, "vocab_size": 128_112}, **{**_RATES, "attention_dropout": 0.1}),
    "M2M100ForConditionalGeneration",
    {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    sinusoidal=True,
)
