"""BART (Lewis et al., 2020) as transformers writes it."""

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
    table,
)

# The number of unused rows at the top of BART's position table.
_OFFSET = 2


def _write(config: ModelConfig) -> Fields:
    return {
        "architectures": ["BartForConditionalGeneration"],
        "decoder_layers": config.decoder_depth,
        "is_encoder_decoder": True,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": 2,
    }


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
    )


BART = Family(
    model_type="bart",
    model=families.bart(
        vocab_size=50_265,
        d_model=1024,
        num_layers=12,
        num_decoder_layers=12,
        num_heads=16,
        d_ff=4096,
        attention_dropout=0.0,
        mlp_dropout=0.0,
    ),
    settings=(
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
        Setting("init_std", "init_std"),
        Setting("dropout", "dropout", float),
        Setting("attention_dropout", "attention_dropout", float),
        Setting("mlp_dropout", "activation_dropout", float),
    ),
    required={"scale_embedding": False, "tie_word_embeddings": True},
    weights=(
        *table("model.shared", "encoder/embedding/token"),
        *_stack("encoder"),
        *_stack("decoder"),
        *_attention("model.decoder.layers.*.encoder_attn", "decoder/layers/memory_attention"),
        # In transformers this is a buffer of zeros. A plain BartModel does not have it.
        Weight("final_logits_bias", ("logits/bias",), "row", optional=True),
    ),
    renames=((r"^(?=(shared|encoder|decoder)\.)", "model."),),  # a plain BartModel
    ignored=r"\b(encoder|decoder)\.version$",  # written by old versions
    tied={"lm_head.weight": "model.shared.weight"},
    repeated={},
    aliases={f"model.{side}.embed_tokens.weight": "model.shared.weight" for side in ("encoder", "decoder")},
    read=lambda settings: {},
    write=_write,
)
