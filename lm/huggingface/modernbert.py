"""ModernBERT (Warner et al., 2024) as transformers writes it."""

from collections.abc import Mapping
from typing import Any

from lm.config import ModelConfig
from lm.errors import InputError
from lm.huggingface.family import Family, Setting, activation, linear, norm, table

_NUM_LAYERS = 22
_ATTENTION = "encoder/layers/attention"
# Kind of layer -> how transformers 4 calls the base of its rotary frequencies, and the default.
_THETA = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


def _layer_types(num_layers: int, every: int) -> list[str]:
    return ["sliding_attention" if layer % every else "full_attention" for layer in range(num_layers)]


def _global_every(settings: Mapping[str, Any]) -> int:
    """Transformers 4 writes the period, 5 the kind of every layer."""
    types = settings.get("layer_types")
    if types is None:
        return settings.get("global_attn_every_n_layers", 3)
    every = next((layer for layer, kind in enumerate(types) if layer and kind == "full_attention"), len(types))
    if types != _layer_types(settings.get("num_hidden_layers", _NUM_LAYERS), every):
        raise InputError("config.json has irregular layer_types; accepted: full_attention at every n-th layer from 0.")
    return every


def _rope_theta(settings: Mapping[str, Any], kind: str) -> float:
    legacy_name, default = _THETA[kind]
    rope = (settings.get("rope_parameters") or {}).get(kind) or {}
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"config.json has rope_type {rope['rope_type']!r}; accepted: 'default'.")
    return float(rope.get("rope_theta", settings.get(legacy_name, default)))


def _read(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "global_every": _global_every(settings),
        "rope_theta": _rope_theta(settings, "full_attention"),
        "rope_theta_local": _rope_theta(settings, "sliding_attention"),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    theta = {"full_attention": config.rope_theta, "sliding_attention": config.rope_theta_local}
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "layer_types": _layer_types(config.num_layers, config.global_every),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in theta.items()},
        # For transformers 4:
        "global_attn_every_n_layers": config.global_every,
        **{legacy_name: theta[kind] for kind, (legacy_name, _) in _THETA.items()},
    }


MODERNBERT = Family(
    model_type="modernbert",
    settings=(
        Setting("vocab_size", "vocab_size", 50368),
        Setting("d_model", "hidden_size", 768),
        Setting("num_layers", "num_hidden_layers", _NUM_LAYERS),
        Setting("num_heads", "num_attention_heads", 12),
        Setting("d_ff", "intermediate_size", 1152),
        activation("activation", "hidden_activation"),
        activation("head_activation", "classifier_activation"),
        Setting("head_bias", "classifier_bias", False),
        Setting("max_length", "max_position_embeddings", 8192),
        Setting("window", "local_attention", 128, lambda total: total // 2, lambda window: 2 * window),
        Setting("norm_eps", "norm_eps", 1e-5),
        Setting("norm_bias", "norm_bias", False),
        Setting("attention_bias", "attention_bias", False),
        Setting("mlp_bias", "mlp_bias", False),
        Setting("init_std", "initializer_range", 0.02),
        Setting("dropout", "embedding_dropout", 0.0, float),
        Setting("dropout", "mlp_dropout", 0.0, float),
        Setting("attention_dropout", "attention_dropout", 0.0, float),
        Setting("tie_embeddings", "tie_word_embeddings", True),
    ),
    fixed={
        "architecture": "encoder",
        "norm": "layernorm",
        "norm_position": "pre",
        "embedding_norm": True,
        "first_attention_norm": False,
        "final_norm": True,
        "gated": True,
        "position": "rotary",
        "token_types": 0,
        "attention_scale": True,
        "pooler": False,
        "logits_bias": True,
        "scale_logits": False,
        "mlp_dropout": 0.0,
    },
    required={"decoder_bias": True},
    weights=(
        *table("model.embeddings.tok_embeddings", "encoder/embedding/token"),
        *norm("model.embeddings.norm", "encoder/embedding/norm"),
        *norm("model.layers.*.attn_norm", "encoder/layers/attention_norm", first_layer=1),
        *linear("model.layers.*.attn.Wqkv", *(f"{_ATTENTION}/{part}" for part in ("query", "key", "value"))),
        *linear("model.layers.*.attn.Wo", f"{_ATTENTION}/out", inputs=2),
        *norm("model.layers.*.mlp_norm", "encoder/layers/mlp_norm"),
        *linear("model.layers.*.mlp.Wi", "encoder/layers/mlp/up", "encoder/layers/mlp/gate"),
        *linear("model.layers.*.mlp.Wo", "encoder/layers/mlp/down"),
        *norm("model.final_norm", "encoder/final_norm"),
        *linear("head.dense", "mlm/dense"),
        *norm("head.norm", "mlm/norm"),
        *linear("decoder", "mlm/logits"),
    ),
    renames=((r"^(?=(embeddings|layers|final_norm)\.)", "model."),),  # a plain ModernBertModel
    ignored=r"\.inv_freq$",
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    repeated={},
    read=_read,
    write=_write,
)
