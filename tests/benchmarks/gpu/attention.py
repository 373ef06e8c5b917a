"""Every attention backend against plain attention in float32: values, gradients, leaks between segments, and time.

Packed rows of 512 tokens, heads of 64, bfloat16. Errors are the largest difference over the largest value.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.attention import View, attend
from lm.ops.dropout import Dropout
from lm.ops.flash import cudnn, gpu
from lm.ops.flash.gpu_kernels import Launch, Launches
from tests.benchmarks.gpu.turn import SMOKE, attempt, record, seconds, turn

B, L, H, K = (2, 128, 2, 32) if SMOKE else (32, 512, 16, 64)
REFERENCES: dict[str, Any] = {}  # what is computed -> outputs and gradients of plain attention in float32
NAMES = ("queries", "keys", "values", "bias")


def segments(lengths: tuple[int, ...]) -> jax.Array:
    row = np.repeat(range(1, len(lengths) + 1), lengths)
    return jnp.asarray(np.tile(np.pad(row, (0, L - len(row))), (B, 1)), jnp.int32)


WHOLE = segments((L,))
PACKED = segments((L // 4, L // 8, L // 2 - 5))


def backend(
    name: str, dropout: Dropout | None = None, *, biased: bool = False, **visibility: Any
) -> Callable[..., Any]:
    """Returns the attention (queries, keys, values, curve, segments) -> outputs of a backend."""
    if name == "plain":

        def plain(query, key, value, curve_HN, segments_BL):
            distance = jnp.arange(L)[:, None] - jnp.arange(L)[None, :] + L
            bias = curve_HN[:, distance] if biased else None
            return attend(query, key, value, View(segments_BL, segments_BL, bias=bias, **visibility), dropout)

        return plain
    own = {"interpret": True} if SMOKE else {}
    flash: Callable[..., jax.Array] = functools.partial(gpu.attend, **own) if name == "ours" else cudnn.attend
    if SMOKE and name == "cudnn":
        flash = functools.partial(cudnn.attend, implementation="xla")

    def kernel(query, key, value, curve_HN, segments_BL):
        curve = {"curve_HN": curve_HN} if biased else {}
        drops: dict[str, Any] = {"dropout": dropout} if dropout else {}
        return flash(
            query, key, value, segments_BL=segments_BL, memory_segments_BS=segments_BL, **visibility, **curve, **drops
        )

    return kernel


def operands(dtype) -> list[jax.Array]:
    heads = [jax.random.normal(jax.random.key(index), (B, L, H, K)) for index in range(3)]
    heads[0] *= K**-0.5
    # The reference gets the same rounded values.
    heads = [array.astype(jnp.bfloat16).astype(dtype) for array in heads]
    return [*heads, jax.random.normal(jax.random.key(3), (H, 2 * L))]


def gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled function of operands and segments: outputs where there are tokens, and all gradients."""

    @jax.jit
    def compute(query, key, value, curve, segments):
        weights = jax.random.normal(jax.random.key(9), (B, L, H, K)) * (segments > 0)[:, :, None, None]

        def loss(query, key, value, curve):
            out = function(query, key, value, curve, segments).astype(jnp.float32)
            return jnp.vdot(out, weights), out * (weights != 0)

        (_, out), grads = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(query, key, value, curve)
        return out, grads

    return compute


def compare(name: str, what: str, dropout: Dropout | None = None, **kinds: Any) -> None:
    """Records errors against plain attention in float32, and the time of forward and backward on two kinds of rows."""
    if what not in REFERENCES:
        with jax.default_matmul_precision("float32"):
            REFERENCES[what] = jax.device_get(
                gradients(backend("plain", dropout, **kinds))(*operands(jnp.float32), PACKED)
            )
    expected = REFERENCES[what]
    compute, given = gradients(backend(name, dropout, **kinds)), operands(jnp.bfloat16)
    found = jax.device_get(compute(*given, PACKED))
    error = lambda one, other: float(np.abs(np.float32(one) - other).max() / max(np.abs(other).max(), 1e-9))  # noqa: E731
    errors = {"outputs": error(found[0], expected[0])}
    count = 4 if kinds.get("biased") else 3
    errors |= {NAMES[index]: error(found[1][index], expected[1][index]) for index in range(count)}
    times = {
        f"{kind}_ms": 1e3 * seconds(lambda rows=rows: compute(*given, rows), jax.block_until_ready)
        for kind, rows in (("whole", WHOLE), ("packed", PACKED))
    }
    pairs = 4 * B * H * L * L * K * 3.5  # forward once, backward two and a half times
    record(f"{name} {what}", **times, whole_tflops=pairs / times["whole_ms"] / 1e9, **errors)


