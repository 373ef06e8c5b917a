"""What each task asks: a request becomes a row, and a result becomes an answer. Nothing here needs jax or a model.

Array names carry their shape: M masked positions, V vocabulary, D model, N hypotheses of a text, T decoded length.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np

from lm.config import Config
from lm.data.pairs import one_line, question_source, translation_source
from lm.data.tokenizer import Tokenizer
from lm.errors import InputError
from lm.inference.packed import Row
from lm.inference.requests import Answer, Request, RequestError, field

MASK = "[MASK]"  # in a request: what the model is to fill in

Written = tuple[np.ndarray, np.ndarray]  # tokens [N, T] and scores [N] of the hypotheses, the best first

Result_contra = TypeVar("Result_contra", contravariant=True)


class Prompt(Protocol[Result_contra]):
    """One task of one model."""

    def row(self, request: Request) -> Row:
        """What the model reads of a request.

        Raises:
            RequestError: the request cannot be answered.
        """
        ...

    def answer(self, row: Row, result: Result_contra) -> Answer:
        """The answer, from the row and from what the model computed for it."""
        ...


# ---- Encoders -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FillMask:
    """Fills in each [MASK]: `{"masks": [[{"token", "probability"}, ...], ...]}`, the most probable first.

    Attributes:
        tokenizer: the model's.
        longest: tokens of a row at most.
        top: candidates for each mask.
    """

    tokenizer: Tokenizer
    longest: int
    top: int = 5

    def row(self, request: Request) -> Row:
        parts = [self.tokenizer.encode_with_masks(text) for text in texts(request)]
        mask = self.tokenizer.special.mask
        wanted = sum(int((part == mask).sum()) for part in parts)
        if not wanted:
            raise RequestError("the text has no [MASK].")
        row = assemble(self.tokenizer, parts, self.longest)
        places = np.flatnonzero(row.tokens == mask).astype(np.int32)
        if len(places) < wanted:
            raise RequestError(f"a [MASK] lies beyond the {self.longest} tokens that the model reads.")
        return dataclasses.replace(row, places=places)

    def answer(self, row: Row, result: np.ndarray) -> Answer:
        """`result`: logits [M, V] of the masks."""
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
    """Whether `text_pair` follows `text`: `{"is_next": probability}`. Attributes as in `FillMask`."""

    tokenizer: Tokenizer
    longest: int

    def row(self, request: Request) -> Row:
        if len(found := texts(request)) < 2:
            raise RequestError('next-sentence takes an object with "text" and "text_pair".')
        return assemble(self.tokenizer, self.tokenizer.encode(found), self.longest)

    def answer(self, row: Row, result: np.ndarray) -> Answer:
        """`result`: the probability, of one place [1]."""
        del row
        return {"is_next": float(result[0])}


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How one vector is made of a text's tokens.

    Attributes:
        mode: their mean, or the vector of [CLS].
        normalize: whether the vector is scaled to length one.
    """

    mode: Literal["mean", "cls"] = "mean"
    normalize: bool = False


@dataclasses.dataclass(frozen=True)
class Embed:
    """Embeds a text: `{"embedding": [...]}`. Other attributes as in `FillMask`."""

    tokenizer: Tokenizer
    longest: int
    pooling: Pooling = dataclasses.field(default_factory=Pooling)

    def row(self, request: Request) -> Row:
        return assemble(self.tokenizer, self.tokenizer.encode(texts(request)), self.longest)

    def answer(self, row: Row, result: np.ndarray) -> Answer:
        """`result`: the mean over the text and the vector of [CLS], of one place [1, 2, D]."""
        del row
        vector_D = result[0, int(self.pooling.mode == "cls")]
        if self.pooling.normalize:
            vector_D = vector_D / max(float(np.linalg.norm(vector_D)), 1e-12)
        return {"embedding": vector_D.tolist()}


def texts(request: Request) -> list[str]:
    """The one or two texts of a request: `text` and, where given, `text_pair`."""
    found = [field(request, "text")]
    if isinstance(request, Mapping) and request.get("text_pair") is not None:
        found.append(field(request, "text_pair"))
    return found


