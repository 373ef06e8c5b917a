"""ModernBERT base (Warner et al., 2024): 149M parameters, masked tokens only.

    python launch/train.py --config=configs/modernbert_base.py --workdir=gs://my-bucket/modernbert-base \\
        --config.data.path='corpus/*.jsonl'

This is the paper's first phase: 1,719 billion tokens in rows of 1,024. Initial weights, StableAdamW and the shape of
the decay, 1 - sqrt, are those of the authors' code, AnswerDotAI/ModernBERT; `optim.decay=linear` is the other shape.
Two things of the paper's later phases come earlier here: the learning rate decays, over the last 3% of the steps, and
the global layers' rotary base is 160,000 (10,000 in the paper's first phase). Two things are left out: the paper's
batch grows from 768 rows over the first 50 billion tokens, and it drops 10% of the attention output.

Hardware: TPU v5e-256, 18 rows a chip.
Time:     16 hours at 50% of the chips' peak (planned, not yet measured: 1.4e21 operations in all). The paper's
          run took 194 hours on 8 H100.
Score:    the paper's model scores 88.4 on GLUE's development sets; ours is not yet measured.
"""

from lm import families
from lm.config import CheckpointConfig, Config, DataConfig, ObjectiveConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source="jsonl",
            path="corpus/*.jsonl",
            tokenizer_kind="bpe",
            vocab_size=50_368,
            seq_length=1024,
            max_segments=32,
            batch_size=4608,
        ),
        model=families.modernbert(vocab_size=50_368, d_model=768, num_layers=22, num_heads=12, d_ff=1152),
        objective=ObjectiveConfig(nsp=False, mask_rate=0.3),
        optim=OptimConfig(
            name="stable_adamw",
            learning_rate=8e-4,
            schedule="wsd",
            warmup_steps=636,  # 3 billion tokens
            decay_fraction=0.03,
            b2=0.98,
            weight_decay=1e-5 / 8e-4,  # the paper's is 1e-5 and not multiplied by the learning rate; ours is
            clip_norm=0.0,
        ),
        train=TrainConfig(steps=364_000, dtype="bfloat16", unroll=0, log_every=100, eval_every=4_000),
        checkpoint=CheckpointConfig(every=4_000),
    )