def leaks(name: str) -> None:
    """Records whether a segment's values or gradients depend on what shares its row."""
    query, key, value, curve = operands(jnp.bfloat16)
    mine = (PACKED == 2)[:, :, None, None]
    function = backend(name)
    compute = jax.jit(lambda *heads: jnp.where(mine, function(*heads, curve, PACKED), 0))
    other = [jnp.where(mine, array, array + 7) for array in (query, key, value)]
    out, backward = jax.vjp(compute, query, key, value)
    same = bool((out == compute(*other)).all())
    outside = max(float(jnp.abs(jnp.where(mine, 0, grad)).max()) for grad in backward(jnp.ones_like(out)))
    record(f"{name} leaks", values="none" if same else "YES", gradients="none" if outside == 0 else f"YES {outside}")


def tune() -> None:
    """Records the time of other launches of our kernels with a bias. `gpu._launches` has the chosen ones."""
    tried = [(128, 64, 4, 2), (128, 64, 8, 2), (128, 64, 4, 3), (128, 128, 8, 2), (64, 64, 4, 2), (64, 64, 4, 3)]
    backward = [(128, 32, 4, 2), (64, 64, 4, 2), (128, 64, 8, 2)]
    for forward, of_query in itertools.zip_longest(tried[:1] if SMOKE else tried, [] if SMOKE else backward):
        q = of_query or backward[0]
        launches = Launches(
            forward=Launch(*forward),
            of_query=Launch(*q),
            of_key=Launch(q[1], q[0], *q[2:]),
            of_curve=Launch(64, 64, 4, 1),
        )
        attempt(f"launches {forward} {of_query}", functools.partial(tune_one, launches, forward, of_query))


def tune_one(launches: Launches, forward: tuple[int, ...], of_query: tuple[int, ...] | None) -> None:
    chosen, given = gpu._launches, operands(jnp.bfloat16)
    gpu._launches = lambda length, keys, width: launches
    try:
        function = backend("ours", biased=True)
        compute = jax.jit(lambda *operands: function(*operands, WHOLE))
        times = {"forward_ms": 1e3 * seconds(lambda: compute(*given), jax.block_until_ready)}
        if of_query:
            both = gradients(function)
            times["both_ms"] = 1e3 * seconds(lambda: both(*given, WHOLE), jax.block_until_ready)
    finally:
        gpu._launches = chosen
    record(f"launches {forward} {of_query or ''}", **times)


def main() -> None:
    dropout = Dropout(0.1, jax.random.key(5))
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("ours", "bare", {}),
        ("cudnn", "bare", {}),
        ("plain", "bare", {}),
        ("ours", "bias", {"biased": True}),
        ("plain", "bias", {"biased": True}),
        ("ours", "window", {"window": 64}),
        ("cudnn", "window", {"window": 64}),
        ("ours", "dropout", {"dropout": dropout}),
        ("plain", "dropout", {"dropout": dropout}),
        ("ours", "causal bias dropout", {"biased": True, "causal": True, "dropout": dropout}),
    ]
    with turn():
        for name in ("ours", "cudnn"):
            attempt(f"{name} leaks", functools.partial(leaks, name))
        for name, what, kinds in cases:
            attempt(f"{name} {what}", functools.partial(compare, name, what, **kinds))
        tune()


if __name__ == "__main__":
    main()
