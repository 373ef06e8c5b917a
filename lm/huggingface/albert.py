"""ALBERT (Lan et al., 2020) as transformers writes it."""

from lm import families
from lm.huggingface.bert import ENCODER_SETTINGS, embedding_weights
from lm.huggingface.family import Family, Setting, Weight, activation, linear, norm

_EMBEDDINGS = "albert.embeddings"
_LAYER = "albert.encoder.albert_layer_groups.*.albert_layers.0"

ALBERT = Family(
    model_type="albert",
    model=families.albert(vocab_size=30_000, d_model=4096, num_layers=12, num_heads=64, d_ff=16_384),
    settings=(
        *ENCODER_SETTINGS,
        activation("head_activation", "hidden_act"),
        Setting("max_length", "max_position_embeddings"),
        Setting("embedding_width", "embedding_size"),
    ),
    required={"position_embedding_type": "absolute", "num_hidden_groups": 1, "inner_group_num": 1},
    weights=(
        *embedding_weights(_EMBEDDINGS),
        *linear("albert.encoder.embedding_hidden_mapping_in", "encoder/embedding/projection"),
        *linear(f"{_LAYER}.attention.query", "encoder/layers/attention/query"),
        *linear(f"{_LAYER}.attention.key", "encoder/layers/attention/key"),
        *linear(f"{_LAYER}.attention.value", "encoder/layers/attention/value"),
        *linear(f"{_LAYER}.attention.dense", "encoder/layers/attention/out", inputs=2),
        *norm(f"{_LAYER}.attention.LayerNorm", "encoder/layers/attention_norm"),
        *linear(f"{_LAYER}.ffn", "encoder/layers/mlp/up"),
        *linear(f"{_LAYER}.ffn_output", "encoder/layers/mlp/down"),
        *norm(f"{_LAYER}.full_layer_layer_norm", "encoder/layers/mlp_norm"),
        *linear("albert.pooler", "pooler"),
        *linear("sop_classifier.classifier", "nsp"),
        *linear("predictions.dense", "mlm/dense"),
        *norm("predictions.LayerNorm", "mlm/norm"),
        Weight("predictions.decoder.weight", ("mlm/logits/kernel",), "kernel"),
        Weight("predictions.bias", ("mlm/logits/bias",), "vector"),
    ),
    renames=((r"^(?=(embeddings|encoder|pooler)\.)", "albert."),),  # a plain AlbertModel
    ignored=r"embeddings\.(position_ids|token_type_ids)$",
    tied={"predictions.decoder.weight": f"{_EMBEDDINGS}.word_embeddings.weight"},
    repeated={"predictions.decoder.bias": "predictions.bias"},
    read=lambda settings: {"pooler": True},
    write=lambda config, pad: {
        "architectures": ["AlbertForPreTraining" if config.pooler else "AlbertForMaskedLM"],
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    body=r"^(albert|predictions|sop_classifier)\.",
)
