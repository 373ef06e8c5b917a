"""What a figure depends on beside the code: the machine, and what it gives at the moment."""

import os
import platform
import time

import jax
import jax.numpy as jnp

from lm.data.workers import available_cores


def describe() -> str:
    """The machine in a line: architecture, cores, load, jax, its default device and how fast that multiplies now.

    A virtual machine's cores are not the same every day: the best of ten products of float32 matrices of 3,072 says
    what they give today, and makes figures of different days comparable.
    """
    size = 3072
    matrix = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    jax.block_until_ready(multiply(matrix, matrix))
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        seconds.append(time.perf_counter() - start)
    rate = 2 * size**3 / min(seconds) / 1e9
    cores, load = available_cores(), os.getloadavg()[0]
    device = jax.devices()[0].device_kind
    return (
        f"{device}: {platform.machine()}, {cores} cores, load {load:.1f}, jax {jax.__version__}, "
        f"products {rate:,.0f} GFLOP/s"
    )
