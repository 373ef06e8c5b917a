"""BERT base (Devlin et al., 2019): 110M parameters, masked tokens and next sentences.

    python launch/train.py --config=configs/bert_base.py --workdir=gs://my-bucket/bert-base \\
        --config.data.path='corpus/*.jsonl'

The corpus is one JSON object a line, with the document under "text". The paper's corpus is English Wikipedia and
BooksCorpus, 3.3 billion words. All our rows are packed to 512 tokens; the paper trains 90% of its steps on rows of 128.
So our run has the paper's steps and rows, and more tokens. Masks, sentence pairs, AdamW without bias correction, the
learning rate and the initial weights are those of the authors' code, google-research/bert. The authors' rate drops by
1% at the end of the warm-up; with `optim.schedule=linear` it does not.

Hardware: TPU v5e-16, 16 rows a chip.
Time:     14 hours at 50% of the chips' peak (planned, not yet measured: 7.7e19 operations in all).
Score:    the paper's model scores 79.6 on GLUE's test sets and F1 88.5 on SQuAD 1.1; ours is not yet measured.
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
            d_model=768,
            num_layers=12,
            num_heads=12,
            d_ff=3072,
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
