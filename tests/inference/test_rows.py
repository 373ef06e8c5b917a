"""Rows are independent: a row writes bitwise the same alone and among others, at any row and from any step on."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from lm.inference import decode
from lm.inference.decode_state import Shape, TokenIds
from lm.inference.options import Decoding, Extras, row_options
from lm.models import Prompts, Sources, make_decoder
from tests.inference.test_decode import END, PAD, START, VOCABULARY, build

SLOTS, AT_ONCE = 4, 2  # rows of the state, and rows that are inserted together
IDS = TokenIds(START, END, PAD, VOCABULARY)
NOWHERE = SLOTS  # a row beyond the state: nothing is inserted there


# Every option that a program may lack, and a program that has them all.
RULES = {
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.3,
    "forced_bos_token_id": 5,
    "forced_eos_token_id": END,
    "bad_words_ids": [[9], [7, 8]],
    "suppress_tokens": [10, 11],
    "begin_suppress_tokens": [12],
}
EVERY = Extras.of([Decoding(**RULES, early_stopping=True)])


class Server:
    """A running state, its programs compiled once."""

    def __init__(self, name: str, num_beams: int, extras: Extras = Extras()):  # noqa: B008 - it is frozen
        model, params = build(name)
        alone = name == "alone"
        self.shape = Shape(num_beams, written=12, prompt=6 if alone else 0, source=0 if alone else 16)
        self.decoder = jax.jit(lambda: make_decoder(model.merge(params), SLOTS * num_beams))()
        self.extras = extras
        self.empty = decode.empty(self.decoder, IDS, self.shape, SLOTS, extras)
        # Functions of their own, so that what they compile is counted apart from other servers' programs.
        self.insert: Any = jax.jit(lambda *args: decode.insert(*args))
        self.advance: Any = jax.jit(lambda *args: decode.advance(*args))

    def requests(self, seed: int, count: int) -> list[np.ndarray]:
        """Texts of many lengths, to read or to go on from."""
        rng = np.random.default_rng(seed)
        longest = self.shape.source or self.shape.prompt
        return [rng.integers(4, VOCABULARY, rng.integers(1, longest + 1)) for _ in range(count)]

    def enter(self, state, rows, texts, options):
        """Inserts requests, `AT_ONCE` of them or fewer, with a random key for each text."""
        more = AT_ONCE - len(texts)
        rows, texts = [*rows, *[NOWHERE] * more], [*texts, *[np.array([4])] * more]
        width = self.shape.source or self.shape.prompt
        tokens = np.stack([np.pad(text, (0, width - len(text))) for text in texts]).astype(np.int32)
        lengths = np.array([len(text) for text in texts], np.int32)
        keys = jax.vmap(jax.random.key)(np.array([text.sum() for text in texts], np.uint32))
        given = row_options([*options, *[Decoding(max_length=1)] * more], keys, self.extras)
        if self.shape.source:
            segments = (np.arange(width)[None] < lengths[:, None]).astype(np.int32)
            none = Prompts(np.zeros((AT_ONCE, 0), np.int32), np.zeros(AT_ONCE, np.int32))
            return self.insert(self.decoder, state, np.array(rows), Sources(tokens, segments), none, given)
        return self.insert(self.decoder, state, np.array(rows), None, Prompts(tokens, lengths), given)

    def finish(self, state, row: int) -> tuple[np.ndarray, np.ndarray]:
        """What a row has written once all are done."""
        state = self.advance(self.decoder, state, 100)
        assert np.asarray(state.done_B).all()
        found = decode.read(state)
        return np.asarray(found.tokens_BNT[row]), np.asarray(found.scores_BN[row])


server = functools.cache(Server)

CASES = [
    *[(name, 1, Decoding(max_length=10, **options)) for name in ("relative", "alone") for options in (
        {},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9},
    )],
    ("learned", 1, Decoding(max_length=9, min_length=4)),
    ("relative", 3, Decoding(max_length=10, num_beams=3, length_penalty=0.6)),
    ("learned", 3, Decoding(max_length=9, num_beams=3)),
    ("alone", 3, Decoding(max_length=8, num_beams=3)),
    ("relative", 1, Decoding(max_length=8, **RULES)),
    ("learned", 3, Decoding(max_length=9, num_beams=3, early_stopping="never", **RULES)),
]  # fmt: skip


def others(num_beams: int) -> list[Decoding]:
    """Options of the neighbours, each another length and another way to choose."""
    if num_beams > 1:
        return [
            Decoding(max_length=length, num_beams=num_beams, length_penalty=power)
            for length, power in ((3, 1.0), (12, 0.3), (7, 2.0))
        ]
    return [
        Decoding(max_length=3),
        Decoding(max_length=12, min_length=5, temperature=1.5),
        Decoding(max_length=7, temperature=0.7, top_k=5),
    ]


@pytest.mark.parametrize(("name", "num_beams", "decoding"), CASES, ids=str)
def test_a_row_writes_the_same_alone_and_among_others(name, num_beams, decoding):
    ours = server(name, num_beams, EVERY if decoding.repetition_penalty != 1 else Extras())
    (mine,) = ours.requests(seed=7, count=1)
    first, second, third = ours.requests(seed=8, count=3)
    one, two, three = others(num_beams)
    expected = ours.finish(ours.enter(ours.empty, [0], [mine], [decoding]), row=0)
    assert (expected[0][0] != PAD).sum() > 2

    together = ours.enter(ours.empty, [3, 1], [mine, first], [decoding, one])
    together = ours.enter(together, [0, 2], [second, third], [two, three])

    running = ours.enter(ours.empty, [0, 2], [first, second], [two, one])
    running = ours.advance(ours.decoder, running, 3)
    running = ours.enter(running, [1], [third], [three])
    running = ours.advance(ours.decoder, running, 2)
    running = ours.enter(running, [2], [mine], [decoding])  # a row that has ended is filled anew

    for state, row in ((together, 3), (running, 2)):
        tokens, scores = ours.finish(state, row)
        np.testing.assert_array_equal(tokens, expected[0])
        np.testing.assert_array_equal(scores, expected[1])


@pytest.mark.parametrize(("name", "num_beams"), [("relative", 1), ("learned", 3)])
def test_other_options_compile_nothing(name, num_beams):
    ours = Server(name, num_beams)
    texts = ours.requests(seed=9, count=3)
    state = ours.empty
    for row, (text, decoding) in enumerate(zip(texts, others(num_beams), strict=True)):
        state = ours.advance(ours.decoder, ours.enter(state, [row], [text], [decoding]), row + 1)
    ours.finish(state, 0)
    assert ours.insert._cache_size() == 1
    assert ours.advance._cache_size() == 1


def test_two_temperatures_in_one_batch_are_two_distributions():
    """Rows of one text: the colder a row, the more often it takes the most probable token."""
    ours = server("relative", 1)
    (text,) = ours.requests(seed=10, count=1)
    state = ours.enter(ours.empty, [0], [text], [Decoding(max_length=1)])
    likeliest = ours.finish(state, 0)[0][0, 0]
    hits = {temperature: 0 for temperature in (0.3, 3.0)}
    for seed in range(40):
        keys = jax.random.split(jax.random.key(seed), AT_ONCE)
        options = [Decoding(max_length=1, temperature=temperature) for temperature in hits]
        tokens = np.stack([np.pad(text, (0, 16 - len(text)))] * AT_ONCE).astype(np.int32)
        sources = Sources(tokens, (tokens > 0).astype(np.int32))
        none = Prompts(np.zeros((AT_ONCE, 0), np.int32), np.zeros(AT_ONCE, np.int32))
        given = row_options(options, keys)
        state = ours.insert(ours.decoder, ours.empty, np.arange(AT_ONCE), sources, none, given)
        written = np.asarray(decode.read(ours.advance(ours.decoder, state, 1)).tokens_BNT)[:, 0, 0]
        for row, temperature in enumerate(hits):
            hits[temperature] += int(written[row] == likeliest)
    assert hits[0.3] > hits[3.0] + 10
