"""MinHash: how alike two texts are, from a few numbers of each, and keys that only texts which are alike share.

A text is the set of its shingles. A shingle is 15 bytes of UTF-8 from the beginning of a character on: 15 Latin letters
or 5 Chinese characters. Only letters and digits count, in lower case and in Unicode's compatible form (NFKC). A text
without any is taken as it is. Two texts of which one word in forty differs have a Jaccard similarity of about 0.8.

A signature has the smallest of the shingles' hashes by 128 hash functions. The share of equal numbers in two signatures
estimates the Jaccard similarity of the two sets (Broder, 1997). A signature is cut into bands of some numbers each. A
band has one key. Two texts of similarity s have an equal key with the probability 1 - (1 - s^numbers)^bands
(Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4).
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

HASHES = 128
SHINGLE = 15  # bytes
_LEAST_CHANCE = 0.9  # of finding two texts that are exactly as alike as is asked for
_BLOCK = 1 << 17  # bytes that are hashed at a time: their hashes fit a processor's cache
_IGNORED = re.compile(r"[\W_]+")


def _mix(values: np.ndarray) -> np.ndarray:
    """Mixes the bits of uint64 values in place, by the finaliser of SplitMix64, and returns them."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


# Hash function i of a shingle with the hash h is h * _FACTORS[i] + _TERMS[i], modulo 2^32. A factor is odd.
_DRAWN = _mix(np.arange(1, 2 * HASHES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(np.uint32)
_FACTORS, _TERMS = _DRAWN[:HASHES] | np.uint32(1), _DRAWN[HASHES:]


def chance(similarity: float, bands: int, rows: int) -> float:
    """Returns the probability that two texts of a Jaccard similarity share the key of a band of `rows` numbers."""
    return 1 - (1 - similarity**rows) ** bands


def banding(threshold: float) -> tuple[int, int]:
    """Returns the number of bands and the numbers in each: the longest bands that find what is asked for.

    Of pairs of texts whose similarity is `threshold`, 90% or more share a band. Of others, few: for 0.8 there are 16
    bands of 8 numbers, which find 95% of the pairs of similarity 0.8, 24% at 0.6, 1% at 0.4 and 0.1% at 0.3.
    """
    rows = max(n for n in range(1, HASHES + 1) if chance(threshold, HASHES // n, n) >= _LEAST_CHANCE)
    return HASHES // rows, rows


def normalized(text: str) -> bytes:
    """Returns what counts of a text, in UTF-8."""
    return (_IGNORED.sub("", unicodedata.normalize("NFKC", text).lower()) or text).encode()


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Returns the signatures of texts, uint32 [HASHES, N]."""
    parts = [_signatures(block) for block in _blocks(texts)]
    return np.concatenate([np.zeros((HASHES, 0), np.uint32), *parts], axis=1)


def keys(texts: Sequence[str], bands: int, rows: int) -> np.ndarray:
    """Returns the keys of texts, uint64 [bands, N]."""
    values = signatures(texts)[: bands * rows].astype(np.uint64).reshape(bands, rows, -1)
    found = np.repeat(np.arange(bands, dtype=np.uint64)[:, None], len(texts), axis=1)
    for row in range(rows):
        found = _mix(found * np.uint64(0x9E3779B97F4A7C15) + values[:, row])
    return found


def _blocks(texts: Sequence[str]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for text in texts:
        block.append(normalized(text))
        size += len(block[-1])
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _signatures(texts: list[bytes]) -> np.ndarray:
    hashes, starts = _shingles(texts)
    found = np.empty((HASHES, len(texts)), np.uint32)
    hashed = np.empty_like(hashes)
    for row in range(HASHES):
        np.multiply(hashes, _FACTORS[row], out=hashed)
        hashed += _TERMS[row]
        np.minimum.reduceat(hashed, starts, out=found[row])
    return found


def _shingles(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of all shingles, uint32 [S], and the first one of each text, int64 [N].

    A text that is shorter than a shingle has one, filled up with zeros.
    """
    lengths = np.array([len(text) for text in texts])
    taken = lengths + SHINGLE  # zeros follow each text, and some more the last one
    total, starts = int(taken.sum()), np.cumsum(taken) - taken
    joined = np.frombuffer(bytes(SHINGLE).join([*texts, bytes(16)]), np.uint8)
    words = np.ndarray((total + 8,), "<u8", joined, strides=(1,))  # the 8 bytes from each byte on
    hashes = _mix(_mix(words[:total].copy()) ^ (words[8:] & np.uint64(2**56 - 1)))
    nth = np.arange(total) - np.repeat(starts, taken)
    begins = nth < np.repeat(np.maximum(lengths - SHINGLE + 1, 1), taken)
    begins &= (joined[:total] & 0xC0) != 0x80  # no other byte of UTF-8 begins a character
    counts = np.add.reduceat(begins, starts, dtype=np.int64)
    return (hashes[begins] >> np.uint64(32)).astype(np.uint32), np.cumsum(counts) - counts
