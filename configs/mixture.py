"""One small T5 1.1 for three tasks at once: hidden spans of docstrings, questions about them, and dates to ISO 8601.

    pip install -e '.[corpora,metrics]'
    python launch/train.py --config=configs/mixture.py --workdir=runs/mixture
    python launch/evaluate.py --checkpoint=runs/mixture --metric=exact-match
    echo 'write as ISO 8601: Dienstag, 3. November 2026' | \\
        python launch/predict.py --checkpoint=runs/mixture --task=generate

Every batch holds rows of all tasks; half of them are for span corruption. A flag changes a task, such as
`--config.mixture.tasks.dates.rate=3`. With `--config.mixture.temperature=2` the sizes of the texts count too (see
lm.config.MixtureConfig). The tokenizer is trained on equal shares of the three texts. Each task has its own store,
`WORKDIR/store/TASK`, and its own metrics, `eval/TASK/seq2seq_loss`.

To mix existing stores, made by launch/prepare.py with one tokenizer, give a task a `store` instead of a `source`. A
mixture for an encoder, such as English and Chinese text, is written in the same way.

All tasks share one shape of rows, so a task whose sources and targets have other proportions pads one side: 18% of all
tokens are padding here, 3% in span corruption alone.

Hardware: two CPU cores, no accelerator.
Time:     planned, not yet measured.
Score:    planned, not yet measured.
"""

from lm import families
from lm.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    MixtureConfig,
    ObjectiveConfig,
    OptimConfig,
    TaskConfig,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        data=DataConfig(
            vocab_size=8192,
            split_digits=True,
            seq_length=256,
            target_length=64,
            batch_size=16,
            max_segments=16,
        ),
        model=families.t5_1_1(
            vocab_size=0,
            d_model=256,
            num_layers=4,
            num_decoder_layers=2,
            num_heads=4,
            d_ff=512,
            relative_init="init",  # smaller than T5's own; lets runs of earlier commits resume
            final_dropout=False,  # no effect without dropout; lets runs of earlier commits resume
        ),
        # Spans of each docstring alone: most are shorter than a row.
        objective=ObjectiveConfig(name="span_corruption", join_documents=False, z_loss=1e-4),
        mixture=MixtureConfig(
            tasks={
                "spans": TaskConfig(source="installed-docs", rate=0.5),
                "questions": TaskConfig(source="docs-questions", objective="pairs", rate=0.3),
                "dates": TaskConfig(source="dates", objective="pairs", prefix="write as ISO 8601:", rate=0.2),
            },
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=300, b2=0.98, weight_decay=0.01),
        train=TrainConfig(steps=3000, log_every=20, eval_every=500, eval_batches=10),
        checkpoint=CheckpointConfig(every=500, keep=2),
    )
