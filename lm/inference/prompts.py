"""Turns the requests of each task into rows, and results into answers. Nothing here needs jax or a model.

Array names carry their shape: M masked positions, V vocabulary, D model, N beams, T decoded length.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from lm import tasks
from lm.config import Config
from lm.data.pairs import one_line, question_source
from lm.data.sentence_encoder import SentenceEncoder, lowered
from lm.errors import InputError
from lm.inference.packed import Row
from lm.inference.requests import Answer, Request, RequestError, field
from lm.tokenizers.special_ids import SpecialIds, end_ids
from lm.tokenizers.tokenizer import Tokenizer

MASK = "[MASK]"  # marks in a request what the model fills in

Written = tuple[np.ndarray, np.ndarray]  # tokens [N, T] and scores [N] of the beams, the best first

Given = TypeVar("Given")
Ids = TypeVar("Ids")
Result_contra = TypeVar("Result_contra", contravariant=True)


class Prompt(Protocol[Result_contra]):
    """One task of one model."""

    def row(self, request: Request) -> Row:
        """Returns the model's input for a request.

        Raises:
            RequestError: the request cannot be answered.
        """
        ...

    def answer(self, row: Row, result: Result_contra) -> Answer:
        """Returns the answer, given the row and the model's result for it."""
        ...


# ---- Encoders -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FillMask:
    """Fills in each [MASK]: `{"masks": [[{"token", "probability"}, ...], ...]}`, the most probable token first.

    Attributes:
        tokenizer: the model's tokenizer.
        longest: the most tokens of a row.
        top: the number of candidates for each mask.
    """

    tokenizer: Tokenizer
    longest: int
    top: int = 5

    def row(self, request: Request) -> Row:
        parts = [readable(self.tokenizer.encode_with_masks, text) for text in texts(request)]
        mask = self.tokenizer.special.mask
        wanted = sum(int((part == mask).sum()) for part in parts)
        if not wanted:
            raise RequestError("the text has no [MASK]; write it where a token is to be filled in.")
        row = assemble(self.tokenizer, parts, self.longest)
        places = np.flatnonzero(row.tokens == mask).astype(np.int32)
        if len(places) < wanted:
            raise RequestError(f"a [MASK] is beyond the {self.longest} tokens that the model reads; shorten the text.")
        return dataclasses.replace(row, places=places)

    def answer(self, row: Row, result: np.ndarray) -> Answer:
        """Returns the candidates of each mask; `result` is the logits [M, V] of the masks."""
        del row
        return {"masks": [self._candidates(logits_V) for logits_V in result]}

    def _candidates(self, logits_V: np.ndarray) -> list[Answer]:
        logits_V = logits_V[: self.tokenizer.vocab_size].astype(np.float64)
        probabilities_V = np.exp(logits_V - logits_V.max())
        probabilities_V /= probabilities_V.sum()
        best = np.argsort(-probabilities_V, kind="stable")[: self.top]
        return [{"token": self.tokenizer.id_to_piece(int(i)), "probability": float(probabilities_V[i])} for i in best]


