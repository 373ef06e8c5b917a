"""BERT (Devlin et al., 2019) as transformers writes it."""

from lm import families
from lm.huggingface.family import Family, Setting, Weight, activation, linear, norm, rate, table

_EMBEDDINGS = "bert.embeddings"
_HEAD = "cls.predictions"

# The settings of BERT and of the encoders that transformers derived from it.
ENCODER_SETTINGS = (
    Setting("vocab_size", "vocab_size"),
    Setting("d_model", "hidden_size"),
    Setting("num_layers", "num_hidden_layers"),
    Setting("num_heads", "num_attention_heads"),
    Setting("d_ff", "intermediate_size"),
    activation("activation", "hidden_act"),
    Setting("token_types", "type_vocab_size"),
    Setting("norm_eps", "layer_norm_eps"),
    Setting("init_std", "initializer_range"),
    rate("dropout", "hidden_dropout_prob"),
    rate("attention_dropout", "attention_probs_dropout_prob"),
    Setting("tie_embeddings", "tie_word_embeddings"),
)


def embedding_weights(
    theirs: str, *, token_types: bool = True, unused_rows: int = 0, after_padding: bool = False
) -> tuple[Weight, ...]:
    """Returns the rows of BERT's embeddings, which begin with `theirs`.

    Args:
        theirs: the beginning of their names.
        token_types: whether there are embeddings of token types.
        unused_rows, after_padding: of the table of positions; see `Weight`.
    """
    return (
        *table(f"{theirs}.word_embeddings", "encoder/embedding/token"),
        *table(
            f"{theirs}.position_embeddings",
            "encoder/embedding/position",
            unused_rows=unused_rows,
            after_padding=after_padding,
        ),
        *(table(f"{theirs}.token_type_embeddings", "encoder/embedding/token_type") if token_types else ()),
        *norm(f"{theirs}.LayerNorm", "encoder/embedding/norm"),
    )


def encoder_weights(theirs: str) -> tuple[Weight, ...]:
    """Returns the rows of BERT's layers, which begin with `theirs`."""
    return (
        *linear(f"{theirs}.attention.self.query", "encoder/layers/attention/query"),
        *linear(f"{theirs}.attention.self.key", "encoder/layers/attention/key"),
        *linear(f"{theirs}.attention.self.value", "encoder/layers/attention/value"),
        *linear(f"{theirs}.attention.output.dense", "encoder/layers/attention/out", inputs=2),
        *norm(f"{theirs}.attention.output.LayerNorm", "encoder/layers/attention_norm"),
        *linear(f"{theirs}.intermediate.dense", "encoder/layers/mlp/up"),
        *linear(f"{theirs}.output.dense", "encoder/layers/mlp/down"),
        *norm(f"{theirs}.output.LayerNorm", "encoder/layers/mlp_norm"),
    )


BERT = Family(
    model_type="bert",
    model=families.bert(
        vocab_size=30_522,
        d_model=768,
        num_layers=12,
        num_heads=12,
        d_ff=3072,
        activation="gelu",
        head_activation="gelu",
    ),
    settings=(
        *ENCODER_SETTINGS,
        activation("head_activation", "hidden_act"),
        Setting("max_length", "max_position_embeddings"),
    ),
    required={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    weights=(
        *embedding_weights(_EMBEDDINGS),
        *encoder_weights("bert.encoder.layer.*"),
        *linear("bert.pooler.dense", "pooler"),
        *linear("cls.seq_relationship", "nsp"),
        *linear(f"{_HEAD}.transform.dense", "mlm/dense"),
        *norm(f"{_HEAD}.transform.LayerNorm", "mlm/norm"),
        Weight(f"{_HEAD}.decoder.weight", ("mlm/logits/kernel",), "kernel"),
        Weight(f"{_HEAD}.bias", ("mlm/logits/bias",), "vector"),
    ),
    renames=(
        (r"^(?=(embeddings|encoder|pooler)\.)", "bert."),  # a plain BertModel
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),  # converted from TensorFlow
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    ignored=r"embeddings\.(position_ids|token_type_ids)$",  # buffers that old versions saved
    tied={f"{_HEAD}.decoder.weight": f"{_EMBEDDINGS}.word_embeddings.weight"},
    repeated={f"{_HEAD}.decoder.bias": f"{_HEAD}.bias"},
    read=lambda settings: {"pooler": True},
    write=lambda config, pad: {"architectures": ["BertForPreTraining" if config.pooler else "BertForMaskedLM"]},
    body=r"^(bert|cls)\.",
)
