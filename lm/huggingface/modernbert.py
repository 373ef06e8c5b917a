"""ModernBERT (Warner et al., 2024) as transformers writes it."""

from lm import families
from lm.config import ModelConfig
from lm.errors import InputError
from lm.huggingface.family import (
    Family,
    Fields,
    Setting,
    Settings,
    activation,
    get,
    linear,
    norm,
    rate,
    shortened,
    table,
)

_MODEL = families.modernbert(vocab_size=50_368, d_model=768, num_layers=22, num_heads=12, d_ff=1152)
_ATTENTION = "encoder/layers/attention"
# Kind of layer -> the key in which transformers 4 keeps the base of its rotary frequencies.
_OLD_THETA = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def _layer_types(num_layers: int, every: int) -> list[str]:
    return ["sliding_attention" if layer % every else "full_attention" for layer in range(num_layers)]


def _global_every(settings: Settings) -> int:
    """Returns the period of the global layers. Transformers 4 writes it; version 5 writes the kind of every layer."""
    types = get(settings, "layer_types", list, None)
    if types is None:
        return get(settings, "global_attn_every_n_layers", int, _MODEL.global_every)
    every = next((layer for layer, kind in enumerate(types) if layer and kind == "full_attention"), len(types))
    depth = get(settings, "num_hidden_layers", int, _MODEL.num_layers)
    if len(types) != depth or types != _layer_types(depth, every):
        raise InputError("config.json has irregular layer_types; accepted: full_attention at every n-th layer from 0.")
    return every


def _rope_theta(settings: Settings, kind: str, default: float) -> float:
    """Returns the base of the rotary frequencies. In transformers 4, a null for local layers means the global base."""
    rope = get(get(settings, "rope_parameters", dict, {}), kind, dict, {})
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"config.json has rope_type {shortened(rope['rope_type'])}; accepted: 'default'.")
    local = kind == "sliding_attention"
    if local and "rope_parameters" not in settings and settings.get(_OLD_THETA[kind], default) is None:
        return _rope_theta(settings, "full_attention", _MODEL.rope_theta)
    theta = get(rope, "rope_theta", float, get(settings, _OLD_THETA[kind], float, default))
    if theta < 1:
        raise InputError(f"config.json has {_OLD_THETA[kind]} {theta}; accepted: 1 or more.")
    return float(theta)


def _read(settings: Settings) -> Fields:
    return {
        "global_every": _global_every(settings),
        "rope_theta": _rope_theta(settings, "full_attention", _MODEL.rope_theta),
        "rope_theta_local": _rope_theta(settings, "sliding_attention", _MODEL.rope_theta_local),
    }


def _write(config: ModelConfig, pad: int) -> Fields:
    del pad
    theta = {"full_attention": config.rope_theta, "sliding_attention": config.rope_theta_local}
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "layer_types": _layer_types(config.num_layers, config.global_every),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in theta.items()},
        # For transformers 4:
        "global_attn_every_n_layers": config.global_every,
        **{key: theta[kind] for kind, key in _OLD_THETA.items()},
    }


MODERNBERT = Family(
    model_type="modernbert",
    model=_MODEL,
    settings=(
        Setting("vocab_size", "vocab_size"),
        Setting("d_model", "hidden_size"),
        Setting("num_layers", "num_hidden_layers"),
        Setting("num_heads", "num_attention_heads"),
        Setting("d_ff", "intermediate_size"),
        activation("activation", "hidden_activation"),
        activation("head_activation", "classifier_activation"),
        Setting("head_bias", "classifier_bias"),
        Setting("max_length", "max_position_embeddings"),
        Setting("window", "local_attention", int, lambda total: total // 2, lambda window: 2 * window),
        Setting("norm_eps", "norm_eps"),
        Setting("norm_bias", "norm_bias"),
        Setting("attention_bias", "attention_bias"),
        Setting("mlp_bias", "mlp_bias"),
        Setting("init_std", "initializer_range"),
        rate("dropout", "embedding_dropout"),
        rate("dropout", "mlp_dropout"),
        rate("attention_dropout", "attention_dropout"),
        Setting("tie_embeddings", "tie_word_embeddings"),
    ),
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
    body=r"^(model|head|decoder)\.",
)