@dataclasses.dataclass(frozen=True)
class NextSentence:
    """Predicts whether `text_pair` follows `text`: `{"is_next": probability}`. Attributes as in `FillMask`."""

    tokenizer: Tokenizer
    longest: int

    def row(self, request: Request) -> Row:
        if len(found := texts(request)) < 2:
            raise RequestError('next-sentence takes an object with "text" and "text_pair".')
        return assemble(self.tokenizer, readable(self.tokenizer.encode, found), self.longest)

    def answer(self, row: Row, result: np.ndarray) -> Answer:
        """Returns the probability; `result` is the probability at the one place, [1]."""
        del row
        return {"is_next": float(result[0])}


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embeds a text: `{"embedding": [...]}`. Other attributes as in `FillMask`.

    Attributes:
        encoder: how a text is prepared, and what becomes of the pooled vector.
        prompt: is put before every text.
    """

    tokenizer: Tokenizer
    longest: int
    encoder: SentenceEncoder = dataclasses.field(default_factory=SentenceEncoder)
    prompt: str = ""

    def row(self, request: Request) -> Row:
        """Returns the row, whose one place is the first token to pool."""
        first, *others = texts(request)
        row = assemble(self.tokenizer, self.encode([self.prompt + first, *others]), self.longest)
        if self.encoder.include_prompt or not self.prompt:
            return row
        before = readable(self.tokenizer.frame, 1).ids[0]
        skipped = len(before) + len(self.encode([self.prompt])[0])
        return dataclasses.replace(row, places=np.array([min(skipped, len(row.tokens) - 1)], np.int32))

    def answer(self, row: Row, result: np.ndarray) -> Answer:
        """Returns the embedding; `result` is the pooled vector at the one place, [1, D]."""
        del row
        return {"embedding": self.encoder.finish(result[0]).tolist()}

    def encode(self, found: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of texts, in lower case where the encoder wants it."""
        if self.encoder.lower_case:
            found = [lowered(text, self._special) for text in found]
        return readable(self.tokenizer.encode, found)

    @functools.cached_property
    def _special(self) -> list[str]:
        return [self.tokenizer.id_to_piece(index) for index in self.tokenizer.special_ids]


def texts(request: Request) -> list[str]:
    """Returns the one or two texts of a request: `text` and, if given, `text_pair`."""
    found = [field(request, "text")]
    if isinstance(request, Mapping) and request.get("text_pair") is not None:
        found.append(field(request, "text_pair"))
    return found


def readable(encode: Callable[[Given], Ids], given: Given) -> Ids:
    """Returns what a function of the tokenizer makes of a request.

    Raises:
        RequestError: the text holds what the model cannot read, such as a token without a row in its table.
    """
    try:
        return encode(given)
    except InputError as error:
        raise RequestError(str(error)) from None


