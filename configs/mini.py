"""A BERT that fits a workstation: 6 layers of width 384, on the docstrings of the installed Python packages.

    python launch/train.py --config=configs/mini.py --workdir=runs/mini

Give `--config.data.source=text --config.data.path=FILES` for a corpus of your own.

Hardware: two CPU cores, or one GPU with `--config.train.dtype=bfloat16`.
Time:     about 6 hours on two cores (planned, not yet measured).
Score:    eval/mlm_accuracy 0.5 or more (planned, not yet measured).
"""

from lm.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="installed-docs", vocab_size=8192, seq_length=256, batch_size=32),
        model=ModelConfig(vocab_size=8192, d_model=384, num_layers=6, num_heads=6, d_ff=1536, max_length=256),
        optim=OptimConfig(learning_rate=7e-4, warmup_steps=500),
        train=TrainConfig(steps=5_000, log_every=20, eval_every=500),
        checkpoint=CheckpointConfig(every=500),
    )
