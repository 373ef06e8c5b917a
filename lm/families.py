"""The model families, each stated once as a function of its sizes.

The sizes are arguments. Any other field of `ModelConfig` is changed by keyword:

    families.bert(vocab_size=30_592, d_model=768, num_layers=12, num_heads=12, d_ff=3072, attention_dropout=0.0)
"""

import dataclasses
import functools

from lm.config import ModelConfig


def bert(
    *, vocab_size: int, d_model: int, num_layers: int, num_heads: int, d_ff: int, **different: object
) -> ModelConfig:
    """Returns a BERT (Devlin et al., 2019).

    A post-norm encoder with learned positions and two token types. The MLM head is a dense layer, the activation and
    a layernorm; its projection is the token embedding and has a bias of its own. The next-sentence head reads a tanh
    layer on [CLS].

    The authors' code computes GELU by its tanh approximation, in the layers and in the MLM head. Hugging Face's
    conversion of the published weights says `gelu`, the exact form; pass `activation="gelu", head_activation="gelu"`
    for that.
    """
    config = ModelConfig(
        architecture="encoder",
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=d_ff,
        norm="layernorm",
        norm_position="post",
        norm_eps=1e-12,
        norm_bias=True,
        embedding_norm=True,
        final_norm=False,
        activation="gelu_tanh",
        gated=False,
        attention_bias=True,
        mlp_bias=True,
        position="learned",
        max_length=512,
        token_types=2,
        attention_scale=True,
        head_bias=True,
        head_activation="gelu_tanh",
        tie_embeddings=True,
        logits_bias=True,
        pooler=True,
        dropout=0.1,
        attention_dropout=0.1,
        mlp_dropout=0.0,
        init="normal",
        init_std=0.02,
    )
    return dataclasses.replace(config, **different)


def modernbert(
    *, vocab_size: int, d_model: int, num_layers: int, num_heads: int, d_ff: int, **different: object
) -> ModelConfig:
    """Returns a ModernBERT (Warner et al., 2024).

    A pre-norm encoder with rotary positions and a gated GELU. Every third layer attends to all tokens, the others to
    64 tokens on either side. A norm follows the embeddings, so layer 0 has none before attention. Only the output
    projection has a bias. Weights that write to the residual stream begin smaller.
    """
    config = ModelConfig(
        architecture="encoder",
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=d_ff,
        norm="layernorm",
        norm_position="pre",
        norm_eps=1e-5,
        norm_bias=False,
        embedding_norm=True,
        first_attention_norm=False,
        final_norm=True,
        activation="gelu",
        gated=True,
        attention_bias=False,
        mlp_bias=False,
        position="rotary",
        max_length=8192,
        token_types=0,
        rope_theta=160_000.0,
        rope_theta_local=10_000.0,
        global_every=3,
        window=64,
        attention_scale=True,
        head_bias=False,
        head_activation="gelu",
        tie_embeddings=True,
        logits_bias=True,
        pooler=False,
        dropout=0.0,
        attention_dropout=0.0,
        mlp_dropout=0.0,
        init="megatron",
        init_std=0.02,
    )
    return dataclasses.replace(config, **different)


def t5(
    *, vocab_size: int, d_model: int, num_layers: int, num_heads: int, d_ff: int, **different: object
) -> ModelConfig:
    """Returns a T5 of the first release, 1.0 (Raffel et al., 2020).

    A pre-norm encoder-decoder with RMSNorm and no biases. Each stack has one table of 32 relative positions, which
    its layers share; attention from the decoder to the encoder has none. Attention scores are not divided by
    sqrt(head_dim): the initial queries are smaller instead. The output projection is the token embedding, and its
    input is divided by sqrt(d_model). The feed-forward network has a ReLU.

    The published sizes have a `head_dim` of 64 (128 in 3B and 11B), whatever d_model / num_heads is.
    """
    config = ModelConfig(
        architecture="encoder-decoder",
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=d_ff,
        norm="rmsnorm",
        norm_position="pre",
        norm_eps=1e-6,
        embedding_norm=False,
        final_norm=True,
        final_dropout=True,
        activation="relu",
        gated=False,
        attention_bias=False,
        mlp_bias=False,
        position="relative",
        relative_buckets=32,
        relative_max_distance=128,
        token_types=0,
        attention_scale=False,
        tie_embeddings=True,
        logits_bias=False,
        scale_logits=True,
        decoder_start="pad",
        pooler=False,
        dropout=0.1,
        attention_dropout=0.1,
        mlp_dropout=0.1,
        init="fan_in",
        relative_init="fan_avg",
    )
    return dataclasses.replace(config, **different)


def t5_1_1(
    *, vocab_size: int, d_model: int, num_layers: int, num_heads: int, d_ff: int, **different: object
) -> ModelConfig:
    """Returns a T5 of release 1.1, as it is pretrained.

    It differs from `t5` in four points: a GELU (tanh approximation) gated by a second projection, an output
    projection of its own, logits that are not scaled, and no dropout in pretraining. Fine-tuning sets all three
    dropout rates to 0.1.

    The published sizes have a `head_dim` of 64.
    """
    first = t5(vocab_size=vocab_size, d_model=d_model, num_layers=num_layers, num_heads=num_heads, d_ff=d_ff)
    config = dataclasses.replace(
        first,
        activation="gelu_tanh",
        gated=True,
        tie_embeddings=False,
        scale_logits=False,
        dropout=0.0,
        attention_dropout=0.0,
        mlp_dropout=0.0,
    )
    return dataclasses.replace(config, **different)


