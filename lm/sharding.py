"""The mesh, and the tables of how parameters and activations are sharded over it.

Models and tasks name no axis of the mesh: they name the dimensions of their arrays. There are four axes: `data` splits
the batch; `fsdp` splits the batch and the parameters; `context` splits rows along their length; `tensor` splits heads,
feed-forward and vocabulary.

Array names carry their shape: B batch, L length, S memory length, D model, H heads, K head dim,
F feed-forward, V vocabulary, M masked positions, P segments of a row.
"""

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from lm.config import MeshConfig, mesh_sizes

AXES = ("data", "fsdp", "context", "tensor")  # the axis with the least communication first
BATCH = ("data", "fsdp")

# Pattern of the end of a parameter path -> spec of one layer's array. The first match counts. The leading axis of
# stacked layers is never split.
PARAMETERS: tuple[tuple[str, P], ...] = (
    (r"embedding/token", P("tensor", "fsdp")),
    (r"embedding/(position|token_type)", P(None, "fsdp")),
    (r"embedding/projection/kernel", P("fsdp", None)),
    (r"(query|key|value)/kernel", P("fsdp", "tensor", None)),
    (r"(query|key|value)/bias", P("tensor", None)),
    (r"attention/out/kernel", P("tensor", None, "fsdp")),
    (r"mlp/(up|gate)/kernel", P("fsdp", "tensor")),
    (r"mlp/(up|gate)/bias", P("tensor")),
    (r"mlp/down/kernel", P(("tensor", "fsdp"), None)),
    (r"relative_bias", P(None, "tensor")),
    (r"(pooler|nsp|mlm/dense)/kernel", P("fsdp", None)),
    (r"logits/kernel", P("fsdp", "tensor")),
    (r"logits/bias", P("tensor")),
    (r"(out|down|pooler|nsp|dense|projection)/bias", P(None)),
    (r"norm/(scale|bias)", P(None)),
    (r"lora_(a|b|owner)", P()),  # adapters are small
)

# Letter of an array's name -> mesh axes of that dimension. Other letters are never split. `context` splits queries, L,
# but not keys, S: attention needs all keys, so an all-gather precedes it.
ACTIVATIONS = {
    "B": BATCH,
    "L": "context",
    "M": "context",
    "H": "tensor",
    "F": "tensor",
    "V": "tensor",
}


