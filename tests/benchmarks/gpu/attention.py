"""Every attention backend against plain attention in float32: values, gradients, leaks between segments, and time.

Packed rows of 512 tokens, heads of 64, bfloat16. Errors are the largest difference over the largest value.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.attention import View, attend, visible
from lm.ops.dropout import Dropout
from lm.ops.flash import gpu
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
    name: str,
    dropout: Dropout | None = None,
    *,
    biased: bool = False,
    launches: Launches | None = None,
    **visibility: Any,
) -> Callable[..., Any]:
    """Returns the attention (queries, keys, values, curve, segments) -> outputs of a backend."""
    if name == "plain":

        def plain(query, key, value, curve_HN, segments_BL):
            distance = jnp.arange(L)[:, None] - jnp.arange(L)[None, :] + L
            bias = curve_HN[:, distance] if biased else None
            return attend(query, key, value, View(segments_BL, segments_BL, bias=bias, **visibility), dropout)

        return plain
    if name == "cudnn":

        def masked(query, key, value, curve_HN, segments_BL):
            mask = visible(View(segments_BL, segments_BL, **visibility))[:, None]
            how = "xla" if SMOKE else "cudnn"
            return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=1.0, implementation=how)

        return masked

    def kernel(query, key, value, curve_HN, segments_BL):
        curve = {"curve_HN": curve_HN} if biased else {}
        drops: dict[str, Any] = {"dropout": dropout} if dropout else {}
        same: dict[str, Any] = dict(segments_BL=segments_BL, memory_segments_BS=segments_BL)
        fields = same | visibility | curve | drops
        return gpu.attend(query, key, value, launches=launches, interpret=SMOKE, **fields)

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


def compiled(function: Callable[..., Any], *operands: Any) -> Callable[..., Any]:
    return jax.jit(function).lower(*operands).compile()


def compare(name: str, what: str, dropout: Dropout | None = None, **kinds: Any) -> Callable[[], None]:
    """Compiles a backend's values and gradients.

    Returns what records its errors against plain attention in float32, and its time on two kinds of rows.
    """
    given = operands(jnp.bfloat16)
    compute = compiled(gradients(backend(name, dropout, **kinds)), *given, PACKED)

    def measure() -> None:
        if what not in REFERENCES:
            # On the CPU: float32 products of a GPU take minutes to compile.
            with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("float32"):
                exact = gradients(backend("plain", dropout, **kinds))
                REFERENCES[what] = jax.device_get(exact(*operands(jnp.float32), np.asarray(PACKED)))
        expected, found = REFERENCES[what], jax.device_get(compute(*given, PACKED))
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

    return measure


def leaks(name: str) -> Callable[[], None]:
    """Compiles a backend. Returns what records whether a segment depends on what shares its row."""
    query, key, value, curve = operands(jnp.bfloat16)
    mine = (PACKED == 2)[:, :, None, None]
    function = backend(name)

    def both(query, key, value):
        out, backward = jax.vjp(lambda *heads: jnp.where(mine, function(*heads, curve, PACKED), 0), query, key, value)
        return out, backward(jnp.ones_like(out))

    compute = compiled(both, query, key, value)

    def measure() -> None:
        other = [jnp.where(mine, array, array + 7) for array in (query, key, value)]
        out, grads = compute(query, key, value)
        same = bool((out == compute(*other)[0]).all())
        outside = max(float(jnp.abs(jnp.where(mine, 0, grad)).max()) for grad in grads)
        gradients = "none" if outside == 0 else f"YES {outside}"
        record(f"{name} leaks", values="none" if same else "YES", gradients=gradients)

    return measure


def launches() -> dict[str, Callable[[], Callable[[], None]]]:
    """Returns what compiles other launches of our kernels with a bias. `gpu._launches` has the chosen ones."""
    forward = [(64, 64, 4, 2), (128, 64, 4, 2), (128, 128, 8, 2), (64, 64, 4, 3)]
    backward = [(64, 64, 4, 2), (128, 32, 4, 2), (64, 32, 4, 2), (64, 32, 4, 3)]
    found = {f"launch forward {one}": (one, backward[0]) for one in forward[: 1 if SMOKE else None]}
    found |= {f"launch backward {one}": (forward[0], one) for one in backward[: 1 if SMOKE else None]}
    return {what: functools.partial(launch, what, *pair) for what, pair in found.items()}


def launch(what: str, forward: tuple[int, ...], of_query: tuple[int, ...]) -> Callable[[], None]:
    given, of_curve = operands(jnp.bfloat16), Launch(64, 64, 4, 1)
    of_key = Launch(of_query[1], of_query[0], *of_query[2:])
    chosen = Launches(forward=Launch(*forward), of_query=Launch(*of_query), of_key=of_key, of_curve=of_curve)
    function = backend("ours", biased=True, launches=chosen)
    compute = compiled(function if "forward" in what else gradients(function), *given, WHOLE)
    return lambda: record(what, ms=1e3 * seconds(lambda: compute(*given, WHOLE), jax.block_until_ready))


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
    tasks: dict[str, Callable[[], Any]] = {}
    tasks |= {f"{name} leaks": functools.partial(leaks, name) for name in ("ours", "cudnn")}
    tasks |= {f"{name} {what}": functools.partial(compare, name, what, **kinds) for name, what, kinds in cases}
    tasks |= launches()
    with ThreadPoolExecutor(4) as pool:
        prepared = dict(zip(tasks, pool.map(attempt, tasks, tasks.values()), strict=True))
    with turn():
        for what, measure in prepared.items():
            if measure:
                attempt(what, measure)


if __name__ == "__main__":
    main()
