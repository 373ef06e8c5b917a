"""DistilBERT (Sanh et al., 2019) as transformers writes it."""

from lm import families
from lm.huggingface.bert import embedding_weights
from lm.huggingface.family import Family, Setting, Weight, activation, linear, norm, rate

_EMBEDDINGS = "distilbert.embeddings"
_LAYER = "distilbert.transformer.layer.*"

DISTILBERT = Family(
    model_type="distilbert",
    model=families.distilbert(vocab_size=30_522, d_model=768, num_layers=6, num_heads=12, d_ff=3072),
    settings=(
        Setting("vocab_size", "vocab_size"),
        Setting("d_model", "dim"),
        Setting("num_layers", "n_layers"),
        Setting("num_heads", "n_heads"),
        Setting("d_ff", "hidden_dim"),
        activation("activation", "activation"),
        activation("head_activation", "activation"),
        Setting("max_length", "max_position_embeddings"),
        Setting("init_std", "initializer_range"),
        rate("dropout", "dropout"),
        rate("attention_dropout", "attention_dropout"),
        Setting("tie_embeddings", "tie_word_embeddings"),
    ),
    required={},
    weights=(
        *embedding_weights(_EMBEDDINGS, token_types=False),
        *linear(f"{_LAYER}.attention.q_lin", "encoder/layers/attention/query"),
        *linear(f"{_LAYER}.attention.k_lin", "encoder/layers/attention/key"),
        *linear(f"{_LAYER}.attention.v_lin", "encoder/layers/attention/value"),
        *linear(f"{_LAYER}.attention.out_lin", "encoder/layers/attention/out", inputs=2),
        *norm(f"{_LAYER}.sa_layer_norm", "encoder/layers/attention_norm"),
        *linear(f"{_LAYER}.ffn.lin1", "encoder/layers/mlp/up"),
        *linear(f"{_LAYER}.ffn.lin2", "encoder/layers/mlp/down"),
        *norm(f"{_LAYER}.output_layer_norm", "encoder/layers/mlp_norm"),
        *linear("vocab_transform", "mlm/dense"),
        *norm("vocab_layer_norm", "mlm/norm"),
        Weight("vocab_projector.weight", ("mlm/logits/kernel",), "kernel"),
        Weight("vocab_projector.bias", ("mlm/logits/bias",), "vector"),
    ),
    renames=((r"^(?=(embeddings|transformer)\.)", "distilbert."),),  # a plain DistilBertModel
    ignored=r"embeddings\.position_ids$",
    tied={"vocab_projector.weight": f"{_EMBEDDINGS}.word_embeddings.weight"},
    repeated={},
    read=lambda settings: {},
    write=lambda config, pad: {"architectures": ["DistilBertForMaskedLM"]},
    body=r"^(distilbert|vocab_transform|vocab_layer_norm|vocab_projector)\.",
)