def make_mesh(config: MeshConfig, devices: Sequence[object] | None = None) -> Mesh:
    """Returns the mesh of a config. An axis of size -1 takes all remaining devices.

    Neighbours in a TPU's network go to the axes that communicate most. With several slices, `data` spans them, so only
    gradients cross the data-centre network between slices, once a step.

    Args:
        config: sizes along each axis.
        devices: by default all devices of all processes.

    Raises:
        InputError: the product of the sizes is not the number of devices, or the slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    sizes = mesh_sizes(config, len(devices), slices)
    return Mesh(_device_grid(sizes, devices, slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _device_grid(sizes: dict[str, int], devices: Sequence[object], slices: int) -> np.ndarray:
    within = (sizes["data"] // slices, *(sizes[name] for name in AXES[1:]))
    if slices == 1:
        return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    across = (slices,) + (1,) * len(within[1:])
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def path_name(path: tuple[object, ...]) -> str:
    """Returns a pytree key path as a string such as `layers/attention/query/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def parameter_spec(path: str, ndim: int) -> P:
    """Returns the spec of a parameter from the table; its leading (stacked) axes are not split.

    Raises:
        KeyError: no row matches. A parameter must not be placed by accident.
    """
    for pattern, spec in PARAMETERS:
        if re.search(rf"(^|[/_]){pattern}$", path):
            return P(*(None,) * (ndim - len(spec)), *spec)
    raise KeyError(f"No row of sharding.PARAMETERS matches the parameter {path!r}; add one.")


def state_shardings(mesh: Mesh, state: Mapping[str, object]) -> dict[str, object]:
    """Returns the shardings of a training state `{params, opt, step}`.

    An optimizer statistic with the path and shape of a parameter has that parameter's sharding. The other arrays
    (counts, Adafactor's factored rows and columns) are small and replicated.

    Args:
        mesh: from `make_mesh`.
        state: a pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        A tree of the same structure, of `NamedSharding`.
    """
    known: dict[str, tuple[tuple[int, ...], P]] = {}

    def place_parameter(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = path_name(path)
        known[name] = (leaf.shape, parameter_spec(name, leaf.ndim))
        return NamedSharding(mesh, known[name][1])

    def place_statistic(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        name = path_name(path)
        for start in [0] + [match.end() for match in re.finditer("/", name)]:
            shape, spec = known.get(name[start:], (None, P()))
            if shape == leaf.shape:
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, P())

    params = jax.tree_util.tree_map_with_path(place_parameter, state["params"])
    rest = {name: value for name, value in state.items() if name != "params"}
    return {"params": params, **jax.tree_util.tree_map_with_path(place_statistic, rest)}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: `data` and `fsdp` split its rows, and nothing else is split.

    A batch is a few integers a token, and masking sorts whole rows. So `context` splits only the embeddings.
    """
    return NamedSharding(mesh, P(BATCH))


def batch_shards(mesh: Mesh) -> int:
    """Returns the number of shards of a batch's rows."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of the global batch that this process's devices hold, ascending.

    On a TPU they may not be consecutive, because the chips of a host form a square of the network, not a line.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique([np.arange(batch_size)[index] for index in indices.values() if index is not None])


def place_rows(mesh: Mesh, batch_size: int, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns the global batch as arrays on the devices. Each process passes its own `process_rows` of it."""
    place = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # the only intended transfer of a step
        return {
            name: jax.make_array_from_process_local_data(place, rows, (batch_size, *rows.shape[1:]))
            for name, rows in batch.items()
        }


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager[object]:
    """Returns the context in which programs are compiled for a mesh; for None, one that changes nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def is_trivial() -> bool:
    """Returns whether there is no mesh, or a mesh of one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def activation_spec(dims: str) -> P:
    """Returns the spec of an activation from the table, given a letter for each of its dimensions."""
    return P(*(ACTIVATIONS.get(dim) for dim in dims))


def constrain(array: jax.Array, dims: str) -> jax.Array:
    """Constrains the sharding of an activation: `constrain(hidden_BLD, "BLD")`. Does nothing without a mesh."""
    if is_trivial():
        return array
    return jax.lax.with_sharding_constraint(array, activation_spec(dims))


def platform() -> str:
    """Returns the platform that the program is compiled for: `cpu`, `gpu` or `tpu`. The host may be another one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def compiler_options() -> dict[str, str | bool] | None:
    """Returns the options of XLA for programs of whole rows, on the platform that is compiled for.

    Each was measured (tests/benchmarks/RESULTS.md). On a TPU, XLA would split a product with all-gathered weights into
    one product for each device, and send the shards from device to device meanwhile. The threshold turns it off. On a
    GPU, XLA would compile and time many kernels of its own for each product, which takes most of the compilation;
    those of cuBLAS are as fast.
    """
    return {
        "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
        "gpu": {"xla_gpu_enable_triton_gemm": False},
    }.get(platform())


def ways(dim: str) -> int:
    """Returns the number of shards of the dimension with this letter."""
    return math.prod(map(axis_size, _names(ACTIVATIONS.get(dim))))


def shard_shape(dims: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns the shape of one device's shard of an array with these dims; None if the mesh does not divide it."""
    if any(size % ways(dim) for dim, size in zip(dims, shape, strict=True)):
        return None
    return tuple(size // ways(dim) for dim, size in zip(dims, shape, strict=True))


def axis_size(axis: str) -> int:
    """Returns the number of devices along an axis of the mesh; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def map_shards(function: Callable[..., jax.Array], inputs: Sequence[str], output: str) -> Callable[..., jax.Array]:
    """Returns a function that runs on each device's shards. `inputs` and `output` are dims, as in `constrain`."""
    if is_trivial():
        return function
    specs = tuple(map(activation_spec, inputs))
    # JAX cannot check whether a kernel's result is replicated.
    return jax.shard_map(function, in_specs=specs, out_specs=activation_spec(output), check_vma=False)


def shard_start(dim: str, size: int) -> jax.Array | int:
    """Returns the index at which this device's shard of a dimension begins, inside `map_shards`.

    Args:
        dim: the letter of the dimension.
        size: the size of one shard.
    """
    return 0 if ways(dim) == 1 else jax.lax.axis_index(ACTIVATIONS[dim]) * size


def gathered(path: str, array: jax.Array) -> jax.Array:
    """Returns a parameter all-gathered along `fsdp`. `path` is its path in `PARAMETERS`.

    Without this constraint the compiler may move activations instead of weights.
    """
    return _as_stored(path, array, without_fsdp=True)


def scattered(path: str, gradient: jax.Array) -> jax.Array:
    """Returns the gradient of a parameter with the sharding of the parameter.

    The compiler then uses a reduce-scatter, which takes half the traffic of an all-reduce.
    """
    return _as_stored(path, gradient)


def _as_stored(path: str, array: jax.Array, *, without_fsdp: bool = False) -> jax.Array:
    """Constrains an array to the sharding of a parameter, which `fsdp` splits; others are left to the compiler."""
    if is_trivial() or not path:
        return array
    spec = [_names(axes) for axes in parameter_spec(path, array.ndim)]
    if not any("fsdp" in names for names in spec):
        return array
    if without_fsdp:
        spec = [tuple(name for name in names if name != "fsdp") for names in spec]
    return jax.lax.with_sharding_constraint(array, P(*spec))


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the mesh axes that split a dimension."""
    return (axes,) if isinstance(axes, str) else axes or ()


def look_up(table_VD: jax.Array, rows_BL: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns rows of an embedding table, [B, L, D], not yet sharded as an activation.

    Where the table is sharded along D, each device looks up its shard of D for all devices of its `fsdp` group. An
    all-to-all follows. It moves far fewer bytes than an all-gather of the table, and the gradient of the table is
    sharded from the start.
    """
    if is_trivial():
        return table_VD[rows_BL].astype(dtype)
    rows_BL = jax.lax.with_sharding_constraint(rows_BL, P("data", "context"))
    return jax.lax.with_sharding_constraint(table_VD[rows_BL].astype(dtype), P("data", "context", "fsdp"))
