"""The groups of items that one set of weights computes: `Readers` of packed rows, and `Lane`s of running sequences.

Every program has a fixed shape that depends on the item alone. So a sequence is the same, token for token, whatever
else is computed, and nothing is compiled once `warm_up` has run all programs.

Array names carry their shape: B slots, R inserted rows, N beams, T written tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lm import models, sharding
from lm.inference import decode, packed, prompts
from lm.inference.decode_state import Decoded, DecodeState, Shape, TokenIds, Tops
from lm.inference.options import Decoding, Extras, row_options
from lm.inference.packed import Packed, Row
from lm.inference.predict import Predictor
from lm.models import Decoder, Prompts, Sources, make_decoder
from lm.ops import few_rows
from lm.serving.scheduler import Group, Item
from lm.sharding import constrain

_SHORTEST_SOURCE = 32  # tokens; sources are padded to this length or its doubles


# ---- Reading ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ToRead:
    """The work of an item that is read: a row whose places fit into the shapes of its group."""

    row: Row


class Found(NamedTuple):
    """Items with the outputs at their places, and how many tokens of their batch were padding."""

    outputs: Sequence[tuple[Item, object]]
    padding: int


class Readers(Group):
    """The items that one program of an encoder reads.

    Attributes:
        tokens_a_place: see `packed.pack`.
    """

    def __init__(
        self,
        program: Callable[[Packed], jax.Array],
        tokens_a_place: int,
        *,
        longest: int,
        budget: int,
        multiple: int,
        pad_id: int,
        fine: bool = False,
    ):
        self._program, self.tokens_a_place = program, tokens_a_place
        sizes = {"budget": budget, "multiple": multiple, "fine": fine}
        self._packing = {**sizes, "tokens_a_place": tokens_a_place, "pad_id": pad_id}
        self._shapes = packed.shapes(longest, **sizes)

    def read(self, items: Sequence[Item]) -> Iterator[Found]:
        """Yields what was found for the items, batch by batch."""
        rows = [item.work.row for item in items]
        batches = [(batch, self._program(batch)) for batch in packed.pack(rows, **self._packing)]
        for batch, outputs in batches:
            found = np.asarray(outputs)
            outputs = [(items[number], found[place]) for number, place in batch.where]
            yield Found(outputs, int((batch.segments_BL == 0).sum()))

    def split(self, row: Row) -> list[Row]:
        """Returns copies of a row that each ask for few enough places, so that they fit into one of the shapes."""
        most = max(1, packed.packed_length(len(row.tokens), self._packing["fine"]) // self.tokens_a_place)
        parts = range(0, max(1, len(row.places)), most)
        return [dataclasses.replace(row, places=row.places[begin : begin + most]) for begin in parts]

    def warm_up(self) -> None:
        """Runs the program once in each of its shapes. One shape is compiled while the one before it runs."""
        pad = self._packing["pad_id"]
        blanks = (packed.blank(shape, self.tokens_a_place, pad) for shape in self._shapes)
        jax.block_until_ready([self._program(blank) for blank in blanks])


# ---- Writing ------------------------------------------------------------------------------------


@dataclasses.dataclass
class ToWrite:
    """The work of an item that is written.

    Attributes:
        row: the source, or the prompt of a decoder alone.
        decoding: how it is written.
        seed, number: its random numbers depend on these two alone.
        streams: whether its tokens are told as they are written.
        every_step: whether they are told after every step, as their log-probabilities need it.
        told, told_at: how many of its tokens were told to the request, and when.
    """

    row: Row
    decoding: Decoding
    seed: int = 0
    number: int = 0
    streams: bool = False
    every_step: bool = False
    told: int = 0
    told_at: float = 0.0


class Progress(NamedTuple):
    """New tokens of a sequence, the log-probability of all its tokens so far, and the best tokens for the last place.

    `tops` has their ids and log-probabilities; it is None where the lane does not find them.
    """

    tokens: np.ndarray
    log_probability: float
    tops: Sequence[tuple[int, float]] | None = None


class Written(NamedTuple):
    """A finished sequence: its N best versions, tokens [N, T] and scores [N]; the length of the best, end included."""

    tokens_NT: np.ndarray
    scores_N: np.ndarray
    length: int


@dataclasses.dataclass(frozen=True)
class LaneShape:
    """The sizes of a lane.

    Attributes:
        slots: sequences that are written at a time.
        beams: beams of each; 1 is greedy decoding or sampling.
        source: the longest source, or prompt of a decoder alone, in tokens.
        written: the most tokens that a sequence may write.
        tops: how many of the most probable tokens a step finds for each place; only without beams.
    """

    slots: int
    beams: int
    source: int
    written: int
    tops: int = 0


class _Step(NamedTuple):
    """What the host reads after some steps; see `Decoded`. `sums_B` is the best beam's log-probability."""

    decoded: Decoded
    lengths_B: jax.Array
    sums_B: jax.Array
    done_B: jax.Array
    tops: Tops | None


