"""What makes a sentence encoder of an encoder: how texts are prepared, and how their tokens' vectors become one vector.

The settings are those of sentence-transformers. A working directory keeps them in `sentence_encoder.json`, and the
weights of dense layers in `sentence_encoder.safetensors`.

Array names carry their shape: D width of a vector, E width after a dense layer.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lm import storage
from lm.errors import InputError

SETTINGS_FILE, WEIGHTS_FILE = "sentence_encoder.json", "sentence_encoder.safetensors"
_OLD_FILE = "pooling.json"  # held `mode`, `normalize` and `max_length` alone

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

_erf = np.vectorize(math.erf, otypes=[np.float32])
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """Computes f(W x + b), plus x or R x where it has a residual.

    Attributes:
        weight_ED: W.
        bias_E: b; None is zero.
        activation: f, a key of `ACTIVATIONS`.
        is_residual: whether it has a residual.
        residual_ED: R; None adds x itself.
    """

    weight_ED: np.ndarray
    bias_E: np.ndarray | None = None
    activation: str = "tanh"
    is_residual: bool = False
    residual_ED: np.ndarray | None = None

    def __call__(self, vector_D: np.ndarray) -> np.ndarray:
        out_E = self.weight_ED @ vector_D
        out_E = ACTIVATIONS[self.activation](out_E if self.bias_E is None else out_E + self.bias_E)
        if not self.is_residual:
            return out_E
        return out_E + (vector_D if self.residual_ED is None else self.residual_ED @ vector_D)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The weights that there are, by the names of their fields."""
        named = {"weight_ED": self.weight_ED, "bias_E": self.bias_E, "residual_ED": self.residual_ED}
        return {name: array for name, array in named.items() if array is not None}


@dataclasses.dataclass(frozen=True)
class Normalize:
    """Scales a vector to length one."""

    def __call__(self, vector_D: np.ndarray) -> np.ndarray:
        return vector_D / max(float(np.linalg.norm(vector_D)), 1e-12)


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """How a text is embedded.

    Attributes:
        pooling: names in `POOLINGS`. The vectors of several are joined end to end.
        include_prompt: whether the tokens of a prompt, and special tokens before them, are pooled too.
        steps: what follows pooling, in order.
        max_length: the longest text in tokens, special tokens included. Longer texts are cut. None is no limit.
        lower_case: whether texts become lower case before the tokenizer reads them.
        prompts: texts to put before a text, by name.
        default_prompt_name: the prompt of requests that name none; None is no prompt.
        similarity: how two embeddings are meant to be compared, one of `SIMILARITIES`.
    """

    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Dense | Normalize, ...] = ()
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str = "cosine"

    def prompt(self, given: str | None, name: str | None) -> str:
        """Returns the text to put before a text: the one given, or that of this name, or the default one.

        Raises:
            InputError: there is no prompt of this name.
        """
        if given is not None:
            return given
        name = self.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            accepted = ", ".join(self.prompts) or "none, give the text of a prompt instead"
            raise InputError(f"prompt_name is {name!r}; this model has: {accepted}.")
        return self.prompts[name]

    def changed(self, pooling: str | None, normalize: bool | None) -> "SentenceEncoder":
        """Returns the same with another pooling, or with vectors that are scaled to length one or not.

        Raises:
            InputError: there is no such pooling, or it does not fit the dense layers.
        """
        found = self
        if pooling is not None:
            if pooling not in POOLINGS:
                raise InputError(f"pooling is {pooling!r}; accepted: {', '.join(POOLINGS)}.")
            if len(self.pooling) > 1 and any(isinstance(step, Dense) for step in self.steps):
                needed = " and ".join(self.pooling)
                raise InputError(f"pooling is {pooling!r}; this model's dense layer needs {needed}.")
            found = dataclasses.replace(found, pooling=(pooling,))
        if normalize is not None:
            steps = tuple(step for step in self.steps if not isinstance(step, Normalize))
            found = dataclasses.replace(found, steps=(*steps, Normalize()) if normalize else steps)
        return found

    def finish(self, vector_D: np.ndarray) -> np.ndarray:
        """Returns the embedding, given the pooled vector."""
        for step in self.steps:
            vector_D = step(vector_D)
        return vector_D


def write(workdir: str, encoder: SentenceEncoder) -> None:
    """Writes the settings and the weights into a working directory."""
    from safetensors.numpy import save

    fields = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
    steps, arrays = [], {}
    for number, step in enumerate(encoder.steps):
        if isinstance(step, Normalize):
            steps.append({"type": "normalize"})
            continue
        steps.append({"type": "dense", "activation": step.activation, "is_residual": step.is_residual})
        arrays |= {f"{number}/{name}": np.ascontiguousarray(array) for name, array in step.arrays.items()}
    if arrays:
        storage.write_key(workdir, WEIGHTS_FILE, save(arrays))
    content = json.dumps(fields | {"steps": steps, "prompts": dict(encoder.prompts)}, ensure_ascii=False, indent=2)
    storage.write_key(workdir, SETTINGS_FILE, content.encode())


def read(workdir: str) -> SentenceEncoder | None:
    """Returns the sentence encoder of a working directory; None for one of another model."""
    settings, weights, old = storage.read_keys(workdir, (SETTINGS_FILE, WEIGHTS_FILE, _OLD_FILE))
    if settings is None:
        if old is None:
            return None
        options = json.loads(old)
        steps = (Normalize(),) if options.get("normalize") else ()
        return SentenceEncoder((options.get("mode", "mean"),), steps=steps, max_length=options.get("max_length"))
    fields, arrays = json.loads(settings), {}
    if weights is not None:
        from safetensors.numpy import load  # only models with a dense layer need it

        arrays = load(weights)
    fields["pooling"] = tuple(fields["pooling"])
    fields["steps"] = tuple(_step(step, number, arrays) for number, step in enumerate(fields["steps"]))
    return SentenceEncoder(**fields)


def _step(step: Mapping[str, object], number: int, arrays: Mapping[str, np.ndarray]) -> Dense | Normalize:
    if step["type"] == "normalize":
        return Normalize()
    prefix = f"{number}/"
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return Dense(activation=str(step["activation"]), is_residual=bool(step["is_residual"]), **own)


def lowered(text: str, kept: Sequence[str]) -> str:
    """Returns a text in lower case but for the `kept` strings, character by character as `tokenizers` does."""
    places = sorted((text.find(piece), piece) for piece in kept if piece in text)
    if not places:
        return "".join(map(str.lower, text))
    place, piece = places[0]
    rest = text[place + len(piece) :]
    return "".join(map(str.lower, text[:place])) + piece + lowered(rest, kept)
