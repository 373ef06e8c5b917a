"""T5 (Raffel et al., 2020), 1.0 and 1.1, mT5 and umT5 as transformers writes them, with and without their decoder.

In transformers, `tie_word_embeddings` decides only whether the decoder's output is scaled. The tensors decide whether
the embeddings are tied. Transformers 5 ties them unless `lm_head.weight` was saved with other values. Transformers 4
saved `lm_head.weight` whenever `tie_word_embeddings` was false.
"""

import dataclasses
from collections.abc import Callable

from lm import families
from lm.config import ModelConfig
from lm.errors import InputError
from lm.huggingface.family import (
    Family,
    Fields,
    Setting,
    Settings,
    Weight,
    get,
    linear,
    norm,
    rate,
    read_activation,
    table,
    write_activation,
)

_GATED = "gated-"


def _read(settings: Settings, projection: str = "relu", scaled: bool | None = None) -> Fields:
    """Returns what the table does not hold. `scaled` says whether the logits are, where it is not a setting."""
    projection = get(settings, "feed_forward_proj", str, projection)
    gated = projection.startswith(_GATED)
    # "gated-gelu", T5 1.1's value, means the tanh approximation; "gelu" without a gate means the exact form.
    activation = "gelu_new" if projection == "gated-gelu" else projection.removeprefix(_GATED)
    tied = settings.get("tie_word_embeddings") is not False
    if scaled is None:
        scaled = get(settings, "scale_decoder_outputs", bool, tied)
    return {
        "gated": gated,
        "activation": read_activation(activation, "feed_forward_proj"),
        "scale_logits": scaled,
    }


def _write(config: ModelConfig, pad: int) -> Fields:
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
        "eos_token_id": 1,
        "decoder_start_token_id": pad,
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
        *table(f"{theirs}.0.SelfAttention.relative_attention_bias", f"{ours}/relative_bias"),
        *_attention(f"{theirs}.0.SelfAttention", f"{ours}/attention"),
        *norm(f"{theirs}.0.layer_norm", f"{ours}/attention_norm"),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wi", f"{ours}/mlp/up", when=("gated", False)),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wi_0", f"{ours}/mlp/up", when=("gated", True)),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wi_1", f"{ours}/mlp/gate"),
        *linear(f"{theirs}.{mlp}.DenseReluDense.wo", f"{ours}/mlp/down"),
        *norm(f"{theirs}.{mlp}.layer_norm", f"{ours}/mlp_norm"),
        *norm(f"{side}.final_layer_norm", f"{side}/final_norm"),
    )


_T5 = Family(
    model_type="t5",
    model=families.t5(vocab_size=32_128, d_model=512, num_layers=6, num_heads=8, head_dim=64, d_ff=2048),
    settings=(
        Setting("vocab_size", "vocab_size"),
        Setting("d_model", "d_model"),
        Setting("num_layers", "num_layers"),
        Setting("num_decoder_layers", "num_decoder_layers", int, write=lambda depth: depth or None),
        Setting("num_heads", "num_heads"),
        Setting("head_dim", "d_kv"),
        Setting("d_ff", "d_ff"),
        Setting("relative_buckets", "relative_attention_num_buckets"),
        Setting("relative_max_distance", "relative_attention_max_distance"),
        Setting("norm_eps", "layer_norm_epsilon"),
        rate("dropout", "dropout_rate"),
        rate("attention_dropout", "dropout_rate"),
        rate("mlp_dropout", "dropout_rate"),
        Setting("tie_embeddings", "tie_word_embeddings"),
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
    renames=((r"^transformer\.", ""),),  # a T5 with the head of another task
    # Old versions also saved a table for the decoder's attention to the encoder, and never read it.
    ignored=r"EncDecAttention\.relative_attention_bias\.weight$",
    tied={"lm_head.weight": "shared.weight"},
    repeated={},
    aliases={f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")},
    tied_by_values=True,
    read=_read,
    write=_write,
    body=r"^(shared|encoder|decoder|lm_head)\.",
)


def _alone(family: Family, prefix: str) -> Family:
    """Returns the family of the folders with the encoder alone: T5EncoderModel, and T5 as a tagger.

    Its class begins with `prefix`. It has no head for masked tokens: the one that every encoder has here is new, and is
    not written.
    """

    def read(settings: Settings) -> Fields:
        fields = family.read(settings)
        return {"gated": fields["gated"], "activation": fields["activation"]}

    def write(config: ModelConfig, pad: int) -> Fields:
        return {**family.write(config, pad), "architectures": [f"{prefix}EncoderModel"], "tie_word_embeddings": True}

    model = dataclasses.replace(
        family.model,
        architecture="encoder",
        num_decoder_layers=0,
        tie_embeddings=True,
        scale_logits=False,
        head_activation="gelu_tanh",
        logits_bias=True,
    )
    settings = (each for each in family.settings if each.ours not in ("num_decoder_layers", "tie_embeddings"))
    return dataclasses.replace(
        family, model=model, settings=tuple(settings), tied={}, read=read, write=write, no_head=("mlm",)
    )


def _of(
    model_type: str, model: ModelConfig, prefix: str, projection: str, scaled: Callable[[Settings], bool]
) -> Family:
    """Returns a relative of T5: its classes begin with `prefix`, and `scaled` says whether its logits are."""
    family = dataclasses.replace(
        _T5,
        model_type=model_type,
        model=model,
        read=lambda settings: _read(settings, projection, scaled(settings)),
        write=lambda config, pad: {**_write(config, pad), "architectures": [f"{prefix}ForConditionalGeneration"]},
    )
    return dataclasses.replace(family, encoder_alone=_alone(family, prefix))


_SIZES: dict[str, int] = {"vocab_size": 250_112, "d_model": 512, "num_layers": 8, "num_heads": 6, "d_ff": 1024}
_MT5, _UMT5 = (
    family(**_SIZES, head_dim=64, dropout=0.1, attention_dropout=0.1, mlp_dropout=0.1)
    for family in (families.t5_1_1, families.umt5)
)

T5 = dataclasses.replace(_T5, encoder_alone=_alone(_T5, "T5"))
MT5 = _of("mt5", _MT5, "MT5", "gated-gelu", lambda settings: False)
# Transformers 5 always scales umT5's logits. Version 4, as umT5's own code, does not where the embeddings are not tied.
UMT5 = _of(
    "umt5",
    dataclasses.replace(_UMT5, scale_logits=True),
    "UMT5",
    "gated-gelu",
    lambda settings: settings.get("tie_word_embeddings") is not False,
)
