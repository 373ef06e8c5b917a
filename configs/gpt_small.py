"""A causal language model of GPT-2's size (Radford et al., 2019): 124M parameters, a decoder alone.

    python launch/train.py --config=configs/gpt_small.py --workdir=gs://my-bucket/gpt-small \\
        --config.data.path='corpus/*.jsonl'

The corpus is one JSON object a line, with the document under "text". The model is the decoder of T5 and BART without
its attention to an encoder, with GPT-2's pre-norm and learned positions.

Hardware: TPU v5e-16.
Time:     planned, not yet measured.
Score:    planned, not yet measured.
"""

from lm import families
from lm.config import CheckpointConfig, Config, DataConfig, ObjectiveConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source="jsonl",
            path="corpus/*.jsonl",
            vocab_size=50_257,
            seq_length=1024,
            batch_size=512,
            max_segments=32,
        ),
        model=families.gpt(
            vocab_size=50_304,  # the next multiple of 128
            d_model=768,
            num_layers=12,
            num_heads=12,
            d_ff=3072,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        objective=ObjectiveConfig(name="causal_lm"),
        optim=OptimConfig(
            learning_rate=6e-4,
            schedule="cosine",
            warmup_steps=2_000,
            final_fraction=0.1,
            b2=0.95,
            eps=1e-8,
            weight_decay=0.1,
        ),
        train=TrainConfig(steps=100_000, dtype="bfloat16", unroll=0, log_every=100, eval_every=5_000),
        checkpoint=CheckpointConfig(every=5_000),
    )