def bart(
    *, vocab_size: int, d_model: int, num_layers: int, num_heads: int, d_ff: int, **different: object
) -> ModelConfig:
    """Returns a BART (Lewis et al., 2020).

    A post-norm encoder-decoder with learned positions and GELU. Both stacks and the output projection share one token
    embedding; the logits have a bias. The first token that the decoder is given is the end of a sequence.
    """
    config = ModelConfig(
        architecture="encoder-decoder",
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=d_ff,
        norm="layernorm",
        norm_position="post",
        norm_eps=1e-5,
        norm_bias=True,
        embedding_norm=True,
        final_norm=False,
        activation="gelu",
        gated=False,
        attention_bias=True,
        mlp_bias=True,
        position="learned",
        max_length=1024,
        token_types=0,
        attention_scale=True,
        tie_embeddings=True,
        logits_bias=True,
        scale_logits=False,
        decoder_start="sep",
        pooler=False,
        dropout=0.1,
        attention_dropout=0.1,
        mlp_dropout=0.1,
        init="normal",
        init_std=0.02,
    )
    return dataclasses.replace(config, **different)


def gpt(
    *, vocab_size: int, d_model: int, num_layers: int, num_heads: int, d_ff: int, **different: object
) -> ModelConfig:
    """Returns a decoder like GPT-2 (Radford et al., 2019).

    A pre-norm decoder with learned positions and GELU (tanh approximation). The output projection is the token
    embedding, without a bias. It starts from other weights than GPT-2, which scales those that write to the residual
    stream by 1 / sqrt(2 num_layers). `lm/huggingface` does not convert it.
    """
    config = ModelConfig(
        architecture="decoder",
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        d_ff=d_ff,
        norm="layernorm",
        norm_position="pre",
        norm_eps=1e-5,
        norm_bias=True,
        embedding_norm=False,
        final_norm=True,
        activation="gelu_tanh",
        gated=False,
        attention_bias=True,
        mlp_bias=True,
        position="learned",
        max_length=1024,
        token_types=0,
        attention_scale=True,
        tie_embeddings=True,
        logits_bias=False,
        scale_logits=False,
        pooler=False,
        dropout=0.1,
        attention_dropout=0.1,
        mlp_dropout=0.0,
        init="normal",
        init_std=0.02,
    )
    return dataclasses.replace(config, **different)


# Families that differ from another in a few fields. They are called like the functions above.

# RoBERTa (Liu et al., 2019) and XLM-R (Conneau et al., 2020): one token type, the exact GELU, no
# next-sentence head.
roberta = functools.partial(bert, norm_eps=1e-5, token_types=1, activation="gelu", head_activation="gelu", pooler=False)

# DistilBERT (Sanh et al., 2019): no token types, no next-sentence head.
distilbert = functools.partial(bert, token_types=0, activation="gelu", head_activation="gelu", pooler=False)

# ELECTRA (Clark et al., 2020): no next-sentence head. Some sizes have an `embedding_width`.
electra = functools.partial(bert, activation="gelu", head_activation="gelu", pooler=False)

# MPNet (Song et al., 2020): its attention also adds T5's relative bias. It has no token types.
mpnet = functools.partial(distilbert, norm_eps=1e-5, position="learned-relative")

# ALBERT (Lan et al., 2020): all layers have the same weights. Its second task asks whether two segments were swapped,
# where BERT's asks whether they belong together.
albert = functools.partial(bert, embedding_width=128, share_layers=True, dropout=0.0, attention_dropout=0.0)

# umT5 (Chung et al., 2023): a T5 1.1 in which every layer has a table of relative positions of its own.
umt5 = functools.partial(t5_1_1, relative_shared=False)

# mBART (Liu et al., 2020): norms before the sublayers and after the last layer; the embeddings are scaled.
mbart = functools.partial(bart, norm_position="pre", final_norm=True, scale_embedding=True)

# Marian, the models of OPUS-MT (Tiedemann and Thottingal, 2020): sinusoidal positions; the embeddings are scaled and
# have no norm. The decoder is given padding first.
marian = functools.partial(
    bart,
    position="sinusoidal",
    embedding_norm=False,
    scale_embedding=True,
    activation="silu",
    decoder_start="pad",
)

# PEGASUS (Zhang et al., 2020): as Marian, but with norms before the sublayers and after the last layer.
pegasus = functools.partial(marian, norm_position="pre", final_norm=True, activation="relu")

# M2M-100 (Fan et al., 2021) and NLLB-200 (NLLB Team, 2022): as PEGASUS, but with tensor2tensor's sinusoidal positions,
# which begin at 2, and logits without a bias. The decoder is given the end of a sequence first.
m2m100 = functools.partial(pegasus, position="sinusoidal-t2t", first_position=2, logits_bias=False, decoder_start="sep")