def assemble(tokenizer: Tokenizer, parts: Sequence[np.ndarray], longest: int) -> Row:
    """Returns one text or two with the tokenizer's special tokens, such as [CLS] text [SEP] text_pair [SEP].

    The one place is the first token, which is [CLS]. A text that is too long is cut at its end, or at its beginning if
    the tokenizer says so. Of two texts the longer one is cut, down to half of the room, as in pretraining.
    """
    frame = readable(tokenizer.frame, len(parts))
    room = longest - frame.size
    rooms = [room]
    if len(parts) == 2:
        first = max(room - len(parts[1]), room // 2)
        rooms = [first, room - min(first, len(parts[0]))]
    kept = [_cut(tokenizer, part, most) for part, most in zip(parts, rooms, strict=True)]
    tokens, types = frame.around(kept)
    return Row(tokens, types, np.zeros(1, np.int32), sum(map(len, kept)) < sum(map(len, parts)))


def _cut(tokenizer: Tokenizer, ids: np.ndarray, most: int) -> np.ndarray:
    """Returns at most `most` ids: the first ones, or the last ones if the tokenizer says so."""
    return ids[max(len(ids) - most, 0) :] if tokenizer.cuts_left else ids[: max(most, 0)]


# ---- Encoder-decoders and decoders --------------------------------------------------------------


class Writing(abc.ABC):
    """Writes a text: `{"text", "score"}`, and with several beams `{"candidates": [{"text", "score"}, ...]}`.

    The score is the log-probability over the length to the power of the length penalty. A text that `max_length` has
    cut before its end has `"cut": true`.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, max_length: int, forced_bos_token_id: int = -1):
        """Checks that the model can write `max_length` tokens, after the forced token if it is not -1.

        Raises:
            InputError: the model is an encoder, or cannot write that many tokens.
        """
        if config.model.architecture == "encoder":
            raise InputError("this model is an encoder, which cannot write; use fill-mask, next-sentence or embed.")
        if max_length > (longest := longest_output(config, forced_bos_token_id)):
            raise InputError(f"max_length is {max_length}; this model writes at most {longest} tokens.")
        self.config, self.tokenizer, self.max_length = config, tokenizer, max_length
        self.prompt = first_tokens(config, tokenizer.special, forced_bos_token_id)
        self.ends = end_ids(config, tokenizer.special)

    @abc.abstractmethod
    def source(self, request: Request) -> str:
        """Returns the source text of a request, worded as in training."""

    def row(self, request: Request) -> Row:
        return self.row_of(encode(self.config, self.tokenizer, self.source(request)), request)

    def row_of(self, ids: np.ndarray, request: Request = "") -> Row:
        """Returns the encoder's input, or the prompt of a decoder alone, for the ids of a request's source."""
        data, model = self.config.data, self.config.model
        has_source = model.architecture == "encoder-decoder"
        begin, end = self.around(request) if has_source else ([], [])
        room = data.seq_length - len(begin) - len(end)
        if not has_source and model.has_position_table:
            room = min(room, model.max_length - self.max_length)  # prompt and output share the position table
        # An encoder needs the beginning of a text that is too long. A decoder continues its end.
        kept = _cut(self.tokenizer, ids, room) if has_source else ids[-room:]
        tokens = np.concatenate([begin, kept, end]).astype(np.int32)
        prompt = np.array(self.begin(request), np.int32)
        return Row(tokens, np.zeros_like(tokens), np.zeros(0, np.int32), len(kept) < len(ids), prompt)

    def around(self, request: Request) -> tuple[list[int], list[int]]:
        """Returns the special tokens before and after a source: of an imported model its tokenizer's, else ours."""
        del request
        special = self.tokenizer.special
        if self.config.generation.decoder_start_token_id >= 0:
            before, after = readable(self.tokenizer.frame, 1).ids
            return list(before), list(after)
        return [special.cls] if self.config.data.begin_with_cls else [], [special.sep]

    def begin(self, request: Request) -> list[int]:
        """Returns what the decoder is given after its start token."""
        del request
        return self.prompt

    def answer(self, row: Row, result: Written) -> Answer:
        del row
        found: list[Answer] = []
        for tokens_T, score in zip(*result, strict=True):
            text: Answer = {"text": written_text(self.tokenizer, tokens_T, self.ends), "score": float(score)}
            found.append(text if np.isin(tokens_T, self.ends).any() else {**text, "cut": True})
        return found[0] | ({"candidates": found} if len(found) > 1 else {})


class Generate(Writing):
    """Writes the target for `text` as its source; a decoder alone writes a continuation of `text`.

    To a model trained on infilling, a literal [MASK] is its mask. To one trained on span corruption, the n-th [MASK] is
    the n-th sentinel. To other models it is plain text.
    """

    def source(self, request: Request) -> str:
        return field(request, "text")


class AnswerQuestion(Writing):
    """Answers `question` from the passage `context`."""

    def __init__(self, config: Config, tokenizer: Tokenizer, max_length: int, forced_bos_token_id: int = -1):
        """Checks the model as `Writing` does.

        Raises:
            InputError: the model has no encoder.
        """
        super().__init__(config, tokenizer, max_length, forced_bos_token_id)
        require_source(config, "answer")

    def source(self, request: Request) -> str:
        return question_source(field(request, "question"), field(request, "context"))


def require_source(config: Config, task: str) -> None:
    """Refuses a decoder alone."""
    if config.model.architecture != "encoder-decoder":
        raise InputError(f"{task} needs an encoder-decoder, but this model is a decoder alone; use generate.")


def longest_output(config: Config, forced_bos_token_id: int = -1) -> int:
    """Returns the most tokens that a model can write, after a forced token if it is not -1.

    Learned positions set a limit. Other models may write four times the length that they were trained on.
    """
    data, model = config.data, config.model
    has_source = model.architecture == "encoder-decoder"
    if model.has_position_table:
        forced = max(forced_bos_token_id, config.generation.forced_bos_token_id)
        return model.max_length - int(not has_source or data.begin_with_cls or forced >= 0)
    return 4 * max(data.target_length if has_source else data.seq_length, 256)


def first_tokens(config: Config, special: SpecialIds, forced_bos_token_id: int = -1) -> list[int]:
    """Returns what the decoder of an encoder-decoder is given after its start token, before it chooses a token."""
    if config.model.architecture != "encoder-decoder":
        return []
    if forced_bos_token_id >= 0:
        return [forced_bos_token_id]
    as_trained = config.generation.decoder_start_token_id < 0
    return [special.cls] if as_trained and config.data.begin_with_cls else []


def default_length(config: Config) -> int:
    """Returns the default of `max_length`: the length of a target, or for a decoder alone half a row, at most 128."""
    data = config.data
    if config.model.architecture == "encoder-decoder":
        return data.target_length - data.begin_with_cls
    return min(128, data.seq_length // 2)


def encode(config: Config, tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Returns the ids of a text, with white space and masks treated as in the model's training task."""
    task = tasks.get(config.objective.name)
    if task.reads == "pairs":
        text = one_line(text)
    if task.hides == "sentinel":
        return encode_with_sentinels(tokenizer, text)
    if task.hides == "mask" and MASK in text and tokenizer.special.mask >= 0:
        return readable(tokenizer.encode_with_masks, text)
    return readable(tokenizer.encode, [text])[0]


def encode_with_sentinels(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Returns the ids of a text, int32, with the n-th literal [MASK] replaced by the n-th sentinel.

    The space before a [MASK] belongs to it. After a [MASK], a tokenizer without a mask token (T5's) begins a new word.

    Raises:
        RequestError: there are more [MASK] than sentinels.
    """
    special = tokenizer.special
    count = text.count(MASK)
    if count > special.num_sentinels:
        raise RequestError(f"the text has {count} [MASK]; the model fills in at most {special.num_sentinels}.")
    sentinels = special.first_sentinel - np.arange(count, dtype=np.int32)
    if count and special.mask >= 0:
        ids = readable(tokenizer.encode_with_masks, text)
        ids[np.flatnonzero(ids == special.mask)[:count]] = sentinels
        return ids
    first, *others = readable(tokenizer.encode, text.split(MASK))
    return np.concatenate([first, *(part for pair in zip(sentinels[:, None], others, strict=True) for part in pair)])


def written_text(tokenizer: Tokenizer, tokens_T: np.ndarray, ends: Sequence[int] = ()) -> str:
    """Returns the text of the tokens before the end. Sentinels appear as `<extra_id_N>`.

    An end that is an ordinary token, such as a full stop, belongs to the text.

    Args:
        tokenizer, tokens_T: of the model, and what it wrote.
        ends: the tokens that end a text; empty means the tokenizer's end token.
    """
    special = tokenizer.special
    before_T = until_end(tokens_T, ends or (special.sep,))
    end = tokens_T[len(before_T) : len(before_T) + 1]
    tokens_T = before_T if np.isin(end, [special.sep, *tokenizer.special_ids]).all() else tokens_T[: len(before_T) + 1]
    first, last = special.first_sentinel, special.first_sentinel - special.num_sentinels + 1
    parts, begin = [], 0
    for place in np.flatnonzero((last <= tokens_T) & (tokens_T <= first)) if special.num_sentinels else ():
        parts.append(tokenizer.decode(tokens_T[begin:place]))
        parts.append(f"<extra_id_{first - tokens_T[place]}>")
        begin = place + 1
    return " ".join(filter(None, [*parts, tokenizer.decode(tokens_T[begin:])])).strip()


def until_end(tokens_T: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Returns the tokens before the first end token, or all tokens if there is none."""
    ended = np.flatnonzero(np.isin(tokens_T, ends))
    return tokens_T[: ended[0]] if len(ended) else tokens_T
