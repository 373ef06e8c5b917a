"""The section `model`: one Transformer. `lm/families.py` gives the published ones."""

import dataclasses

from lm.config.bounds import at_least, check, setting
from lm.errors import InputError

_ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
_POSITIONS = ("learned", "rotary", "relative", "learned-relative", "sinusoidal", "sinusoidal-t2t", "none")


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """One Transformer. Its defaults describe a small BERT (Devlin et al., 2019).

    Attributes:
        architecture: `encoder` (BERT), `encoder-decoder` (T5, BART) or `decoder` (GPT).
        vocab_size: rows of the token embedding; at least one for each piece of the tokenizer. 0 means the number of
            pieces, rounded up to a multiple of 128. The rows above the number of pieces never get probability.
        d_model: width of the hidden states.
        num_layers: layers of each stack.
        num_decoder_layers: layers of an encoder-decoder's decoder, where they are not num_layers; 0 means num_layers.
        num_heads: attention heads of a layer.
        head_dim: width of a head; 0 means d_model / num_heads.
        d_ff: width of the feed-forward network.
        norm: the kind of norm: `layernorm` or `rmsnorm`.
        norm_position: `post`, after the residual (BERT, BART), or `pre`, before the sublayer (ModernBERT, T5).
        norm_eps: what a norm adds to the variance.
        norm_bias: whether a layernorm has a bias.
        embedding_norm: whether a norm follows the embeddings.
        first_attention_norm: whether layer 0 has a norm for its self-attention (ModernBERT: no).
        final_norm: whether a norm follows the last layer, as pre-norm models need.
        final_dropout: whether dropout follows the last layer and its norm (T5).
        activation: the activation of the feed-forward network: `relu`, `gelu` (with erf), `gelu_tanh` or `silu`.
        gated: whether the activation is multiplied by a second projection of the input.
        attention_bias: whether the linear maps of attention have biases.
        mlp_bias: whether the linear maps of the feed-forward network have biases.
        position: the kind of positions: `learned`, `rotary`, `relative` (T5's buckets), `learned-relative` (both, as
            in MPNet), `sinusoidal` (Vaswani et al., 2017, section 3.5), `sinusoidal-t2t` (with the frequencies of
            tensor2tensor, as in M2M100) or `none`.
        max_length: rows of the table of learned positions.
        first_position: the number of a segment's first position, where positions are sinusoidal (M2M100: 2).
        relative_buckets: rows of a stack's table of relative positions (Raffel et al., 2020, section 2.1).
        relative_max_distance: the distance from which on all distances share the last bucket.
        relative_shared: whether the layers of a stack share one table of relative positions (umT5: no).
        token_types: rows of the token type table; 0 means no table.
        rope_theta: base of the rotary frequencies in global layers.
        rope_theta_local: base of the rotary frequencies in local layers.
        global_every: layer i is global, and attends to its whole segment, where i % global_every == 0. The others are
            local. 1 makes every layer global.
        window: how many tokens to either side a local layer attends to.
        attention_scale: whether attention scores are divided by sqrt(head_dim) (T5: no).
        head_bias: whether the dense layer of the MLM head has a bias.
        head_activation: the activation that follows the dense layer of the MLM head.
        embedding_width: width of the embeddings of an encoder. A linear map to d_model follows them (ELECTRA, ALBERT),
            and the MLM head predicts from this width. 0 means d_model and no map.
        scale_embedding: whether the token embeddings are multiplied by sqrt(d_model) (Marian, mBART).
        share_layers: whether all layers of a stack have the same weights (ALBERT).
        tie_embeddings: whether the output projection is the token embedding.
        logits_bias: whether the output projection has a bias (BERT, BART).
        scale_logits: whether the input of the output projection is divided by sqrt(d_model) (T5 1.0).
        decoder_start: the first token that a decoder is given: `pad` (T5) or `sep` (BART).
        pooler: whether an encoder has a next-sentence head: a tanh layer on [CLS] and a projection to two classes.
        dropout: the rate on embeddings and on what a sublayer returns.
        attention_dropout: the rate on attention weights.
        mlp_dropout: the rate on the output of the feed-forward network's activation.
        init: how weights are drawn. `normal`: truncated normal, of standard deviation `init_std`. `megatron`
            (ModernBERT): the same, but divided by sqrt(2 num_layers) in the linear maps that write to the residual
            stream, and in the MLM head's dense layer. `fan_in` (T5): normal, of standard deviation 1 / sqrt(inputs)
            for linear maps and 1 for the token embedding. Where attention scores are not scaled, that of the query
            map is also divided by sqrt(head_dim).
        init_std: the standard deviation of `normal` and `megatron`.
        relative_init: how the table of relative positions is drawn. `fan_avg` (T5): uniform, of variance
            2 / (rows + heads). `init`: as `model.init` says; `fan_in` then has standard deviation 1 / sqrt(d_model), as
            in transformers.
    """

    architecture: str = setting("encoder", one_of=("encoder", "encoder-decoder", "decoder"))
    vocab_size: int = setting(8192, at_least=0)
    d_model: int = setting(256, at_least=1)
    num_layers: int = setting(4, at_least=1)
    num_decoder_layers: int = setting(0, at_least=0)
    num_heads: int = setting(4, at_least=1)
    head_dim: int = setting(0, at_least=0)
    d_ff: int = setting(1024, at_least=1)
    norm: str = setting("layernorm", one_of=("layernorm", "rmsnorm"))
    norm_position: str = setting("post", one_of=("pre", "post"))
    norm_eps: float = setting(1e-12, within=(0.0, 1.0))
    norm_bias: bool = True
    embedding_norm: bool = True
    first_attention_norm: bool = True
    final_norm: bool = False
    final_dropout: bool = False
    activation: str = setting("gelu", one_of=_ACTIVATIONS)
    gated: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    position: str = setting("learned", one_of=_POSITIONS)
    max_length: int = setting(512, at_least=1)
    first_position: int = setting(0, at_least=0)
    relative_buckets: int = setting(32, at_least=4)
    relative_max_distance: int = 128
    relative_shared: bool = True
    token_types: int = setting(2, at_least=0)
    rope_theta: float = setting(10_000.0, at_least=1)
    rope_theta_local: float = setting(10_000.0, at_least=1)
    global_every: int = setting(1, at_least=1)
    window: int = setting(64, at_least=0)
    attention_scale: bool = True
    head_bias: bool = True
    head_activation: str = setting("gelu", one_of=_ACTIVATIONS)
    embedding_width: int = setting(0, at_least=0)
    scale_embedding: bool = False
    share_layers: bool = False
    tie_embeddings: bool = True
    logits_bias: bool = True
    scale_logits: bool = False
    decoder_start: str = setting("pad", one_of=("pad", "sep"))
    pooler: bool = True
    dropout: float = setting(0.1, within=(0.0, 0.99))
    attention_dropout: float = setting(0.1, within=(0.0, 0.99))
    mlp_dropout: float = setting(0.0, within=(0.0, 0.99))
    init: str = setting("normal", one_of=("normal", "megatron", "fan_in"))
    init_std: float = setting(0.02, at_least=0)
    relative_init: str = setting("fan_avg", one_of=("fan_avg", "init"), before="init")

    @property
    def width_per_head(self) -> int:
        """K: `head_dim`, or d_model / num_heads where it is 0."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def has_position_table(self) -> bool:
        """Whether the model has a table of learned positions, whose rows limit the length of a text."""
        return self.position in ("learned", "learned-relative")

    @property
    def has_relative_bias(self) -> bool:
        """Whether attention adds a bias for the distance of query and key."""
        return self.position in ("relative", "learned-relative")

    @property
    def decoder_depth(self) -> int:
        """Layers of the decoder; 0 where there is none."""
        if self.architecture == "encoder":
            return 0
        return (self.architecture == "encoder-decoder" and self.num_decoder_layers) or self.num_layers

    def validate(self) -> None:
        """Checks every field, and the fields that must agree.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("model", self)
        at_least("model.relative_max_distance", self.relative_max_distance, self.relative_buckets)
        if not self.head_dim and self.d_model % self.num_heads:
            raise InputError(
                f"model.d_model is {self.d_model}, which model.num_heads={self.num_heads} does not divide; "
                "change one of them or set model.head_dim."
            )
        if self.embedding_width and self.architecture != "encoder":
            raise InputError(
                f"model.embedding_width is {self.embedding_width}; only model.architecture=encoder accepts one; set it "
                "to 0."
            )
        if self.position.startswith("sinusoidal") and (self.d_model % 2 or self.d_model < 4):
            raise InputError(f"model.d_model is {self.d_model}; sinusoidal positions need an even number above 2.")
        if self.position == "rotary" and self.width_per_head % 2:
            raise InputError(f"model.head_dim is {self.width_per_head}; rotary positions need an even number.")
