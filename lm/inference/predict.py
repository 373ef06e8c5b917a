"""From a checkpoint to answers: fill-mask, next sentence, embeddings.

Array names carry their shape: B batch, L length, D model, V vocabulary, M masked positions.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import checkpoint, models
from lm.config import Config, InputError
from lm.data import tokenizer as tokenizers
from lm.data.tokenizer import Tokenizer

Answer = dict[str, Any]

_ROWS = 16  # rows computed together
_SHORTEST = 16  # the smallest padded length; the others are its doubles


class RequestError(Exception):
    """One request that cannot be answered; the others can."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One request as the model reads it: int32 [n] token ids and token types, and whether text was cut off."""

    tokens: np.ndarray
    types: np.ndarray
    truncated: bool


class Predictor:
    """Answers requests with one model.

    Rows of similar length are computed together, padded to a power of two, so that a handful of compiled
    programs serve every length. Each method takes an iterable of requests, a string or a mapping with `text`
    and perhaps `text_pair`, and yields one answer for each in order; a request that cannot be answered gets
    `{"error": ...}`, one that was too long `"truncated": true`.
    """

    def __init__(
        self,
        config: Config,
        params: models.Params,
        tokenizer: Tokenizer,
        pooling: str = "mean",
        normalize: bool = False,
    ):
        """Takes a model that is already loaded.

        Args:
            config: of the run; `data.seq_length` is the longest input in tokens.
            params: as `models.build(config.model).init` returns them.
            tokenizer: the one that the model was trained with.
            pooling, normalize: what `embed` does by default: `mean` or `cls`, and whether to length one.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.normalize = normalize
        self._params = params
        self._model = models.build(config.model, models.Execution(dtype=config.train.dtype))

    @classmethod
    def load(cls, path: str) -> "Predictor":
        """Reads `WORKDIR` or `WORKDIR/checkpoints/N`: config, tokenizer and parameters.

        Raises:
            InputError: when there is no such checkpoint.
        """
        workdir, step = checkpoint.locate(path)
        config = checkpoint.read_config(workdir)
        params = checkpoint.load_params(workdir, step)
        pooling = workdir / "pooling.json"  # an imported sentence encoder brings its own
        options = json.loads(pooling.read_text()) if pooling.exists() else {}
        return cls(
            config,
            params,
            tokenizers.load_tokenizer(str(workdir)),
            pooling=options.get("mode", "mean"),
            normalize=options.get("normalize", False),
        )

    def fill_mask(self, requests: Iterable[Any], top: int = 5) -> Iterator[Answer]:
        """`{"masks": [[{"token", "probability"}, ...], ...]}`: for each [MASK], in order, the `top` tokens."""

        def present(row: Row, logits_MV: np.ndarray) -> Answer:
            count = int((row.tokens == self.tokenizer.special.mask).sum())
            return {"masks": [self._candidates(logits_V, top) for logits_V in logits_MV[:count]]}

        return self._answers(requests, self._masked_row, self._mask_logits, present)

    def next_sentence(self, requests: Iterable[Any]) -> Iterator[Answer]:
        """`{"is_next": probability}` that `text_pair` follows `text`.

        Raises:
            InputError: when the model has no next-sentence head.
        """
        if not self.config.model.pooler:
            raise InputError("this model has no next-sentence head; use one trained with objective.nsp=True.")
        present = lambda row, probability: {"is_next": float(probability)}  # noqa: E731
        return self._answers(requests, self._pair_row, self._next_probability, present)

    def embed(
        self, requests: Iterable[Any], pooling: str | None = None, normalize: bool | None = None
    ) -> Iterator[Answer]:
        """`{"embedding": [...]}`: the mean over a text's tokens, or [CLS]; of length one with `normalize`.

        What is None is as the model was loaded.
        """
        normalize = self.normalize if normalize is None else normalize

        def present(row: Row, pooled_2D: np.ndarray) -> Answer:
            vector_D = pooled_2D[int((pooling or self.pooling) == "cls")]
            if normalize:
                vector_D = vector_D / max(float(np.linalg.norm(vector_D)), 1e-12)
            return {"embedding": [float(x) for x in vector_D]}

        return self._answers(requests, self._row, self._pooled, present)

    # ---- Requests to rows -------------------------------------------------------------------

    def _row(self, request: Any) -> Row:
        """[CLS] text [SEP], or [CLS] text [SEP] text_pair [SEP] with token type 1 from the pair on."""
        return self._assemble(self.tokenizer.encode(_texts(request)))

    def _pair_row(self, request: Any) -> Row:
        if len(_texts(request)) < 2:
            raise RequestError('next-sentence takes an object with "text" and "text_pair".')
        return self._row(request)

    def _masked_row(self, request: Any) -> Row:
        parts = [self.tokenizer.encode_with_masks(text) for text in _texts(request)]
        mask = self.tokenizer.special.mask
        wanted = sum(int((part == mask).sum()) for part in parts)
        if not wanted:
            raise RequestError("the text has no [MASK].")
        row = self._assemble(parts)
        if int((row.tokens == mask).sum()) < wanted:
            raise RequestError(f"a [MASK] lies beyond the {self.config.data.seq_length} tokens that the model reads.")
        return row

    def _assemble(self, parts: Sequence[np.ndarray]) -> Row:
        special, longest = self.tokenizer.special, self.config.data.seq_length
        room = longest - 1 - len(parts)
        kept = [part[:room] for part in parts]
        if len(parts) == 2 and len(parts[0]) + len(parts[1]) > room:
            # As in pretraining the longer of the two gives way, down to half of the room.
            first = max(room - len(parts[1]), room // 2)
            kept = [parts[0][:first], parts[1][: room - min(first, len(parts[0]))]]
        tokens, types = [np.array([special.cls])], [np.array([0])]
        for number, part in enumerate(kept):
            tokens += [part, np.array([special.sep])]
            types.append(np.full(len(part) + 1, number))
        truncated = sum(map(len, kept)) < sum(map(len, parts))
        return Row(np.concatenate(tokens).astype(np.int32), np.concatenate(types).astype(np.int32), truncated)

    # ---- Rows to answers --------------------------------------------------------------------

    def _answers(
        self,
        requests: Iterable[Any],
        make_row: Callable[[Any], Row],
        compute: Callable[..., jax.Array],
        present: Callable[[Row, np.ndarray], Answer],
    ) -> Iterator[Answer]:
        requests = iter(requests)
        while chunk := list(itertools.islice(requests, 8 * _ROWS)):
            answers: dict[int, Answer] = {}
            rows: dict[int, Row] = {}
            for index, request in enumerate(chunk):
                try:
                    rows[index] = make_row(request)
                except RequestError as error:
                    answers[index] = {"error": str(error)}
            by_length = sorted(rows, key=lambda index: len(rows[index].tokens))
            for start in range(0, len(by_length), _ROWS):
                together = by_length[start : start + _ROWS]
                results = np.asarray(compute(self._params, self._pad([rows[index] for index in together])))
                for index, result in zip(together, results, strict=False):
                    note = {"truncated": True} if rows[index].truncated else {}
                    answers[index] = present(rows[index], result) | note
            yield from (answers[index] for index in range(len(chunk)))

    def _pad(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """A batch of `_ROWS` rows; the length and the number of masks are rounded up to few values."""
        mask = self.tokenizer.special.mask
        # A table of learned positions may end before the next power of two; no row does.
        length = min(_round_up(max(len(row.tokens) for row in rows), _SHORTEST), self.config.data.seq_length)
        masks = _round_up(max(int((row.tokens == mask).sum()) for row in rows), 1)
        shape = (_ROWS, length)
        batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "segments", "positions", "types")}
        batch["masks"] = np.zeros((_ROWS, masks), np.int32)
        batch["tokens"][:] = self.tokenizer.special.pad
        for index, row in enumerate(rows):
            size = len(row.tokens)
            batch["tokens"][index, :size] = row.tokens
            batch["segments"][index, :size] = 1
            batch["positions"][index, :size] = np.arange(size)
            batch["types"][index, :size] = row.types
            at = np.flatnonzero(row.tokens == mask)
            batch["masks"][index, : len(at)] = at
        return batch

    def _candidates(self, logits_V: np.ndarray, top: int) -> list[Answer]:
        logits_V = logits_V[: self.tokenizer.vocab_size].astype(np.float64)
        probabilities_V = np.exp(logits_V - logits_V.max())
        probabilities_V /= probabilities_V.sum()
        best = np.argsort(-probabilities_V, kind="stable")[:top]
        return [{"token": self.tokenizer.id_to_piece(int(i)), "probability": float(probabilities_V[i])} for i in best]

    # ---- Computation ------------------------------------------------------------------------

    def _hidden(self, params: models.Params, batch: Mapping[str, jax.Array]) -> tuple[Any, jax.Array]:
        model = self._model.merge(params)
        return model, model(batch["tokens"], batch["segments"], batch["positions"], batch["types"])

    @functools.cached_property
    def _mask_logits(self) -> Callable[..., jax.Array]:
        def mask_logits_BMV(params: models.Params, batch: Mapping[str, jax.Array]) -> jax.Array:
            model, hidden_BLD = self._hidden(params, batch)
            return model.mlm_logits(hidden_BLD, batch["masks"])

        return jax.jit(mask_logits_BMV)

    @functools.cached_property
    def _next_probability(self) -> Callable[..., jax.Array]:
        def probability_B(params: models.Params, batch: Mapping[str, jax.Array]) -> jax.Array:
            model, hidden_BLD = self._hidden(params, batch)
            logits_BPC = model.nsp_logits(hidden_BLD, jnp.zeros((hidden_BLD.shape[0], 1), jnp.int32))
            return jax.nn.softmax(logits_BPC, axis=-1)[:, 0, 0]

        return jax.jit(probability_B)

    @functools.cached_property
    def _pooled(self) -> Callable[..., jax.Array]:
        def pooled_B2D(params: models.Params, batch: Mapping[str, jax.Array]) -> jax.Array:
            hidden_BLD = self._hidden(params, batch)[1].astype(jnp.float32)
            real_BL1 = (batch["segments"] > 0).astype(jnp.float32)[:, :, None]
            mean_BD = (hidden_BLD * real_BL1).sum(axis=1) / jnp.maximum(real_BL1.sum(axis=1), 1.0)
            return jnp.stack([mean_BD, hidden_BLD[:, 0]], axis=1)

        return jax.jit(pooled_B2D)


def _texts(request: Any) -> list[str]:
    """The one or two texts of a request."""
    if isinstance(request, str):
        request = {"text": request}
    if not isinstance(request, Mapping) or not isinstance(request.get("text"), str):
        raise RequestError('accepted: a line of text, or an object with the string "text".')
    pair = request.get("text_pair")
    if pair is not None and not isinstance(pair, str):
        raise RequestError('"text_pair" must be a string.')
    texts = [request["text"]] if pair is None else [request["text"], pair]
    if not all(text.strip() for text in texts):
        raise RequestError("the text is empty.")
    return texts


def _round_up(value: int, least: int) -> int:
    """The next power of two, at least `least`."""
    return max(least, 1 << max(0, value - 1).bit_length())