def _advance(decoder: Decoder, state: DecodeState, steps: jax.Array, runs_B: np.ndarray) -> tuple[DecodeState, _Step]:
    """Takes steps for the rows that run; other rows, whose clients have left, end."""
    state = dataclasses.replace(state, done_B=state.done_B | ~runs_B)
    state = _split(decode.advance(decoder, state, steps))
    lengths_B = state.cache.position_B - state.begin_B
    return state, _Step(decode.read(state), lengths_B, state.scores_BN[:, 0], state.done_B, state.tops)


def _split(state: DecodeState) -> DecodeState:
    """Returns the state split over the mesh in the one way that all programs share: by rows, and caches by heads."""
    state = jax.tree.map(lambda leaf: constrain(leaf, "B" + "-" * (leaf.ndim - 1)), state)
    by_heads = lambda leaf: constrain(leaf, "BH" + "-" * (leaf.ndim - 2))  # noqa: E731
    layers, memory = jax.tree.map(by_heads, (state.cache.layers, state.cache.memory))
    return dataclasses.replace(state, cache=dataclasses.replace(state.cache, layers=layers, memory=memory))


_insert = jax.jit(lambda *given: _split(decode.insert(*given)), donate_argnums=(1,))
_take_steps = jax.jit(_advance, donate_argnums=(1,))
_empty = jax.jit(lambda *given: _split(decode.empty(*given)), static_argnums=(1, 2, 3, 4))
_keys = jax.jit(jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number)))


