"""The stores and configs of tests/data and tests/training."""

from tests.data.conftest import corpus_file, data_config, documents, made, mixture_config, pairs, pairs_file, rng
from tests.training.conftest import tiny_config, tiny_seq2seq, tiny_store

__all__ = [
    "corpus_file",
    "data_config",
    "documents",
    "made",
    "mixture_config",
    "pairs",
    "pairs_file",
    "rng",
    "tiny_config",
    "tiny_seq2seq",
    "tiny_store",
]
