"""RoBERTa (Liu et al., 2019), XLM-R (Conneau et al., 2020) and CamemBERT as transformers writes them.

Their positions count from `pad_token_id` + 1, as fairseq's do, so the first rows of their table are never read.
"""

import dataclasses

from lm import families
from lm.config import ModelConfig
from lm.huggingface.bert import ENCODER_SETTINGS, embedding_weights, encoder_weights
from lm.huggingface.family import Family, Fields, Settings, Weight, get, linear, norm

_EMBEDDINGS = "roberta.embeddings"
_ROWS = 512  # max_position_embeddings where config.json does not say it
_PAD = 1


def _read(settings: Settings) -> Fields:
    rows = get(settings, "max_position_embeddings", int, _ROWS)
    return {"max_length": rows - get(settings, "pad_token_id", int, _PAD) - 1}


def _write(config: ModelConfig, pad: int) -> Fields:
    return {
        "architectures": ["RobertaForMaskedLM"],
        "max_position_embeddings": config.max_length + pad + 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


ROBERTA = Family(
    model_type="roberta",
    model=families.roberta(
        vocab_size=50_265,
        d_model=768,
        num_layers=12,
        num_heads=12,
        d_ff=3072,
        token_types=2,
        norm_eps=1e-12,
        max_length=_ROWS - _PAD - 1,
    ),
    settings=ENCODER_SETTINGS,
    required={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    weights=(
        *embedding_weights(_EMBEDDINGS, after_padding=True),
        *encoder_weights("roberta.encoder.layer.*"),
        *linear("lm_head.dense", "mlm/dense"),
        *norm("lm_head.layer_norm", "mlm/norm"),
        Weight("lm_head.decoder.weight", ("mlm/logits/kernel",), "kernel"),
        Weight("lm_head.bias", ("mlm/logits/bias",), "vector"),
    ),
    renames=((r"^(?=(embeddings|encoder|pooler)\.)", "roberta."),),  # a plain RobertaModel
    ignored=r"embeddings\.(position_ids|token_type_ids)$",
    tied={"lm_head.decoder.weight": f"{_EMBEDDINGS}.word_embeddings.weight"},
    repeated={"lm_head.decoder.bias": "lm_head.bias"},
    read=_read,
    write=_write,
    body=r"^(roberta|lm_head)\.",
    dropped=r"^roberta\.pooler\.",  # it belongs to no task of pretraining
    pad_token_id=_PAD,
)

XLM_ROBERTA = dataclasses.replace(
    ROBERTA,
    model_type="xlm-roberta",
    model=dataclasses.replace(ROBERTA.model, vocab_size=30_522),
    write=lambda config, pad: {**_write(config, pad), "architectures": ["XLMRobertaForMaskedLM"]},
)

CAMEMBERT = dataclasses.replace(
    XLM_ROBERTA,
    model_type="camembert",
    write=lambda config, pad: {**_write(config, pad), "architectures": ["CamembertForMaskedLM"]},
)