def assemble(tokenizer: Tokenizer, parts: Sequence[np.ndarray], longest: int) -> Row:
    """[CLS] text [SEP], or [CLS] text [SEP] text_pair [SEP] with token type 1 from the pair on; [CLS] is asked for.

    What is too long is cut at its end. Of two texts the longer one is cut, down to half of the room, as in pretraining.
    """
    special = tokenizer.special
    room = longest - 1 - len(parts)
    kept = [part[:room] for part in parts]
    if len(parts) == 2 and len(parts[0]) + len(parts[1]) > room:
        first = max(room - len(parts[1]), room // 2)
        kept = [parts[0][:first], parts[1][: room - min(first, len(parts[0]))]]
    tokens, types = [np.array([special.cls])], [np.array([0])]
    for number, part in enumerate(kept):
        tokens += [part, np.array([special.sep])]
        types.append(np.full(len(part) + 1, number))
    truncated = sum(map(len, kept)) < sum(map(len, parts))
    cls = np.zeros(1, np.int32)
    return Row(np.concatenate(tokens).astype(np.int32), np.concatenate(types).astype(np.int32), cls, truncated)


# ---- Encoder-decoders and decoders --------------------------------------------------------------


class Writing(abc.ABC):
    """Writes a text: `{"text", "score"}`, and with several beams `{"candidates": [{"text", "score"}, ...]}`.

    The score is the log-probability over the length to the power of the length penalty.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, max_length: int):
        """`max_length`: tokens that are written at most.

        Raises:
            InputError: the model is an encoder, or cannot write that many tokens.
        """
        if config.model.architecture == "encoder":
            raise InputError("this model is an encoder, which cannot write; use fill-mask, next-sentence or embed.")
        if max_length > (longest := longest_output(config)):
            raise InputError(f"max_length is {max_length}; this model writes at most {longest} tokens.")
        self.config, self.tokenizer, self.max_length = config, tokenizer, max_length

    @abc.abstractmethod
    def source(self, request: Request) -> str:
        """The text of a request, worded as the model was trained on it."""

    def row(self, request: Request) -> Row:
        """What the encoder reads, or what the decoder continues."""
        special, data, model = self.tokenizer.special, self.config.data, self.config.model
        ids = encode(self.config, self.tokenizer, self.source(request))
        has_source = model.architecture == "encoder-decoder"
        begin = [special.cls] if has_source and data.begin_with_cls else []
        end = [special.sep] if has_source else []
        room = data.seq_length - len(begin) - len(end)
        if not has_source and model.position == "learned":
            room = min(room, model.max_length - self.max_length)  # prompt and continuation share the table of positions
        # An encoder reads a text from its beginning, a decoder continues it from its end.
        kept = ids[:room] if has_source else ids[-room:]
        tokens = np.concatenate([begin, kept, end]).astype(np.int32)
        return Row(tokens, np.zeros_like(tokens), np.zeros(0, np.int32), len(kept) < len(ids))

    def answer(self, row: Row, result: Written) -> Answer:
        del row
        found = [
            {"text": written_text(self.tokenizer, tokens_T), "score": float(score)}
            for tokens_T, score in zip(*result, strict=True)
        ]
        return found[0] | ({"candidates": found} if len(found) > 1 else {})


class Generate(Writing):
    """Writes what follows `text` (a decoder), or what its encoder was trained to have written for such a text.

    A model trained to fill in what is hidden reads the n-th literal [MASK] as its mask or as its n-th sentinel. To
    others it is text.
    """

    def source(self, request: Request) -> str:
        return field(request, "text")


class Translate(Writing):
    """Translates `text` into the `language` of the request, else `language`, else the first of the run's languages."""

    def __init__(self, config: Config, tokenizer: Tokenizer, max_length: int, language: str = ""):
        """See `Writing`.

        Raises:
            InputError: the model was not trained with `language`, or has no encoder.
        """
        super().__init__(config, tokenizer, max_length)
        _require_source(config, "translate")
        self.language = language
        if language and (wrong := self._refusal(language)):
            raise InputError(wrong)

    def source(self, request: Request) -> str:
        text = field(request, "text")
        asked = field(request, "language", self.language) if isinstance(request, Mapping) else self.language
        if asked and (wrong := self._refusal(asked)):
            raise RequestError(wrong)
        languages = self.config.languages
        return translation_source(text, asked or languages[0]) if languages else text

    def _refusal(self, language: str) -> str:
        languages = self.config.languages
        accepted = ", ".join(languages) or "none, leave it out"
        return "" if language in languages else f"language is {language!r}; this model was trained with: {accepted}."


class AnswerQuestion(Writing):
    """Answers `question` from the passage `context`."""

    def __init__(self, config: Config, tokenizer: Tokenizer, max_length: int):
        """See `Writing`.

        Raises:
            InputError: the model has no encoder.
        """
        super().__init__(config, tokenizer, max_length)
        _require_source(config, "answer")

    def source(self, request: Request) -> str:
        return question_source(field(request, "question"), field(request, "context"))


def _require_source(config: Config, task: str) -> None:
    if config.model.architecture != "encoder-decoder":
        raise InputError(f"{task} needs an encoder-decoder; this model, a decoder, continues text: use generate.")


def longest_output(config: Config) -> int:
    """Tokens that a model can write: what its positions allow, or four times what it was trained on."""
    data, model = config.data, config.model
    has_source = model.architecture == "encoder-decoder"
    if model.position == "learned":
        return model.max_length - (int(data.begin_with_cls) if has_source else 1)
    return 4 * max(data.target_length if has_source else data.seq_length, 256)


def default_length(config: Config) -> int:
    """Tokens that an answer may have unless something else is asked for: those of a target, or of half a row."""
    data = config.data
    if config.model.architecture == "encoder-decoder":
        return data.target_length - data.begin_with_cls
    return min(128, data.seq_length // 2)


def encode(config: Config, tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text, with white space and masks as the model's objective has them."""
    objective = config.objective.name
    if objective == "pairs":
        text = one_line(text)
    if objective == "span_corruption":
        return encode_with_sentinels(tokenizer, text)
    if objective == "infilling" and MASK in text and tokenizer.special.mask >= 0:
        return tokenizer.encode_with_masks(text)
    return tokenizer.encode([text])[0]


def encode_with_sentinels(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text, int32, the n-th literal [MASK] as the n-th sentinel.

    A [MASK] includes the space before it. After one, a tokenizer without a mask (T5's) begins a new word.

    Raises:
        RequestError: there are more [MASK] than sentinels.
    """
    special = tokenizer.special
    count = text.count(MASK)
    if count > special.num_sentinels:
        raise RequestError(f"the text has {count} [MASK]; the model knows {special.num_sentinels} sentinels.")
    sentinels = special.first_sentinel - np.arange(count, dtype=np.int32)
    if count and special.mask >= 0:
        ids = tokenizer.encode_with_masks(text)
        ids[np.flatnonzero(ids == special.mask)[:count]] = sentinels
        return ids
    first, *others = tokenizer.encode(text.split(MASK))
    return np.concatenate([first, *(part for pair in zip(sentinels[:, None], others, strict=True) for part in pair)])


def written_text(tokenizer: Tokenizer, tokens_T: np.ndarray) -> str:
    """The text up to the end of the sequence; sentinels appear by name."""
    special = tokenizer.special
    tokens_T = until_end(tokens_T, special.sep)
    first, last = special.first_sentinel, special.first_sentinel - special.num_sentinels + 1
    parts, begin = [], 0
    for place in np.flatnonzero((last <= tokens_T) & (tokens_T <= first)) if special.num_sentinels else ():
        parts.append(tokenizer.decode(tokens_T[begin:place]))
        parts.append(f"<extra_id_{first - tokens_T[place]}>")
        begin = place + 1
    return " ".join(filter(None, [*parts, tokenizer.decode(tokens_T[begin:])])).strip()


def until_end(tokens_T: np.ndarray, end_id: int) -> np.ndarray:
    """The tokens before the end of the sequence; all of them where it has not ended."""
    ended = np.flatnonzero(tokens_T == end_id)
    return tokens_T[: ended[0]] if len(ended) else tokens_T
