"""BERT large (Devlin et al., 2019): 340M parameters, masked tokens and next sentences.

    python launch/train.py --config=configs/bert_large.py --workdir=gs://my-bucket/bert-large \\
        --config.data.path='corpus/*.jsonl'

The corpus, the rows and the recipe are as in bert_base.py.

Hardware: TPU v5e-64, 4 rows a chip.
Time:     12 hours at 50% of the chips' peak (planned, not yet measured: 2.6e20 operations in all).
Score:    the paper's model scores 82.1 on GLUE's test sets and F1 90.9 on SQuAD 1.1; ours is not yet measured.
"""

from lm import families
from lm.config import CheckpointConfig, Config, DataConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source="jsonl", path="corpus/*.jsonl", vocab_size=30_522, seq_length=512, batch_size=256, max_segments=16
        ),
        model=families.bert(
            vocab_size=30_592,  # the next multiple of 128
            d_model=1024,
            num_layers=24,
            num_heads=16,
            d_ff=4096,
            attention_dropout=0.0,  # the paper has 0.1; a TPU's flash attention has no weights to drop
        ),
        optim=OptimConfig(
            learning_rate=1e-4,
            schedule="linear_from_start",
            warmup_steps=10_000,
            weight_decay=0.01,
            bias_correction=False,
        ),
        train=TrainConfig(steps=1_000_000, dtype="bfloat16", unroll=0, log_every=100, eval_every=10_000),
        checkpoint=CheckpointConfig(every=5_000),
    )
