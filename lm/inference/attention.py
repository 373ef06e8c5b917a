"""Computes the attention weights of one request.

Array names carry their shape: N layers, B batch (always 1), H heads, L queries, S keys, T decoded length.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from lm.inference.packed import Row
from lm.inference.predict import Pipeline, Predictor
from lm.inference.prompts import until_end
from lm.inference.requests import Request
from lm.tokenizers.special_ids import decoder_start, end_ids
from lm.tokenizers.tokenizer import Tokenizer


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
        return of_row(model, row)
    ((tokens_NT, _),) = pipeline.compute([row], [0])
    return of_row(model, row, tokens_NT[0])


def of_row(model: Predictor, row: Row, written_T: np.ndarray | None = None, width: int = 0) -> dict[str, Weights]:
    """Returns the weights of a request's row, as `of_request` does.

    Args:
        model: the model.
        row: the row of the request.
        written_T: what a model that writes has written for it; not for an encoder.
        width: pad every sequence to this number of tokens, so that all rows share one program; 0 pads nothing.
    """
    runner, tokenizer = model.runner, model.loaded.tokenizer
    copies = runner.multiple  # a mesh splits the rows of a batch
    if written_T is None:
        types_L = np.pad(row.types, (0, max(0, width - len(row.types))))
        found_NBHLL = runner.encoder_attention(*_alone(row.tokens, width, copies), np.tile(types_L, (copies, 1)))
        return _weights_of_encoder(found_NBHLL, labels(tokenizer, row.tokens))
    tokens_T = decoded(model, row, written_T)
    encoder_NBHSS, decoder_NBHTT, cross_NBHTS = runner.writer_attention(
        _alone(row.tokens, width, copies), _alone(tokens_T[:-1], width, copies)
    )
    tokens, query = labels(tokenizer, tokens_T), "query: the token to be written"
    found = {}
    if encoder_NBHSS is not None and cross_NBHTS is not None:
        source, key = labels(tokenizer, row.tokens), "key: a token of the source"
        title = "Attention of the decoder to the encoder"
        found["cross"] = Weights(title, _one(cross_NBHTS, tokens[1:], source), tokens[1:], source, query, key)
        found |= _weights_of_encoder(encoder_NBHSS, source)
    title, key = "Self-attention of the decoder", "key: a token before it"
    weights_NHTT = _one(decoder_NBHTT, tokens[1:], tokens[:-1])
    return found | {"decoder": Weights(title, weights_NHTT, tokens[1:], tokens[:-1], query, key)}


def decoded(model: Predictor, row: Row, written_T: np.ndarray) -> np.ndarray:
    """Returns the tokens of the decoder: its start, its prompt, and what was written up to its end.

    Its inputs are all but the last.
    """
    special, config = model.loaded.tokenizer.special, model.loaded.config
    has_source = config.model.architecture == "encoder-decoder"
    before_end = len(until_end(written_T, end_ids(config, special)))
    if before_end == len(written_T):  # cut at its greatest length: padding may follow
        before_end = int(np.flatnonzero(written_T != special.pad).max(initial=-1))
    written_T = written_T[: before_end + 1]
    begin = row.prompt if has_source else row.tokens
    return np.array([decoder_start(config, special), *begin, *written_T], np.int32)


def _weights_of_encoder(weights_NBHLL: jax.Array, tokens: Sequence[str]) -> dict[str, Weights]:
    return {"encoder": Weights("Self-attention of the encoder", _one(weights_NBHLL, tokens, tokens), tokens, tokens)}


def _one(weights_NBHLS: jax.Array, queries: Sequence[str], keys: Sequence[str]) -> np.ndarray:
    """Returns the weights of the first row, without padding."""
    return np.asarray(weights_NBHLS[:, 0], np.float32)[:, :, : len(queries), : len(keys)]


def _alone(tokens_L: np.ndarray, width: int = 0, copies: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the tokens, segments and positions [B, L] of copies of one sequence, padded to a width."""
    padding = (0, max(0, width - len(tokens_L)))
    segments_L = np.pad(np.ones(len(tokens_L), np.int32), padding)
    positions_L = np.pad(np.arange(len(tokens_L), dtype=np.int32), padding)
    tokens_BL, segments_BL, positions_BL = (
        np.tile(each, (copies, 1)) for each in (np.pad(tokens_L, padding), segments_L, positions_L)
    )
    return tokens_BL, segments_BL, positions_BL


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
