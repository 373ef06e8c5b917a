"""A ModernBERT of 4 layers and width 256, trained on the docstrings of the installed Python packages.

    python launch/train.py --config=configs/mini.py --workdir=runs/mini

Give `--config.data.source=text --config.data.path=FILES` for a corpus of your own.

Hardware: two CPU cores, no accelerator.
Time:     27 minutes on two idle cores (0.8 s a step); 50 minutes while the cores also did other work.
Score:    on held-out documents, with 30% of the tokens masked, eval/mlm_accuracy 0.461 and mlm_loss 3.10. Always
          guessing the most frequent token scores 0.045. The corpus had 10.2 million tokens; the run saw 0.8 of them.
"""

from lm import families
from lm.config import CheckpointConfig, Config, DataConfig, ObjectiveConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="installed-docs", vocab_size=8192, seq_length=256, batch_size=16),
        model=families.modernbert(
            vocab_size=0,
            d_model=256,
            num_layers=4,
            num_heads=4,
            d_ff=512,
            max_length=512,  # only exported: rotary positions need no table
            window=32,
            init="normal",  # of all weights, as this run was measured; the family's begins residual ones smaller
            init_std=0.06,  # 1 / sqrt(d_model); the family's 0.02 suits a width of 768 and is too small here
        ),
        objective=ObjectiveConfig(nsp=False, mask_rate=0.3),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=150, b2=0.98, weight_decay=0.01),
        train=TrainConfig(steps=2000, log_every=10, eval_every=250, eval_batches=50),
        checkpoint=CheckpointConfig(every=250, keep=2),
    )
