"""A small BERT from nothing to filled masks, on the docstrings of the installed Python packages.

    bash launch/quickstart.sh
    python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

Hardware: two CPU cores, no accelerator, no download beyond pip.
Time:     about 10 minutes (planned, not yet measured).
Score:    eval/mlm_accuracy 0.3 or more (planned, not yet measured).
"""

from lm.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="installed-docs", vocab_size=8192, seq_length=128, batch_size=32),
        model=ModelConfig(
            vocab_size=8192, d_model=256, num_layers=4, num_heads=4, d_ff=1024, dropout=0.0, attention_dropout=0.0
        ),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=60),
        train=TrainConfig(steps=600, log_every=10, eval_every=200),
        checkpoint=CheckpointConfig(every=200, keep=2),
    )