class Lane(Group):
    """The sequences that one running state writes: sources up to a length, with one number of beams.

    A sequence's lane and the length that its source is padded to depend on the sequence alone.

    Attributes:
        shape: see `LaneShape`.
        slots: as in `Group`.
    """

    def __init__(
        self,
        predictor: Predictor,
        decoder: Decoder,
        shape: LaneShape,
        extras: Extras,
        *,
        shortest: int,
        together: int,
    ):
        """Makes a lane.

        Args:
            predictor, decoder, shape: its weights and sizes.
            extras: the options of decoding that its programs have beside the common ones.
            shortest: sources shorter than this belong to another lane.
            together: R, the rows that one call inserts.
        """
        config, tokenizer = predictor.loaded.config, predictor.loaded.tokenizer
        special, model = tokenizer.special, config.model
        self.shape, self.slots = shape, shape.slots
        self._decoder, self._together, self._special = decoder, together, special
        self._mesh = predictor.loaded.mesh
        self._has_source = model.architecture == "encoder-decoder"
        self._extras = extras
        # A decoder's first tokens differ between requests, such as the token of a language: there is room for one.
        first = prompts.first_tokens(config, special, predictor.decoding({}).forced_bos_token_id)
        prompt = max(1, len(first)) if self._has_source else shape.source
        source, tops = shape.source if self._has_source else 0, min(shape.tops, model.vocab_size)
        self._decode_shape = Shape(shape.beams, shape.written, prompt, source, tops)
        self._ids = TokenIds.of(config, special, tokenizer.vocab_size)
        self._lengths = source_lengths(shape.source, shortest)
        self._state: DecodeState | None = None

    def lacks(self, decoding: Decoding) -> list[str]:
        """Returns the fields of `Extras` that the options of a sequence need and the programs do not have."""
        return self._extras.lacks(decoding)

    def insert(self, items: Mapping[int, Item]) -> None:
        """Puts new sequences into slots. Sources of one padded length enter together."""
        by_length: dict[int, list[int]] = {}
        for slot, item in items.items():
            length = next(length for length in self._lengths if len(item.work.row.tokens) <= length)
            by_length.setdefault(length, []).append(slot)
        for length, slots in by_length.items():
            for start in range(0, len(slots), self._together):
                part = slots[start : start + self._together]
                self._insert([items[slot].work for slot in part], part, length)

    def _insert(self, works: Sequence[ToWrite], slots: Sequence[int], length: int) -> None:
        unused = self._together - len(works)
        rows = [work.row for work in works]
        tokens = np.full((self._together, length), self._special.pad, np.int32)
        segments = np.zeros_like(tokens)
        for place, row in enumerate(rows):
            tokens[place, : len(row.tokens)] = row.tokens
            segments[place, : len(row.tokens)] = 1
        if self._has_source:
            sources = Sources(tokens, segments)
            begin = np.full((self._together, self._decode_shape.prompt), self._special.pad, np.int32)
            lengths = np.zeros(self._together, np.int32)
            for place, row in enumerate(rows):
                begin[place, : len(row.prompt)] = row.prompt
                lengths[place] = len(row.prompt)
            given = Prompts(begin, lengths)
        else:
            sources, given = None, Prompts(tokens, segments.sum(axis=1, dtype=np.int32))
        seeds = np.array([work.seed for work in works] + [0] * unused, np.uint32)
        numbers = np.array([work.number for work in works] + [0] * unused, np.uint32)
        decodings = [work.decoding for work in works] + [Decoding(1)] * unused
        options = row_options(decodings, _keys(seeds, numbers), self._extras)
        if self._extras.adapters:
            options = options._replace(adapter_B=np.array([row.adapter for row in rows] + [0] * unused, np.int32))
        # A slot beyond the state: the unused rows are not inserted.
        places = np.array([*slots, *[self.slots] * unused], np.int32)
        if self.lost:
            self._state = self._empty()
        with sharding.on(self._mesh):
            self._state = _insert(self._decoder, self._state, places, sources, given, options)

    def _empty(self) -> DecodeState:
        with sharding.on(self._mesh):
            state = _empty(self._decoder, self._ids, self._decode_shape, self.slots, self._extras)
        if self._mesh is not None:
            return state
        # Committed to the device of the weights, as later states are: else `insert` would be compiled twice.
        return jax.device_put(state, self._decoder.tokens_VD.sharding)

    @property
    def lost(self) -> bool:
        """Whether there is no state: none was needed yet, or an exception came after its buffers were given away."""
        return self._state is None or self._state.done_B.is_deleted()

    def advance(self, running: Mapping[int, Item], steps: int) -> Iterator[tuple[Item, Progress | Written]]:
        """Takes steps for the running sequences, and yields what is new of each."""
        assert self._state is not None
        runs_B = np.zeros(self.slots, bool)
        runs_B[list(running)] = True
        steps = 1 if any(item.work.every_step for item in running.values()) else steps
        with sharding.on(self._mesh):
            self._state, step = _take_steps(self._decoder, self._state, np.int32(steps), runs_B)
        found = jax.device_get(step)
        for slot, item in running.items():
            length = int(found.lengths_B[slot])
            tokens_NT, scores_N = found.decoded.tokens_BNT[slot], found.decoded.scores_BN[slot]
            if self.shape.beams == 1:
                new = tokens_NT[0, item.work.told : length]
                item.work.told = length
                yield item, Progress(new, float(found.sums_B[slot]), _best(found.tops, slot))
            if found.done_B[slot]:
                if self.shape.beams > 1:
                    most = item.work.decoding.max_length
                    before = len(prompts.until_end(tokens_NT[0][:most], self._ids.ends))
                    length = min(before + 1, most)  # with the end, as without beams
                yield item, Written(tokens_NT, scores_N, length)

    def warm_up(self) -> None:
        """Runs every program of the lane once."""
        for length in self._lengths:
            row = Row(np.full(length, self._special.sep, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int32), False)
            self._insert([ToWrite(row, Decoding(1))], [0], length)
        item = Item(self, 0, ToWrite(row, Decoding(1)))
        list(self.advance({0: item}, 1))


def _best(tops: Tops | None, slot: int) -> list[tuple[int, float]] | None:
    """Returns the best tokens of a slot, with their log-probabilities."""
    if tops is None:
        return None
    return list(zip(tops.tokens_BC[slot].tolist(), tops.scores_BC[slot].tolist(), strict=True))


def source_lengths(longest: int, shortest: int = 1) -> list[int]:
    """Returns the lengths that sources are padded to: doubles of 32, then `longest`; without those under `shortest`."""
    lengths = [_SHORTEST_SOURCE]
    while lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    lengths[-1] = min(lengths[-1], longest)
    return [length for length in lengths if length >= shortest]


def make_decoders(
    model: models.Model, rows: Sequence[int], mesh: jax.sharding.Mesh | None
) -> Callable[[models.Params], dict[bool, Decoder]]:
    """Returns a function that lays out weights for decoding `rows` tokens a call: for few, for many, or for both."""
    with sharding.on(mesh):
        kinds = {few_rows.are_few(count): count for count in rows}
    lay_out = {
        few: jax.jit(lambda params, count=count: make_decoder(model.merge(params), count))
        for few, count in kinds.items()
    }

    def decoders(params: models.Params) -> dict[bool, Decoder]:
        with sharding.on(mesh):
            return {few: function(params) for few, function in lay_out.items()}

    return decoders
