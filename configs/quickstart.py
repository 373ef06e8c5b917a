"""A small encoder, trained from nothing on the docstrings of the installed Python packages, that fills in masks.

    bash launch/quickstart.sh
    python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

It has BERT's two objectives, masked tokens and next sentences, but pre-norm and rotary positions. At this size such a
model predicts more than word frequencies after a few hundred steps; with BERT's own post-norm and learned positions it
takes several times as many.

Hardware: two CPU cores, no accelerator, no download beyond pip.
Time:     5 minutes 17 seconds on two cores, from a fresh clone, the virtual environment included.
Score:    on held-out documents mlm_accuracy 0.324 (always guessing the most frequent token: 0.042) and
          nsp_accuracy 0.621 (always guessing the more frequent class: 0.584).
"""

from lm.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(source="installed-docs", vocab_size=4096, seq_length=128, batch_size=16),
        model=ModelConfig(
            vocab_size=0,
            d_model=192,
            num_layers=3,
            num_heads=3,
            d_ff=768,
            norm_position="pre",
            final_norm=True,
            position="rotary",
            dropout=0.0,
            attention_dropout=0.0,
            init_std=0.06,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100, b2=0.98),
        train=TrainConfig(steps=1500, log_every=10, eval_every=200),
        checkpoint=CheckpointConfig(every=200, keep=2),
    )
