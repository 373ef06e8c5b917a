"""T5 (Raffel et al., 2020), 1.0 and 1.1, as transformers writes it.

In transformers, `tie_word_embeddings` decides only whether the decoder's output is scaled. The tensors decide whether
the embeddings are tied. Transformers 5 ties them unless `lm_head.weight` was saved with other values. Transformers 4
saved `lm_head.weight` whenever `tie_word_embeddings` was false.
"""

from lm import families
from lm.config import ModelConfig
from lm.errors import InputError
from lm.huggingface.family import (
    Family,
    Fields,
    Setting,
    Settings,
    Weight,
    linear,
    norm,
    read_activation,
    table,
    write_activation,
)

_GATED = "gated-"


def _read(settings: Settings) -> Fields:
    projection = settings.get("feed_forward_proj", "relu")
    gated = projection.startswith(_GATED)
    # "gated-gelu", T5 1.1's value, means the tanh approximation; "gelu" without a gate means the exact form.
    activation = "gelu_new" if projection == "gated-gelu" else projection.removeprefix(_GATED)
    tied = settings.get("tie_word_embeddings") is not False
    return {
        "gated": gated,
        "activation": read_activation(activation),
        "scale_logits": settings.get("scale_decoder_outputs", tied),
    }


def _write(config: ModelConfig) -> Fields:
    if config.gated and config.activation == "gelu":
        raise InputError(
            "transformers has no such model; the nearest, t5, needs model.activation='gelu_tanh' (not 'gelu') with "
            "model.gated=True."
        )
    name = write_activation(config.activation)
    if config.gated:
        name = _GATED + ("gelu" if config.activation == "gelu_tanh" else name)
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "feed_forward_proj": name,
        "d_kv": config.width_per_head,
        "tie_word_embeddings": config.scale_logits,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


def _attention(theirs: str, ours: str) -> tuple[Weight, ...]:
    return (
        *linear(f"{theirs}.q", f"{ours}/query"),
        *linear(f"{theirs}.k", f"{ours}/key"),
        *linear(f"{theirs}.v", f"{ours}/value"),
        *linear(f"{theirs}.o", f"{ours}/out", inputs=2),
    )


def _stack(side: str, mlp: int) -> tuple[Weight, ...]:
    """Returns the rows of a stack whose feed-forward sublayer has the number `mlp`."""
    theirs, ours = f"{side}.block.*.layer", f"{side}/layers"
    relative = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
    return (
        *table(relative, f"{side}/relative_bias"),
        *_attention(f"{theirs}.0.SelfAttention", f"{ours}/attention"),
        *norm(f"{theirs}.0.layer_norm", f"{ours}/attention_norm"),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wi", f"{ours}/mlp/up", when=("gated", False)),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wi_0", f"{ours}/mlp/up", when=("gated", True)),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wi_1", f"{ours}/mlp/gate"),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wo", f"{ours}/mlp/down"),
        *norm(f"{theirs}.{mlp}.layer_norm", f"{ours}/mlp_norm"),
        *norm(f"{side}.final_layer_norm", f"{side}/final_norm"),
    )


T5 = Family(
    model_type="t5",
    model=families.t5(vocab_size=32_128, d_model=512, num_layers=6, num_heads=8, head_dim=64, d_ff=2048),
    settings=(
        Setting("vocab_size", "vocab_size"),
        Setting("d_model", "d_model"),
        Setting("num_layers", "num_layers"),
        Setting("num_decoder_layers", "num_decoder_layers", lambda depth: depth or 0, lambda depth: depth or None),
        Setting("num_heads", "num_heads"),
        Setting("head_dim", "d_kv"),
        Setting("d_ff", "d_ff"),
        Setting("relative_buckets", "relative_attention_num_buckets"),
        Setting("relative_max_distance", "relative_attention_max_distance"),
        Setting("norm_eps", "layer_norm_epsilon"),
        Setting("dropout", "dropout_rate", float),
        Setting("attention_dropout", "dropout_rate", float),
        Setting("mlp_dropout", "dropout_rate", float),
        Setting("tie_embeddings", "tie_word_embeddings", lambda tied: tied is not False),
    ),
    required={},
    weights=(
        *table("shared", "encoder/embedding/token"),
        *_stack("encoder", mlp=1),
        *_stack("decoder", mlp=2),
        *_attention("decoder.block.*.layer.1.EncDecAttention", "decoder/layers/memory_attention"),
        *norm("decoder.block.*.layer.1.layer_norm", "decoder/layers/memory_attention_norm"),
        *linear("lm_head", "logits"),
    ),
    renames=(),
    # Old versions also saved a table for the decoder's attention to the encoder, and never read it.
    ignored=r"EncDecAttention\.relative_attention_bias\.weight$",
    tied={"lm_head.weight": "shared.weight"},
    repeated={},
    aliases={f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")},
    tied_by_values=True,
    read=_read,
    write=_write,
)
