"""From a checkpoint to written text: generation, translation, question answering.

Array names carry their shape: B sequences, N hypotheses of each, P prompt length, T decoded length.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np

from lm import models
from lm.config import Config
from lm.data.pairs import one_line, question_source, translation_source
from lm.data.tokenizer import Tokenizer
from lm.errors import InputError
from lm.inference import decode
from lm.inference import requests as requests_lib
from lm.inference.decode import Decoded, Decoding, Shape, TokenIds
from lm.inference.requests import Answer, RequestError, Row, field
from lm.models import Prompts, Sources

MASK = "[MASK]"  # in a request: what the model is to fill in


class Writer:
    """Writes with one model, an encoder-decoder or a decoder.

    Each method takes an iterable of requests and yields one answer for each, in order: `{"text", "score"}`, and with
    several beams `{"candidates": [{"text", "score"}, ...]}`, best first. The score is the log-probability over the
    length to the power of the length penalty. A request that cannot be answered gets `{"error": ...}`, one whose
    source was too long `"truncated": true`.
    """

    def __init__(self, config: Config, params: models.Params, tokenizer: Tokenizer):
        """Takes a model that is already loaded.

        Args:
            config: of the run; `data.seq_length` is the longest source in tokens.
            params: as `models.build(config.model).init` returns them.
            tokenizer: the one that the model was trained with.

        Raises:
            InputError: the model is an encoder.
        """
        if config.model.architecture == "encoder":
            raise InputError("this model is an encoder, which cannot write; use fill-mask, next-sentence or embed.")
        self.config = config
        self.tokenizer = tokenizer
        self.has_source = config.model.architecture == "encoder-decoder"
        self.languages = config.languages
        self._params = params
        self._model = models.build(config.model, models.Execution(dtype=config.train.dtype))

    @classmethod
    def load(cls, path: str) -> Self:
        """Reads `WORKDIR` or `WORKDIR/checkpoints/N`.

        Raises:
            InputError: when there is no such checkpoint, or it is an encoder's.
        """
        return cls(*requests_lib.load(path)[1:])

    def write(self, sources: Iterable[str], decoding: Decoding | None = None, seed: int = 0) -> Iterator[Answer]:
        """Writes from sources worded as the model was trained on them."""
        return self._write(sources, lambda source: field(source, "text"), decoding, seed)

    def generate(self, requests: Iterable[Any], decoding: Decoding | None = None, seed: int = 0) -> Iterator[Answer]:
        """Writes what follows `text` (a decoder), or what its encoder reads there calls for.

        A model trained to fill in what is hidden reads the n-th literal [MASK] as its mask or its n-th sentinel; to
        others it is text.
        """
        return self._write(requests, lambda request: field(request, "text"), decoding, seed)

    def translate(
        self, requests: Iterable[Any], language: str = "", decoding: Decoding | None = None, seed: int = 0
    ) -> Iterator[Answer]:
        """Translates `text` into the `language` of the request, else of the call, else the first of `self.languages`.

        Raises:
            InputError: the model was not trained with `language`, or reads no source.
        """
        self._require_source("translate")
        accepted = ", ".join(self.languages) or "none, leave it out"
        if language and language not in self.languages:
            raise InputError(f"language is {language!r}; this model was trained with: {accepted}.")

        def source(request: Any) -> str:
            text = field(request, "text")
            asked = field(request, "language", language) if isinstance(request, Mapping) else language
            if asked and asked not in self.languages:
                raise RequestError(f"language is {asked!r}; this model was trained with: {accepted}.")
            return translation_source(text, asked or self.languages[0]) if self.languages else text

        return self._write(requests, source, decoding, seed)

    def answer(self, requests: Iterable[Any], decoding: Decoding | None = None, seed: int = 0) -> Iterator[Answer]:
        """Answers `question` from the passage `context`.

        Raises:
            InputError: the model reads no source.
        """
        self._require_source("answer")

        def source(request: Any) -> str:
            return question_source(field(request, "question"), field(request, "context"))

        return self._write(requests, source, decoding, seed)

    def _require_source(self, task: str) -> None:
        if not self.has_source:
            raise InputError(f"{task} needs an encoder-decoder; this model, a decoder, continues text: use generate.")

    def _write(
        self, requests: Iterable[Any], source: Callable[[Any], str], decoding: Decoding | None, seed: int
    ) -> Iterator[Answer]:
        decoding = decoding or Decoding(max_length=self.default_length)
        if decoding.max_length > self._longest_output:
            raise InputError(
                f"max_length is {decoding.max_length}; this model writes at most {self._longest_output} tokens."
            )
        make_row = lambda request: self._row(source(request), decoding.max_length)  # noqa: E731
        compute = functools.partial(self._decode, decoding=decoding, key=jax.random.key(seed))
        present = functools.partial(self._present, beams=decoding.num_beams)
        return requests_lib.answers(requests, make_row, compute, present)

    @property
    def _longest_output(self) -> int:
        data, model = self.config.data, self.config.model
        if model.position == "learned":
            return model.max_length - (int(data.begin_with_cls) if self.has_source else 1)
        return 4 * max(data.target_length if self.has_source else data.seq_length, 256)

    @property
    def default_length(self) -> int:
        """Tokens that an answer may have where nothing else is asked for: of an encoder-decoder a target's."""
        data = self.config.data
        return data.target_length - data.begin_with_cls if self.has_source else min(128, data.seq_length // 2)

    def _row(self, text: str, max_length: int) -> Row:
        """What the encoder reads, or the decoder goes on from."""
        special, data, model = self.tokenizer.special, self.config.data, self.config.model
        ids = self._encode(text)
        begin = [special.cls] if self.has_source and data.begin_with_cls else []
        end = [special.sep] if self.has_source else []
        room = data.seq_length - len(begin) - len(end)
        if not self.has_source and model.position == "learned":
            room = min(room, model.max_length - max_length)  # prompt and continuation share the table of positions
        # A decoder goes on from the end of its prompt, an encoder reads from the beginning.
        kept = ids[:room] if self.has_source else ids[-room:]
        tokens = np.concatenate([begin, kept, end]).astype(np.int32)
        return Row(tokens, np.zeros_like(tokens), len(kept) < len(ids))

    def _encode(self, text: str) -> np.ndarray:
        """The ids of a text, worded and masked as in training."""
        objective = self.config.objective.name
        if objective == "pairs":
            text = one_line(text)
        if objective == "span_corruption":
            return encode_with_sentinels(self.tokenizer, text)
        if objective == "infilling" and MASK in text and self.tokenizer.special.mask >= 0:
            return self.tokenizer.encode_with_masks(text)
        return self.tokenizer.encode([text])[0]

    def _decode(self, rows: Sequence[Row], decoding: Decoding, key: jax.Array) -> Iterator[tuple[np.ndarray, Any]]:
        special, data = self.tokenizer.special, self.config.data
        batch = requests_lib.pad(rows, data.seq_length, special.pad)
        count = len(batch["tokens"])
        if self.has_source:
            sources = Sources(batch["tokens"], batch["segments"])
            prompt = np.full((count, int(data.begin_with_cls)), special.cls, np.int32)
            prompts = Prompts(prompt, np.full(count, prompt.shape[1], np.int32))
        else:
            sources, prompts = None, Prompts(batch["tokens"], batch["segments"].sum(axis=1, dtype=np.int32))
        # A request's random numbers are its own, whatever it is computed with.
        numbers = np.array([row.index for row in rows] + [0] * (count - len(rows)), np.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        source = 0 if sources is None else sources.tokens_BS.shape[1]
        longest = requests_lib.round_up(decoding.max_length, 16)
        shape = Shape(decoding.num_beams, longest, prompts.tokens_BP.shape[1], source)
        options = decode.options([decoding] * count, keys)
        found: Decoded = jax.device_get(self._compiled(shape)(self._params, sources, prompts, options))
        return zip(np.asarray(found.tokens_BNT), np.asarray(found.scores_BN), strict=True)

    @functools.lru_cache(maxsize=16)  # noqa: B019 - a writer lives as long as its process
    def _compiled(self, shape: Shape) -> Callable[..., Decoded]:
        special = self.tokenizer.special
        size = min(self.tokenizer.vocab_size, self.config.model.vocab_size)
        ids = TokenIds(special.start(self.config.model.decoder_start), special.sep, special.pad, size)
        return jax.jit(functools.partial(decode.generate, self._model, ids, shape))

    def _present(self, row: Row, result: tuple[np.ndarray, np.ndarray], beams: int) -> Answer:
        del row
        tokens_NT, scores_N = result
        found = [
            {"text": self._text(tokens_T), "score": float(score)}
            for tokens_T, score in zip(tokens_NT, scores_N, strict=True)
        ]
        return found[0] | ({"candidates": found} if beams > 1 else {})

    def _text(self, tokens_T: np.ndarray) -> str:
        """The text up to the end of the sequence; sentinels appear by name."""
        special = self.tokenizer.special
        tokens_T = until_end(tokens_T, special.sep)
        first, last = special.first_sentinel, special.first_sentinel - special.num_sentinels + 1
        parts, begin = [], 0
        for place in np.flatnonzero((last <= tokens_T) & (tokens_T <= first)) if special.num_sentinels else ():
            parts.append(self.tokenizer.decode(tokens_T[begin:place]))
            parts.append(f"<extra_id_{first - tokens_T[place]}>")
            begin = place + 1
        return " ".join(filter(None, [*parts, self.tokenizer.decode(tokens_T[begin:])])).strip()


def until_end(tokens_T: np.ndarray, end_id: int) -> np.ndarray:
    """The tokens before the end of the sequence; all of them where it has not ended."""
    ended = np.flatnonzero(tokens_T == end_id)
    return tokens_T[: ended[0]] if len(ended) else tokens_T


def encode_with_sentinels(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text, int32, the n-th literal [MASK] as the n-th sentinel.

    A [MASK] takes the space before it along. After one, a tokenizer without a mask (T5's) begins a new word.

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


def with_defaults(writer: Writer, **options: Any) -> Decoding:
    """A `Decoding` with the options that are not None, and the model's own length."""
    given = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(Decoding(max_length=writer.default_length), **given)
