"""The encoder of the original Transformer by its formulas, trained on masked tokens and next sentences.

    python launch/train.py --config=configs/transformer_encoder.py --workdir=runs/transformer-encoder

Attention(Q, K, V) = softmax(Q K^T / sqrt(d_k)) V with Q = X W^Q, K = X W^K, V = X W^V
FFN(x)             = max(0, x W_1 + b_1) W_2 + b_2
each sublayer      = LayerNorm(x + Sublayer(x))

The sizes, the optimizer and its schedule are those of the base model of Vaswani et al., 2017. Two things are BERT's:
learned positions, and the dense layer before the vocabulary projection. The next-sentence probability is a softmax over
two logits, which is the sigmoid of their difference.

Hardware: two CPU cores, or one GPU with `--config.train.dtype=bfloat16`.
Time:     about 9 hours on two cores (planned, not yet measured).
Score:    eval/mlm_accuracy 0.4 or more (planned, not yet measured).
"""

from lm.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="installed-docs", vocab_size=8192, seq_length=128, batch_size=32),
        model=ModelConfig(
            vocab_size=0,
            d_model=512,
            num_layers=6,
            num_heads=8,
            d_ff=2048,
            norm_eps=1e-6,
            embedding_norm=False,
            activation="relu",
            head_activation="relu",
            attention_bias=False,
            max_length=128,
            dropout=0.1,
            attention_dropout=0.0,
        ),
        optim=OptimConfig(
            learning_rate=(512 * 4000) ** -0.5,  # d_model^-0.5 step^-0.5 at the end of the warm-up
            schedule="rsqrt",
            warmup_steps=4000,
            b2=0.98,
            eps=1e-9,
            weight_decay=0.0,
            clip_norm=0.0,
        ),
        train=TrainConfig(steps=10_000, log_every=20, eval_every=1_000),
        checkpoint=CheckpointConfig(every=1_000),
    )
