"""Lowers functions for a GPU on a machine without one."""

import warnings
from collections.abc import Callable

import jax
from jax.sharding import AbstractDevice, AbstractMesh

# What jax 0.11 and later compile a kernel for, where there is no GPU.
H100 = AbstractMesh(
    (1,), ("data",), abstract_device=AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
)


def lowered_to_cuda(function: Callable, *shapes: jax.ShapeDtypeStruct) -> str:
    with jax.sharding.use_abstract_mesh(H100), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend", DeprecationWarning)  # jax 0.11 and later
        return jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
