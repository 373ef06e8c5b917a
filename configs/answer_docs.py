"""Questions about Python functions, answered from their documentation: "What is axis?" and a passage in, an answer out.

    python launch/train.py --config=configs/answer_docs.py --workdir=runs/answer
    python launch/evaluate.py --checkpoint=runs/answer --metric=exact-match --shown=10
    echo '{"question": "What is path?", "context": "Parameters: path: where the file is."}' | \\
        python launch/predict.py --checkpoint=runs/answer --task=answer

The questions are made from docstrings of this Python installation: they ask for the description or the type of a
parameter, for what a function returns, or for what it raises. The model learns to find and copy what a question names;
it does not learn to reason. Which questions there are depends on what is installed. No passage is in both splits. See
lm/data/docs_questions.py.

A T5 1.1 of 3 + 2 layers and width 128, with tied embeddings and rotary positions.

Hardware: one CPU core.
Time:     32 minutes on one core, 2,500 steps at 5,100 tokens a second.
Score:    exact match 71.1, F1 81.5 on all 1,200 held-out questions; answering as the most similar training
          question 3.9, 31.3; answering with the whole passage 0.0, 50.9. Most wrong answers copy another entry.
"""

from lm import families
from lm.config import CheckpointConfig, Config, DataConfig, ObjectiveConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source="docs-questions",
            vocab_size=2048,  # few pieces, each seen often: the task is to copy words, not to know them
            seq_length=384,
            target_length=96,  # the ratio of the lengths is that of mean sources and targets, so both sides fill
            batch_size=8,
            max_segments=16,
        ),
        model=families.t5_1_1(
            vocab_size=0,
            d_model=128,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            d_ff=384,
            position="rotary",  # learns to copy far sooner than with relative biases; see tests/benchmarks/RESULTS.md
            attention_scale=True,
            tie_embeddings=True,
            final_dropout=False,  # no effect without dropout; lets runs of earlier commits resume
            init="normal",
            init_std=0.09,  # 1 / sqrt(d_model); from T5's 1, Adam needs several times as many steps
        ),
        objective=ObjectiveConfig(name="pairs"),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=300, b2=0.98, weight_decay=0.01),
        train=TrainConfig(steps=2500, log_every=20, eval_every=500, eval_batches=30),
        checkpoint=CheckpointConfig(every=1000, keep=2),
    )
