"""T5 1.1 base (Raffel et al., 2020; the 1.1 release): 248M parameters, span corruption.

    python launch/train.py --config=configs/t5_base.py --workdir=gs://my-bucket/t5-base \\
        --config.data.path='corpus/*.jsonl'

The corpus is one JSON object a line, with the document under "text". The paper's corpus is C4. As in the authors'
code, documents are joined and cut into texts of 568 tokens, which make rows of 512 inputs and 114 targets; attention
crosses from one document to the next. The learning rate, Adafactor, the initial weights and the z-loss are theirs too.
`objective.join_documents=False` hides spans in each document alone. Fine-tuning sets `dropout`, `attention_dropout` and
`mlp_dropout` to 0.1.

Hardware: TPU v5e-64.
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
            vocab_size=32_000,
            seq_length=512,
            target_length=114,
            batch_size=2048,
            max_segments=16,
        ),
        model=families.t5_1_1(vocab_size=32_128, d_model=768, num_layers=12, num_heads=12, head_dim=64, d_ff=2048),
        objective=ObjectiveConfig(name="span_corruption", mask_rate=0.15, mean_span=3.0, z_loss=1e-4),
        optim=OptimConfig(
            name="adafactor",
            learning_rate=0.01,
            schedule="rsqrt",
            warmup="constant",  # 1 / sqrt(max(step, 10,000))
            warmup_steps=10_000,
            weight_decay=0.0,
            clip_norm=0.0,
        ),
        train=TrainConfig(steps=1_000_000, dtype="bfloat16", unroll=0, log_every=100, eval_every=10_000),
        checkpoint=CheckpointConfig(every=5_000),
    )
