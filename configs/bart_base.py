"""BART base (Lewis et al., 2020): 140M parameters, text infilling and sentence permutation.

    python launch/train.py --config=configs/bart_base.py --workdir=gs://my-bucket/bart-base \\
        --config.data.path='corpus/*.jsonl'

The corpus is one JSON object a line, with the document under "text". The paper's corpus is RoBERTa's 160 GB. Spans are
drawn as by the authors' code: up to 30% of the words, in spans of three on average that may overlap, and all sentences
change places. A source is about a fifth shorter than its target, but how much varies, so 8% of the encoder's places are
padding. `objective.spans=fixed` with `data.seq_length=410` hides the same number of tokens in every full row and needs
no padding.

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
            vocab_size=50_265,
            seq_length=452,
            target_length=512,
            begin_with_cls=True,
            batch_size=2048,
            max_segments=16,
        ),
        model=families.bart(
            vocab_size=50_304,  # the next multiple of 128
            d_model=768,
            num_layers=6,
            num_heads=12,
            d_ff=3072,
        ),
        objective=ObjectiveConfig(name="infilling", mask_rate=0.3, mean_span=3.0, permute_sentences=True),
        optim=OptimConfig(learning_rate=6e-4, warmup_steps=10_000, b2=0.98, eps=1e-6, weight_decay=0.01, clip_norm=0.1),
        train=TrainConfig(steps=500_000, dtype="bfloat16", unroll=0, log_every=100, eval_every=10_000),
        checkpoint=CheckpointConfig(every=5_000),
    )
