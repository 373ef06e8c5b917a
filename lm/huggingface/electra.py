"""ELECTRA (Clark et al., 2020) as transformers writes it. A discriminator is read as an encoder, without its head."""

from lm import families
from lm.config import ModelConfig
from lm.huggingface.bert import ENCODER_SETTINGS, embedding_weights, encoder_weights
from lm.huggingface.family import Family, Fields, Setting, Settings, Weight, get, linear, norm

_EMBEDDINGS = "electra.embeddings"
_WIDTHS = {"embedding_size": 128, "hidden_size": 256}  # where config.json does not say them


def _read(settings: Settings) -> Fields:
    narrow, width = (get(settings, key, int, default) for key, default in _WIDTHS.items())
    return {"embedding_width": 0 if narrow == width else narrow}


def _write(config: ModelConfig, pad: int) -> Fields:
    del pad
    return {"architectures": ["ElectraForMaskedLM"], "embedding_size": config.embedding_width or config.d_model}


ELECTRA = Family(
    model_type="electra",
    model=families.electra(vocab_size=30_522, d_model=256, num_layers=12, num_heads=4, d_ff=1024, embedding_width=128),
    settings=(*ENCODER_SETTINGS, Setting("max_length", "max_position_embeddings")),
    required={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    weights=(
        *embedding_weights(_EMBEDDINGS),
        *linear("electra.embeddings_project", "encoder/embedding/projection"),
        *encoder_weights("electra.encoder.layer.*"),
        *linear("generator_predictions.dense", "mlm/dense"),
        *norm("generator_predictions.LayerNorm", "mlm/norm"),
        Weight("generator_lm_head.weight", ("mlm/logits/kernel",), "kernel"),
        Weight("generator_lm_head.bias", ("mlm/logits/bias",), "vector"),
    ),
    renames=((r"^(?=(embeddings|embeddings_project|encoder)\.)", "electra."),),  # a plain ElectraModel
    ignored=r"embeddings\.(position_ids|token_type_ids)$",
    tied={"generator_lm_head.weight": f"{_EMBEDDINGS}.word_embeddings.weight"},
    repeated={},
    read=_read,
    write=_write,
    body=r"^(electra|generator_predictions|generator_lm_head)\.",
)
