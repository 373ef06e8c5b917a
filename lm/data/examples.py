"""The examples of an epoch as spans of the corpus. They are planned from lengths alone; no token is read."""

import dataclasses

import numpy as np

from lm.data.flat import ranks
from lm.data.store import Split

# `sentence_pairs` cuts documents into lanes of at most this many sentences, and makes the pairs of all lanes together.
# So a corpus of one long document takes no longer than a corpus of many.
_LANE_SENTENCES = 512


@dataclasses.dataclass
class Examples:
    """N examples of K spans each: a text, two sentences, or a source and its target.

    Attributes:
        starts: int64 [N, K], the first token of each span in its split.
        lengths: int32 [N, K], tokens in each span.
        labels: [N, ...] of any dtype, a label of each example. Those of `sentence_pairs` are int8 [N]: 0 where the
            second span follows the first, 1 where it is from elsewhere. None where examples have no labels.
        truncated: how many examples lost tokens, because a supervised pair did not fit into a row.
    """

    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray | None = None
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def row_lengths(self) -> np.ndarray:
        """int64 [N], tokens in an encoder's row: `[CLS] span [SEP] span [SEP] ...`."""
        return self.lengths.sum(1, dtype=np.int64) + 1 + self.lengths.shape[1]

    def __getitem__(self, index: np.ndarray) -> "Examples":
        labels = None if self.labels is None else self.labels[index]
        return Examples(self.starts[index], self.lengths[index], labels)


