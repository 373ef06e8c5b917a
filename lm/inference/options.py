"""Decoding options: of one request, and of a batch of rows as arrays.

Array names carry their shape: B rows, W bad words of L tokens, S suppressed tokens.
"""

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from lm.config import EARLY_STOPPING, GenerationConfig
from lm.errors import InputError
from lm.inference.packed import power

NONE = -1  # fills up lists of tokens, and stands for no token
_MOST = (1 << 31) - 1  # whole numbers become int32
_HOTTEST = 1000.0  # a temperature above it would make forbidden tokens, whose logits are -1e9, likely

_STOPPING = {value: code for code, value in enumerate(EARLY_STOPPING.values())}
STOPS_WHEN_FULL, NEVER_STOPS_EARLY = _STOPPING[True], _STOPPING["never"]
_SAMPLING = ("temperature", "top_k", "top_p")

_Given = TypeVar("_Given")


def is_whole(value: object) -> bool:
    """Returns whether a value is a whole number, NumPy's included; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The decoding options of one request. Names and meanings are those of transformers, except for the lengths.

    Attributes:
        max_length, min_length: limits of the generated tokens. They count the end token. They do not count the
            decoder's start token and a forced first token, which transformers counts.
        num_beams: the beams of beam search; 1 is greedy decoding or sampling.
        length_penalty: the score of a sequence is its log-probability over its length to this power.
        temperature: 0 takes the most probable token. Above 0, tokens are sampled from softmax(logits / temperature).
        top_k: restricts sampling to the `top_k` most probable tokens; 0 is no restriction.
        top_p: restricts sampling to the fewest tokens that together have the probability `top_p`; 1 is no restriction.
        early_stopping: when beam search ends. True: once there are `num_beams` finished beams. False: once the best
            beam, scored at its present length, is no better than the worst finished one. "never": the same with the
            score that the best beam would have at `max_length`, if longer sequences score better.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0 allows all. Prompts count too.
        repetition_penalty: divides the positive scores of the tokens that occurred before, and multiplies the negative
            ones (Keskar et al., 2019, section 4.1). Greedy decoding and sampling change logits, beam search
            log-probabilities. Prompts and the start token count too.
        forced_bos_token_id: the first token, which is not chosen; -1 is none. Beam search counts it in the length of a
            sequence, as transformers does.
        forced_eos_token_id: the token that a sequence ends with at `max_length`; -1 is none.
        bad_words_ids: sequences of tokens that must not occur. A lone end token has no effect.
        suppress_tokens, begin_suppress_tokens: tokens that are never generated, or not as the first token.
    """

    max_length: int = 128
    min_length: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    early_stopping: bool | str = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    forced_bos_token_id: int = NONE
    forced_eos_token_id: int = NONE
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        self._check_kinds()
        least = {"max_length": 1, "num_beams": 1, "forced_bos_token_id": NONE, "forced_eos_token_id": NONE}
        for name in (*least, "min_length", "temperature", "top_k", "no_repeat_ngram_size"):
            value, lowest, most = getattr(self, name), least.get(name, 0), _MOST if name != "temperature" else _HOTTEST
            if not value >= lowest:
                raise InputError(f"{name} is {value}; it must be at least {lowest}.")
            if value > most:
                raise InputError(f"{name} is {value}; it must be at most {most}.")
        if self.min_length > self.max_length:
            raise InputError(f"min_length is {self.min_length}, but max_length is {self.max_length}; raise max_length.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if not 0 < self.repetition_penalty < np.inf:
            raise InputError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 and finite.")
        if self.early_stopping not in tuple(_STOPPING):
            raise InputError(f"early_stopping is {self.early_stopping!r}; accepted: {', '.join(EARLY_STOPPING)}.")
        if self.num_beams > 1 and self.temperature:
            raise InputError(
                f"num_beams is {self.num_beams} and temperature is {self.temperature}, but beam search does not "
                "sample; give one of them."
            )
        if (self.top_k or self.top_p < 1) and not self.temperature:
            given = f"top_k is {self.top_k}" if self.top_k else f"top_p is {self.top_p}"
            raise InputError(
                f"{given}, but nothing is sampled at temperature 0; give a temperature above 0, such as 1, as well."
            )
        lists = {"bad_words_ids": tuple(map(tuple, self.bad_words_ids))}
        lists |= {name: tuple(getattr(self, name)) for name in ("suppress_tokens", "begin_suppress_tokens")}
        for name, value in lists.items():
            object.__setattr__(self, name, value)  # so that options can be compared and hashed
        if not all(self.bad_words_ids):
            raise InputError("bad_words_ids has an empty list; give each the ids of a sequence.")
        self.check_tokens(_MOST)

    def _check_kinds(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is int and not is_whole(value):
                raise InputError(f"{field.name} is {value!r}; it must be a whole number.")
            if kind is float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
                raise InputError(f"{field.name} is {value!r}; it must be a number.")

    def check_tokens(self, last: int) -> None:
        """Refuses the ids of tokens above `last`, that of the vocabulary's last one.

        Raises:
            InputError: names the option and the id.
        """
        found: dict[str, Sequence[Sequence[int]]] = {
            "bad_words_ids": self.bad_words_ids,
            "suppress_tokens": [self.suppress_tokens],
            "begin_suppress_tokens": [self.begin_suppress_tokens],
        }
        for name, words in found.items():
            for token in (token for word in words for token in word):
                if not 0 <= token <= last:
                    raise InputError(f"{name} has the id {token}; it must be from 0 to {last}.")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if (token := getattr(self, name)) > last:
                raise InputError(f"{name} is {token}; it must be from 0 to {last}, or -1 for none.")


def with_defaults(generation: GenerationConfig, max_length: int, given: Mapping[str, object]) -> Decoding:
    """Returns the options of a request: those that are given, and for the rest the defaults of the model.

    A default that contradicts a given option yields to it: a longer `min_length` than the `max_length` that is given,
    beams when a temperature is given, and sampling when beams are. A given `max_length` cuts a text off, so the
    model's `forced_eos_token_id` is left out then. The model's lengths allow for a forced first token: without one they
    are longer by one token, and with one that the model does not force by itself shorter.

    Args:
        generation: the defaults of the model.
        max_length: the default of `max_length` where the model has none.
        given: fields of `Decoding` by name; None means the default.

    Raises:
        InputError: an option does not exist or has no such value.
    """
    given = {name: value for name, value in given.items() if value is not None}
    names = [field.name for field in dataclasses.fields(Decoding)]
    if unknown := given.keys() - names:
        raise InputError(f"the option {min(unknown)!r} does not exist; accepted: {', '.join(names)}.")
    default = {name: getattr(generation, name) for name in names}
    default["early_stopping"] = EARLY_STOPPING[generation.early_stopping]
    default["max_length"] = generation.max_length or max(max_length, generation.min_length)
    forced = given.get("forced_bos_token_id")
    if isinstance(forced, int) and (more := (forced >= 0) - (generation.forced_bos_token_id >= 0)):
        if generation.max_length:
            default["max_length"] = max(1, generation.max_length - more)
        default["min_length"] = max(0, generation.min_length - more) if generation.min_length else 0
    longest = given.get("max_length")
    if isinstance(longest, int):
        default["min_length"] = min(default["min_length"], longest)
        default["forced_eos_token_id"] = NONE
    if given.get("temperature"):
        default["num_beams"] = 1
    if not generation.do_sample or given.get("num_beams", generation.num_beams) != 1 or given.get("temperature") == 0:
        default |= {name: getattr(Decoding, name) for name in _SAMPLING}
    try:
        return Decoding(**{**default, **given})  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise InputError(f"an option of decoding has a value of another type: {error}.") from None


class RowOptions(NamedTuple):
    """The fields of `Decoding` for each row, as arrays. So a program is not compiled again for other values.

    None stands for an option that no row of the program uses. It costs nothing.

    Attributes:
        key_B2: uint32, the data of each row's random key.
        early_stopping_B: int32, `STOPS_WHEN_FULL`, `NEVER_STOPS_EARLY` or neither.
        forced_B: int32, how many forced first tokens a row's prompt has: 0 or 1.
        bad_words_BWL: int32. The last token of a word is forbidden after its other tokens. NONE fills up from the left.
        suppressed_BS, begin_suppressed_BS: int32; NONE fills up.
        adapter_B: int32, which of the model's adapters computes each row; 0 is the base.
    """

    max_length_B: jax.Array | np.ndarray
    min_length_B: jax.Array | np.ndarray
    length_penalty_B: jax.Array | np.ndarray
    temperature_B: jax.Array | np.ndarray
    top_k_B: jax.Array | np.ndarray
    top_p_B: jax.Array | np.ndarray
    key_B2: jax.Array | np.ndarray
    early_stopping_B: jax.Array | np.ndarray | None = None
    no_repeat_ngram_size_B: jax.Array | np.ndarray | None = None
    repetition_penalty_B: jax.Array | np.ndarray | None = None
    forced_B: jax.Array | np.ndarray | None = None
    forced_eos_B: jax.Array | np.ndarray | None = None
    bad_words_BWL: jax.Array | np.ndarray | None = None
    suppressed_BS: jax.Array | np.ndarray | None = None
    begin_suppressed_BS: jax.Array | np.ndarray | None = None
    adapter_B: jax.Array | np.ndarray | None = None

    @property
    def reads_history(self) -> bool:
        """Whether an option depends on the tokens of a row, prompt included."""
        return not (self.no_repeat_ngram_size_B is self.repetition_penalty_B is self.bad_words_BWL is None)


@dataclasses.dataclass(frozen=True)
class Extras:
    """Which of the arrays of `RowOptions` that may be None a program has, and the sizes of their lists.

    Attributes:
        bad_words: W and L.
        suppressed, begin_suppressed: S.
        adapters: whether the model has adapters. The options of a row do not say which one computes it.
    """

    early_stopping: bool = False
    no_repeat_ngram_size: bool = False
    repetition_penalty: bool = False
    forced: bool = False
    forced_eos: bool = False
    bad_words: tuple[int, int] = (0, 0)
    suppressed: int = 0
    begin_suppressed: int = 0
    adapters: bool = False

    @classmethod
    def of(cls, rows: Iterable[Decoding]) -> "Extras":
        """Returns what some rows need. Sizes are rounded up to powers of two, so that few programs are compiled."""
        rows = tuple(rows)

        def size(lists: Sequence[Sequence[object]]) -> int:
            longest = max(map(len, lists), default=0)
            return power(longest, 2) if longest else 0

        words = [row.bad_words_ids for row in rows]
        return cls(
            early_stopping=any(row.early_stopping for row in rows),
            no_repeat_ngram_size=any(row.no_repeat_ngram_size for row in rows),
            repetition_penalty=any(row.repetition_penalty != 1 for row in rows),
            forced=any(row.forced_bos_token_id != NONE for row in rows),
            forced_eos=any(row.forced_eos_token_id != NONE for row in rows),
            bad_words=(size(words), size([word for each in words for word in each])),
            suppressed=size([row.suppress_tokens for row in rows]),
            begin_suppressed=size([row.begin_suppress_tokens for row in rows]),
        )

    def lacks(self, row: Decoding) -> list[str]:
        """Returns the fields that are too small for a program with these arrays to decode a row."""
        need = dataclasses.asdict(Extras.of([row]))
        return [name for name, size in need.items() if not np.all(np.less_equal(size, getattr(self, name)))]


def row_options(rows: Sequence[Decoding], keys_B: jax.Array, extras: Extras | None = None) -> RowOptions:
    """Returns the options of some rows as arrays.

    Args:
        rows: B options.
        keys_B: a random key for each row.
        extras: the optional arrays of the program, which must cover all rows. None: those that the rows use.
    """
    extras = extras or Extras.of(rows)
    if any(map(extras.lacks, rows)):
        raise ValueError(f"{extras} does not cover the options of all rows")

    def array(value: Callable[[Decoding], object], dtype: type[np.generic] = np.int32) -> np.ndarray:
        return np.array([value(row) for row in rows], dtype)

    def optional(size: object, value: Callable[[Decoding], object], dtype: type = np.int32) -> np.ndarray | None:
        return array(value, dtype) if size else None

    (count, length), first = extras.bad_words, extras.begin_suppressed
    return RowOptions(
        array(lambda row: row.max_length),
        array(lambda row: row.min_length),
        array(lambda row: row.length_penalty, np.float32),
        array(lambda row: row.temperature, np.float32),
        array(lambda row: row.top_k),
        array(lambda row: row.top_p, np.float32),
        jax.random.key_data(keys_B),
        optional(extras.early_stopping, lambda row: _STOPPING[row.early_stopping]),
        optional(extras.no_repeat_ngram_size, lambda row: row.no_repeat_ngram_size),
        optional(extras.repetition_penalty, lambda row: row.repetition_penalty, np.float32),
        optional(extras.forced, lambda row: row.forced_bos_token_id != NONE),
        optional(extras.forced_eos, lambda row: row.forced_eos_token_id),
        optional(count, lambda row: [_left(word, length) for word in _filled(row.bad_words_ids, count, ())]),
        optional(extras.suppressed, lambda row: _filled(row.suppress_tokens, extras.suppressed, NONE)),
        optional(first, lambda row: _filled(row.begin_suppress_tokens, first, NONE)),
        optional(extras.adapters, lambda row: 0),
    )


def _filled(values: Sequence[_Given], size: int, value: _Given) -> list[_Given]:
    return [*values, *[value] * (size - len(values))]


def _left(word: Sequence[int], size: int) -> list[int]:
    return [*[NONE] * (size - len(word)), *word]
