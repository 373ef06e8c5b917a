"""From a checkpoint to answers: fill-mask, next sentence, embeddings.

Array names carry their shape: B batch, L length, D model, V vocabulary, M masked positions.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from lm import models
from lm.config import Config
from lm.data.tokenizer import Tokenizer
from lm.errors import InputError
from lm.inference import requests as requests_lib
from lm.inference.requests import Answer, RequestError, Row, field


class Predictor:
    """Answers requests with one model.

    Each method takes an iterable of requests, a string or a mapping with `text` and perhaps `text_pair`, and yields
    one answer for each in order; a request that cannot be answered gets `{"error": ...}`, one that was too long
    `"truncated": true`.
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

        Raises:
            InputError: the model is no encoder.
        """
        if config.model.architecture != "encoder":
            raise InputError("this model writes text; use generate, translate or answer.")
        self.config = config
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.normalize = normalize
        self._params = params
        self._model = models.build(config.model, models.Execution(dtype=config.train.dtype))

    @classmethod
    def load(cls, path: str) -> Self:
        """Reads `WORKDIR` or `WORKDIR/checkpoints/N`: config, tokenizer and parameters.

        Raises:
            InputError: when there is no such checkpoint.
        """
        workdir, config, params, tokenizer = requests_lib.load(path)
        pooling = workdir / "pooling.json"  # an imported sentence encoder brings its own
        options = json.loads(pooling.read_text()) if pooling.exists() else {}
        return cls(
            config,
            params,
            tokenizer,
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
        run = lambda rows: np.asarray(compute(self._params, self._pad(rows)))  # noqa: E731
        return requests_lib.answers(requests, make_row, run, present)

    def _pad(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """A batch whose number of masks is rounded up, too."""
        special = self.tokenizer.special
        batch = requests_lib.pad(rows, self.config.data.seq_length, special.pad)
        at = [np.flatnonzero(row.tokens == special.mask) for row in rows]
        width = requests_lib.round_up(max(map(len, at)), 1)
        batch["masks"] = np.zeros((len(batch["tokens"]), width), np.int32)
        for index, places in enumerate(at):
            batch["masks"][index, : len(places)] = places
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
    texts = [field(request, "text")]
    if isinstance(request, Mapping) and request.get("text_pair") is not None:
        texts.append(field(request, "text_pair"))
    return texts
