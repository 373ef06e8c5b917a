"""Versions, and what one large product reaches: the ceiling of everything else."""

import functools
import importlib.metadata
import platform

import jax
import jax.numpy as jnp

from tests.benchmarks.gpu.turn import SMOKE, attempt, record, seconds, turn


def product(size: int, dtype: jnp.dtype) -> None:
    """One product of square matrices; random values, since zeros need less power and so run faster."""
    wide = jnp.float32 if dtype == jnp.float32 else jnp.bfloat16
    left, right = (jax.random.normal(jax.random.key(index), (size, size), wide).astype(dtype) for index in range(2))
    multiply = jax.jit(lambda left, right: jnp.matmul(left, right.T, preferred_element_type=wide))
    spent = seconds(lambda: multiply(left, right), jax.block_until_ready, calls=20)
    record(f"product {dtype.name} {size}", tflops=2 * size**3 / spent / 1e12)


def layer(rows: int, inputs: int, outputs: int) -> None:
    """A linear map of BERT large over 64 rows of 512 tokens, and its two gradients."""
    shapes = ((rows, inputs), (inputs, outputs), (rows, outputs))
    array, kernel, gradient = (
        jax.random.normal(jax.random.key(index), shape, jnp.bfloat16) for index, shape in enumerate(shapes)
    )
    for what, function, operands in (
        ("forward", lambda one, other: one @ other, (array, kernel)),
        ("of array", lambda one, other: one @ other.T, (gradient, kernel)),
        ("of kernel", lambda one, other: one.T @ other, (array, gradient)),
    ):
        multiply = jax.jit(function)
        spent = seconds(lambda: multiply(*operands), jax.block_until_ready, calls=20)  # noqa: B023
        record(f"{what} {rows} x {inputs} x {outputs}", tflops=2 * rows * inputs * outputs / spent / 1e12)


def main() -> None:
    names = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    with turn():
        record("versions", python=platform.python_version(), device=jax.devices()[0].device_kind, **versions)
        size = 256 if SMOKE else 8192
        for dtype in (jnp.bfloat16, jnp.float8_e4m3fn):
            attempt(f"product {dtype.dtype.name}", lambda dtype=dtype: product(size, jnp.dtype(dtype)))
        for inputs, outputs in ((128, 64),) if SMOKE else ((1024, 1024), (1024, 4096), (4096, 1024)):
            attempt("layer", functools.partial(layer, 64 if SMOKE else 64 * 512, inputs, outputs))
        array = jnp.ones((2**16 if SMOKE else 2**30,), jnp.bfloat16)
        add = jax.jit(lambda array: array + 1)
        spent = seconds(lambda: add(array), jax.block_until_ready)
        record("memory", gb_per_s=2 * array.nbytes / spent / 1e9)


if __name__ == "__main__":
    main()
