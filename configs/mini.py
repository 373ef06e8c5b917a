"""A ModernBERT of 4 layers and width 256 on the docstrings of the installed Python packages.

    python launch/train.py --config=configs/mini.py --workdir=runs/mini

Give `--config.data.source=text --config.data.path=FILES` for a corpus of your own.

Hardware: two CPU cores, no accelerator.
Time:     50 minutes on two cores that also did other work; 27 (0.8 s a step) where it had them to itself.
Score:    on held-out documents eval/mlm_accuracy 0.461 with 30% of the tokens masked, mlm_loss 3.10; always
          guessing the most frequent token scores 0.045. The corpus had 10.2 million tokens, seen 0.8 times.
"""

from lm import families
from lm.config import CheckpointConfig, Config, DataConfig, ObjectiveConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="installed-docs", vocab_size=8192, seq_length=256, batch_size=16),
        model=families.modernbert(
            vocab_size=8192,
            d_model=256,
            num_layers=4,
            num_heads=4,
            d_ff=512,
            max_length=512,
            window=32,
            # 1 / sqrt(d_model): BERT's 0.02 suits a width of 768 and starts a narrow model too small.
            init_std=0.06,
        ),
        objective=ObjectiveConfig(nsp=False, mask_rate=0.3),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=150, b2=0.98, weight_decay=0.01),
        train=TrainConfig(steps=2000, log_every=10, eval_every=250, eval_batches=50),
        checkpoint=CheckpointConfig(every=250, keep=2),
    )