def running_text(split: Split, most: int, overhead: int, rng: np.random.Generator) -> Examples:
    """Returns documents, each cut into pieces of at most `most` tokens.

    Each token is in exactly one piece. The first piece of a long document has a random length, so that every epoch cuts
    the document elsewhere. A short document stays whole and leaves a gap in its row. So as many first pieces as there
    are short documents have the length that fills the row of one of them. At L = 128 this leaves 0.5% padding, where
    uniformly random lengths leave 2.4%.

    Args:
        split: the corpus.
        most: tokens of a piece that fills a row.
        overhead: special tokens that each further piece adds to a row.
        rng: decides the lengths of first pieces.
    """
    bounds = split.document_bounds
    starts, sizes = bounds[:-1], np.diff(bounds)
    is_long = sizes > most
    first = rng.integers(1, most + 1, len(sizes))
    beside = sizes[sizes < most - overhead]
    if len(beside):
        fills = rng.random(len(sizes)) < len(beside) / max(is_long.sum(), 1)
        first = np.where(fills, most - overhead - rng.choice(beside, len(sizes)), first)
    first = np.where(is_long, first, sizes)
    pieces = 1 + -(-(sizes - first) // most)
    nth = ranks(pieces)
    document = np.repeat(np.arange(len(sizes)), pieces)
    begin = np.where(nth == 0, 0, first[document] + (nth - 1) * most)
    end = np.minimum(first[document] + nth * most, sizes[document])
    return Examples((starts[document] + begin)[:, None], (end - begin).astype(np.int32)[:, None])


def joined_text(split: Split, most: int, rng: np.random.Generator) -> Examples:
    """Returns all documents, joined in their order and cut into pieces of `most` tokens, as T5's are.

    Each token is in exactly one piece. The first cut is at a random place, so that every epoch cuts elsewhere. T5 joins
    128 documents at a time, without a token between them (`reduce_concat_tokens` and `split_tokens` in
    t5/data/preprocessors.py of google-research/text-to-text-transfer-transformer).

    Args:
        split: the corpus.
        most: tokens in a piece.
        rng: decides the first cut.
    """
    cuts = np.arange(rng.integers(1, most + 1), split.num_tokens, most)
    bounds = np.concatenate([[0], cuts, [split.num_tokens]])
    return Examples(bounds[:-1, None], np.diff(bounds).astype(np.int32)[:, None])


def pairs(split: Split, most: tuple[int, ...]) -> Examples:
    """Returns the pairs of a corpus, cut to `most` tokens on each side. A document is a source and its target."""
    offsets = split.sentence_offsets
    starts = np.stack([offsets[:-1][::2], offsets[:-1][1::2]], axis=1)
    lengths = np.diff(offsets).reshape(-1, 2)
    kept = np.minimum(lengths, most).astype(np.int32)
    truncated = int((kept < lengths).any(axis=1).sum())
    return Examples(starts, kept, truncated=truncated)


def sentence_pairs(split: Split, seq_length: int, short_seq_prob: float, rng: np.random.Generator) -> Examples:
    """Returns next-sentence pairs by BERT's rule, `create_instances_from_document` of google-research/bert.

    Sentences of a document are collected into a chunk until they reach a target length. This is `seq_length - 3` or,
    with the probability `short_seq_prob`, a random shorter length for the whole document. The first segment is a random
    number of the chunk's first sentences. The second segment is the rest of the chunk. In half of the chunks, and where
    there is no rest, it is instead a run of sentences from a random place in another document; the rest then begins the
    next chunk. A pair that is too long loses tokens at random from both ends of its longer segment.

    Two details differ from BERT. The other document is never the same one, if there is another (BERT tries ten times);
    in a large corpus it is of the same window. Documents of more than 512 sentences are cut into lanes first. All lanes
    advance by one chunk at a time.
    """
    tokens, documents = split.sentence_offsets, split.document_offsets
    most = seq_length - 3
    num_documents = len(documents) - 1
    lanes = -(-np.diff(documents) // _LANE_SENTENCES)
    document = np.repeat(np.arange(num_documents), lanes)
    cursor = documents[document] + ranks(lanes) * _LANE_SENTENCES
    end = np.minimum(cursor + _LANE_SENTENCES, documents[document + 1])
    target = np.full(num_documents, most)
    short = rng.random(num_documents) < short_seq_prob
    target[short] = rng.integers(2, most + 1, short.sum())
    target = target[document]

    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while len(cursor):
        chunk_end = np.minimum(np.searchsorted(tokens, tokens[cursor] + target), end)
        size = chunk_end - cursor
        split_at = cursor + np.where(size > 1, rng.integers(1, np.maximum(size, 2)), 1)
        is_random = (size == 1) | (rng.random(len(cursor)) < 0.5)
        first = tokens[cursor], tokens[split_at]
        other_begin, other_end = _other_document(split, document, target - (first[1] - first[0]), rng)
        second = (
            np.where(is_random, other_begin, tokens[split_at]),
            np.where(is_random, other_end, tokens[chunk_end]),
        )
        parts.append((*_truncated(*first, *second, most, rng), is_random.astype(np.int8)))
        cursor = np.where(is_random, split_at, chunk_end)
        goes_on = cursor < end
        cursor, end, document, target = (values[goes_on] for values in (cursor, end, document, target))
    if not parts:
        return Examples(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.int32), np.zeros(0, np.int8))
    starts, lengths, labels = map(np.concatenate, zip(*parts, strict=True))
    return Examples(starts, lengths, labels)


def _other_document(
    split: Split, document: np.ndarray, wanted: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns where runs of sentences from random places in other documents begin and end, int [N] each in tokens.

    Args:
        split: the corpus.
        document: int [N], the documents not to take.
        wanted: int [N], the number of tokens at which a run ends, with the sentence that reaches it. A run has at least
            one sentence.
        rng: decides the documents and the places.
    """
    tokens, documents = split.sentence_offsets, split.document_offsets
    num_documents = len(documents) - 1
    other = document
    if num_documents > 1:
        other = rng.integers(0, num_documents - 1, len(document))
        other += other >= document
    begin = rng.integers(documents[other], documents[other + 1])
    end = np.searchsorted(tokens, tokens[begin] + np.maximum(wanted, 1))
    return tokens[begin], tokens[np.minimum(end, documents[other + 1])]


def _truncated(
    first_begin: np.ndarray,
    first_end: np.ndarray,
    second_begin: np.ndarray,
    second_end: np.ndarray,
    most: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns starts and lengths of pairs, cut to `most` tokens as BERT's `truncate_seq_pair` cuts them.

    BERT removes one token at a time from the longer segment, or from the second if both are equal: from the front or
    from the back, with equal probability. We compute the result at once. First the longer segment shrinks until both
    are equal, then both shrink in turns. Of the tokens that a segment loses, a binomial number are at its front.
    """
    lengths = np.stack([first_end - first_begin, second_end - second_begin], axis=1)
    excess = np.maximum(lengths.sum(1) - most, 0)
    difference = lengths[:, 0] - lengths[:, 1]
    to_equal = np.minimum(np.abs(difference), excess)
    rest = excess - to_equal
    cut = np.stack(
        [np.where(difference > 0, to_equal, 0) + rest // 2, np.where(difference < 0, to_equal, 0) + (rest + 1) // 2],
        axis=1,
    )
    starts = np.stack([first_begin, second_begin], axis=1) + rng.binomial(cut, 0.5)
    return starts, (lengths - cut).astype(np.int32)
