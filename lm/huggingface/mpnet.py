"""MPNet (Song et al., 2020) as transformers writes it. Its positions count from 2, whatever its padding is."""

from lm import families
from lm.huggingface.bert import ENCODER_SETTINGS, embedding_weights
from lm.huggingface.family import Family, Setting, Weight, linear, norm, table

_EMBEDDINGS = "mpnet.embeddings"
_LAYER = "mpnet.encoder.layer.*"
_UNUSED = 2  # rows at the top of the table of positions

MPNET = Family(
    model_type="mpnet",
    model=families.mpnet(
        vocab_size=30_527, d_model=768, num_layers=12, num_heads=12, d_ff=3072, norm_eps=1e-12, max_length=512 - _UNUSED
    ),
    settings=(
        *(setting for setting in ENCODER_SETTINGS if setting.ours != "token_types"),
        Setting(
            "max_length", "max_position_embeddings", int, lambda rows: rows - _UNUSED, lambda length: length + _UNUSED
        ),
    ),
    required={"relative_attention_num_buckets": 32},  # transformers computes with 32, whatever the setting says
    weights=(
        *embedding_weights(_EMBEDDINGS, token_types=False, unused_rows=_UNUSED),
        *table("mpnet.encoder.relative_attention_bias", "encoder/relative_bias"),
        *linear(f"{_LAYER}.attention.attn.q", "encoder/layers/attention/query"),
        *linear(f"{_LAYER}.attention.attn.k", "encoder/layers/attention/key"),
        *linear(f"{_LAYER}.attention.attn.v", "encoder/layers/attention/value"),
        *linear(f"{_LAYER}.attention.attn.o", "encoder/layers/attention/out", inputs=2),
        *norm(f"{_LAYER}.attention.LayerNorm", "encoder/layers/attention_norm"),
        *linear(f"{_LAYER}.intermediate.dense", "encoder/layers/mlp/up"),
        *linear(f"{_LAYER}.output.dense", "encoder/layers/mlp/down"),
        *norm(f"{_LAYER}.output.LayerNorm", "encoder/layers/mlp_norm"),
        *linear("lm_head.dense", "mlm/dense"),
        *norm("lm_head.layer_norm", "mlm/norm"),
        Weight("lm_head.decoder.weight", ("mlm/logits/kernel",), "kernel"),
        Weight("lm_head.bias", ("mlm/logits/bias",), "vector"),
    ),
    renames=((r"^(?=(embeddings|encoder|pooler)\.)", "mpnet."),),  # a plain MPNetModel
    ignored=r"embeddings\.position_ids$",
    tied={"lm_head.decoder.weight": f"{_EMBEDDINGS}.word_embeddings.weight"},
    repeated={"lm_head.decoder.bias": "lm_head.bias"},
    read=lambda settings: {},
    write=lambda config, pad: {"architectures": ["MPNetForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2},
    body=r"^(mpnet|lm_head)\.",
    dropped=r"^mpnet\.pooler\.",  # it belongs to no task of pretraining
    pad_token_id=1,
)
