"""Where the time of an encoder goes on this machine: python -m tests.benchmarks.encoder_parts --shapes=8x64,2x256

Six layers of MiniLM's sizes, written out plainly, beside the same layers with a part left out. The products alone are
the least that any program could take with XLA's products. Microseconds of a token; the variants take turns.
"""

import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

_shapes = flags.DEFINE_list("shapes", ["8x64", "2x256", "4x256"], "Rows and tokens of a row.")
_turns = flags.DEFINE_integer("turns", 25, "How often each variant runs.")

LAYERS, D, H, F = 6, 384, 12, 1536
Layer = dict[str, jax.Array]


def make_layers() -> list[Layer]:
    rng = np.random.default_rng(0)
    shapes = {"query": (D, D), "key": (D, D), "value": (D, D), "out": (D, D), "up": (D, F), "down": (F, D)}
    shapes |= {"bias": (D,), "up_bias": (F,), "scale": (D,)}
    make = lambda shape: jnp.asarray(0.02 * rng.normal(size=shape), jnp.float32)  # noqa: E731
    return [{name: make(shape) for name, shape in shapes.items()} for _ in range(LAYERS)]


def normalize(array_BLD: jax.Array, layer: Layer) -> jax.Array:
    centred_BLD = array_BLD - array_BLD.mean(axis=-1, keepdims=True)
    variance_BL1 = jnp.square(centred_BLD).mean(axis=-1, keepdims=True)
    return centred_BLD * jax.lax.rsqrt(variance_BL1 + 1e-12) * layer["scale"][None, None] + layer["bias"][None, None]


def attend(query: jax.Array, key: jax.Array, value: jax.Array, seen_BLS: jax.Array, *, softmax: bool) -> jax.Array:
    scores_BHLS = jnp.einsum("BLHK,BSHK->BHLS", query, key)
    if softmax:
        scores_BHLS = jnp.where(seen_BLS[:, None], scores_BHLS, jnp.finfo(jnp.float32).min)
        scores_BHLS = jax.nn.softmax(scores_BHLS, axis=-1)
    return jnp.einsum("BHLS,BSHK->BHLK", scores_BHLS, value).swapaxes(1, 2)


def encode(
    layers: list[Layer],
    hidden_BLD: jax.Array,
    segments_BL: jax.Array,
    *,
    attention: bool = True,
    softmax: bool = True,
    gelu: bool = True,
    norm: bool = True,
    biases: bool = True,
) -> jax.Array:
    heads = (*hidden_BLD.shape[:2], H, D // H)
    seen_BLS = segments_BL[:, :, None] == segments_BL[:, None, :]
    for layer in layers:
        bias, up_bias = (layer[name][None, None] if biases else 0.0 for name in ("bias", "up_bias"))
        query, key, value = ((hidden_BLD @ layer[name] + bias).reshape(heads) for name in ("query", "key", "value"))
        mixed = attend(query, key, value, seen_BLS, softmax=softmax) if attention else query + key + value
        hidden_BLD = hidden_BLD + mixed.reshape(hidden_BLD.shape) @ layer["out"] + bias
        hidden_BLD = normalize(hidden_BLD, layer) if norm else hidden_BLD
        inner_BLF = hidden_BLD @ layer["up"] + up_bias
        inner_BLF = jax.nn.gelu(inner_BLF, approximate=False) if gelu else inner_BLF
        hidden_BLD = hidden_BLD + inner_BLF @ layer["down"] + bias
        hidden_BLD = normalize(hidden_BLD, layer) if norm else hidden_BLD
    return hidden_BLD


VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "without attention": {"attention": False},
    "without softmax": {"softmax": False},
    "without gelu": {"gelu": False},
    "without norms": {"norm": False},
    "products alone": {"attention": False, "gelu": False, "norm": False, "biases": False},
}


def main(argv: list[str]) -> None:
    del argv
    layers = make_layers()
    for shape in _shapes.value:
        rows, length = map(int, shape.split("x"))
        hidden_BLD = jnp.ones((rows, length, D)) * jnp.arange(length)[None, :, None] / length
        segments_BL = jnp.asarray(np.tile(1 + 3 * np.arange(length) // length, (rows, 1)))
        programs = {name: jax.jit(functools.partial(encode, **less)) for name, less in VARIANTS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for turn in range(_turns.value + 2):  # the first two compile and warm up
            for name, program in programs.items():
                begun = time.perf_counter()
                program(layers, hidden_BLD, segments_BL).block_until_ready()
                if turn >= 2:
                    seconds[name].append(time.perf_counter() - begun)
        for name, found in seconds.items():
            best, usual = min(found), statistics.quantiles(found, n=4)[0]
            print(
                f"{shape} {name}: best {1e6 * best / (rows * length):.1f}, quartile {1e6 * usual / (rows * length):.1f}"
            )


if __name__ == "__main__":
    app.run(main)
