"""The models: one Transformer, whose families are settings of `ModelConfig`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from lm import lora
from lm.config import ModelConfig
from lm.models import adapters
from lm.models.decode import Cache, Decoder, Prompts, Sources, make_decoder
from lm.models.encoder import Encoder
from lm.models.layers import Execution
from lm.models.seq2seq import Seq2Seq
from lm.models.transformer import Memory

Params = dict[str, Any]


class Model:
    """Splits a Flax module into parameters and pure functions, to which JAX's own jit and grad apply."""

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]):
        self._build = build
        self._graph = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(params=0))))

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters, a nested dict of arrays."""
        return nnx.to_pure_dict(nnx.state(self._build(nnx.Rngs(params=key)), nnx.Param))

    def merge(self, params: Params) -> Any:
        """Returns the module with these parameters, which may hold several adapters; see `lm.models.adapters`."""
        merge = functools.partial(nnx.merge, self._graph)
        return adapters.attach(merge, params) if lora.has_several(params) else merge(params)


def build(config: ModelConfig, execution: Execution | None = None) -> Model:
    """Returns the model that a config describes."""
    execution = execution or Execution()
    kind = Encoder if config.architecture == "encoder" else Seq2Seq
    return Model(lambda rngs: kind(config, execution, rngs=rngs))


__all__ = [
    "Cache",
    "Decoder",
    "Encoder",
    "Execution",
    "Memory",
    "Model",
    "Params",
    "Prompts",
    "Seq2Seq",
    "Sources",
    "build",
    "make_decoder",
]
