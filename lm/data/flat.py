"""Flat arrays: N sequences one after the other, of `counts` [N] places each, and random numbers for the places.

A random number is the hash of a sequence's key and a place in it. So it does not depend on the other sequences of the
array, nor on the process that computes it.
"""

import numpy as np


def ranks(counts: np.ndarray) -> np.ndarray:
    """Returns 0, 1, ..., c - 1 for each count c, one after the other, int64 [sum(counts)]."""
    ends = np.cumsum(counts, dtype=np.int64)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def starts(counts: np.ndarray) -> np.ndarray:
    """Returns where each sequence begins, int64 [N]."""
    return np.cumsum(counts, dtype=np.int64) - counts


def mix(values: np.ndarray) -> np.ndarray:
    """Hashes uint64 to uint64 (Steele et al., 2014: the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        values = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def make_keys(*parts: np.ndarray | int) -> np.ndarray:
    """Returns a key, uint64, for each combination of integers, such as seed and row. Arrays of them broadcast."""
    key = np.zeros((), np.uint64)
    for part in parts:
        key = mix(key ^ mix(np.asarray(part, np.uint64)))
    return np.asarray(key)


def uniform(keys: np.ndarray, counts: np.ndarray, use: int) -> np.ndarray:
    """Returns `counts[i]` random numbers from key i, float64 [sum(counts)] in [0, 1). Each `use` has its own."""
    places = np.repeat(make_keys(keys, use), counts) ^ mix(ranks(counts).astype(np.uint64))
    return (mix(places) >> np.uint64(11)) * 2.0**-53


def choose(keys: np.ndarray, counts: np.ndarray, chosen: np.ndarray, use: int) -> np.ndarray:
    """Returns a mask, bool [sum(counts)]: `chosen[i]` of `counts[i]` places. All subsets are equally likely."""
    group = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((uniform(keys, counts, use), group))
    marked = np.zeros(len(group), bool)
    marked[order] = ranks(counts) < chosen[group]
    return marked
