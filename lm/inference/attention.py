"""Computes the attention weights of one request.

Array names carry their shape: N layers, B batch (always 1), H heads, L queries, S keys, T decoded length.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from lm import models
from lm.data.special_ids import decoder_start
from lm.data.tokenizer import Tokenizer
from lm.inference.packed import Row
from lm.inference.predict import Pipeline, Predictor
from lm.inference.prompts import until_end
from lm.inference.requests import Request


@dataclasses.dataclass(frozen=True)
class Weights:
    """The attention weights of one sequence.

    Attributes:
        title: the name of the attention.
        weights_NHLS: float32. They sum to one over S.
        queries, keys: a label for each token.
        query, key: labels of the two axes of a picture.
    """

    title: str
    weights_NHLS: np.ndarray
    queries: Sequence[str]
    keys: Sequence[str]
    query: str = "query"
    key: str = "key"


def of_request(model: Predictor, pipeline: Pipeline, request: Request) -> dict[str, Weights]:
    """Returns those of the weights `cross` (decoder to encoder), `encoder` and `decoder` that the model has.

    The tokens of a decoder are those of the best output that it writes for the request, up to its end.

    Args:
        model: the model.
        pipeline: one of the model's tasks.
        request: a request of that task.

    Raises:
        RequestError: the request cannot be answered.
    """
    row = pipeline.prompt.row(request)
    if model.loaded.is_encoder:
        return {"encoder": _of_encoder(model, row)}
    ((tokens_NT, _),) = pipeline.compute([row], [0])
    return _of_writing(model, row, tokens_NT[0])


def _of_encoder(model: Predictor, row: Row) -> Weights:
    def weights(
        module: models.Encoder,
        tokens_1L: jax.Array,
        segments_1L: jax.Array,
        positions_1L: jax.Array,
        types_1L: jax.Array,
    ) -> jax.Array:
        return module.encoder.attention_weights(tokens_1L, segments_1L, positions_1L, types_1L)[0]

    found_NBHLL = model.runner.compile(weights)(*_alone(row.tokens), row.types[None])
    return _weights_of_encoder(found_NBHLL, labels(model.loaded.tokenizer, row.tokens))


def _of_writing(model: Predictor, row: Row, written_T: np.ndarray) -> dict[str, Weights]:
    tokenizer, config = model.loaded.tokenizer, model.loaded.config
    special, has_source = tokenizer.special, config.model.architecture == "encoder-decoder"
    written_T = written_T[: len(until_end(written_T, special.sep)) + 1]
    begin = row.prompt if has_source else row.tokens
    tokens_T = np.array([decoder_start(config, special), *begin, *written_T], np.int32)

    def weights(
        module: models.Seq2Seq, source: tuple[jax.Array, ...], target: tuple[jax.Array, ...]
    ) -> tuple[jax.Array | None, jax.Array, jax.Array | None]:
        if module.encoder is None:
            return None, *module.attention_weights(None, *target)
        own_NBHSS = module.encoder.attention_weights(*source)[0]
        return own_NBHSS, *module.attention_weights(module.encode(*source), *target)

    encoder_NBHSS, decoder_NBHTT, cross_NBHTS = model.runner.compile(weights)(_alone(row.tokens), _alone(tokens_T[:-1]))
    tokens, query = labels(tokenizer, tokens_T), "query: the token to be written"
    found = {}
    if encoder_NBHSS is not None and cross_NBHTS is not None:
        source, key = labels(tokenizer, row.tokens), "key: a token of the source"
        title = "Attention of the decoder to the encoder"
        found["cross"] = Weights(title, _one(cross_NBHTS), tokens[1:], source, query, key)
        found["encoder"] = _weights_of_encoder(encoder_NBHSS, source)
    title, key = "Self-attention of the decoder", "key: a token before it"
    return found | {"decoder": Weights(title, _one(decoder_NBHTT), tokens[1:], tokens[:-1], query, key)}


def _weights_of_encoder(weights_NBHLL: jax.Array, tokens: Sequence[str]) -> Weights:
    return Weights("Self-attention of the encoder", _one(weights_NBHLL), tokens, tokens)


def _one(weights_NBHLS: jax.Array) -> np.ndarray:
    return np.asarray(weights_NBHLS[:, 0], np.float32)


def _alone(tokens_L: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the tokens, segments and positions [1, L] of a sequence without padding."""
    return tokens_L[None], np.ones((1, len(tokens_L)), np.int32), np.arange(len(tokens_L), dtype=np.int32)[None]


def labels(tokenizer: Tokenizer, ids: np.ndarray) -> list[str]:
    """Returns a label for each token: its text without a word mark, or the name of a special token.

    Where several tokens are the bytes of one character, each label is the character and the number of the byte token.
    """
    special = set(tokenizer.special_ids.tolist())
    found: list[str] = []
    while (at := len(found)) < len(ids):
        if int(ids[at]) in special:
            found.append(_readable(tokenizer.id_to_piece(int(ids[at]))))
            continue
        size = next((n for n in range(1, 5) if "\ufffd" not in tokenizer.decode(ids[at : at + n])), 1)
        text = tokenizer.decode(ids[at : at + size]).strip(" ")
        if size > 1:
            found += [f"{_readable(text)} {number}/{size}" for number in range(1, size + 1)]
        else:
            piece = tokenizer.id_to_piece(int(ids[at]))
            found.append(_readable(piece if "\ufffd" in text else text.removeprefix("##") or text or "␣"))
    return found[: len(ids)]


def _readable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
