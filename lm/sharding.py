"""The mesh, and the one table of how every parameter and activation is sharded over it.

Only this file names mesh axes. There are four: `data` splits the batch; `fsdp` splits the batch and the parameters;
`context` splits rows along their length; `tensor` splits heads, feed-forward and vocabulary.

Array names carry their shape: B batch, L length, S memory length, D model, H heads, K head dim,
F feed-forward, V vocabulary, M masked positions, P segments of a row.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from lm.config import Config, MeshConfig
from lm.errors import InputError

AXES = ("data", "fsdp", "context", "tensor")  # the axis with the least communication first
BATCH = ("data", "fsdp")

# Pattern of the end of a parameter path -> spec of one layer's array. The first match counts. The leading axis of
# stacked layers is never split.
PARAMETERS: tuple[tuple[str, P], ...] = (
    (r"embedding/token", P("tensor", "fsdp")),
    (r"embedding/(position|token_type)", P(None, "fsdp")),
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
    (r"(out|down|pooler|nsp|dense)/bias", P(None)),
    (r"norm/(scale|bias)", P(None)),
)

# Letter of an array's name -> mesh axes of that dimension; other letters are never split. `context` splits queries, L,
# but not keys, S: attention gathers them.
ACTIVATIONS = {
    "B": BATCH,
    "L": "context",
    "M": "context",
    "H": "tensor",
    "F": "tensor",
    "V": "tensor",
}


def make_mesh(config: MeshConfig, devices: Sequence[object] | None = None) -> Mesh:
    """Returns the mesh of a config; an axis of -1 takes the devices that the others leave.

    Neighbours in a TPU's network go to the axes that communicate most. Where a data-centre network joins several
    slices, `data` spans the slices: only gradients cross that network, once a step.

    Args:
        config: sizes along each axis.
        devices: all devices of all processes by default.

    Raises:
        InputError: when the sizes do not multiply to the number of devices, or the slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {name: getattr(config, name) for name in AXES}
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    derived = [name for name, size in sizes.items() if size == -1]
    if len(devices) % fixed or (not derived and fixed != len(devices)):
        divisors = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise InputError(
            f"mesh is {sizes}, {fixed} devices, but {len(devices)} are present; the sizes must multiply to "
            f"{len(devices)}; use -1 for one of them, or sizes among {divisors}."
        )
    for name in derived:
        sizes[name] = len(devices) // fixed
    return Mesh(_device_grid(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _device_grid(sizes: dict[str, int], devices: Sequence[object]) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes["data"] % slices:
        raise InputError(
            f"mesh.data is {sizes['data']}, which the {slices} slices of these devices do not divide; accepted: a "
            f"multiple such as {-(-sizes['data'] // slices) * slices} (with fewer along the other axes), or -1."
        )
    within = (sizes["data"] // slices, *(sizes[name] for name in AXES[1:]))
    if slices == 1:
        return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    across = (slices,) + (1,) * len(within[1:])
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def check_divisible(mesh: Mesh, config: Config) -> None:
    """Refuses a config with a dimension that the mesh does not divide.

    Raises:
        InputError: names the field, the mesh axes that do not divide it, and the nearest values that they divide.
    """
    rows = config.data.batch_size // config.train.accumulation
    needs = [
        ("data.batch_size / train.accumulation", rows, BATCH),
        ("model.d_model", config.model.d_model, ("fsdp",)),
        ("model.num_heads", config.model.num_heads, ("tensor",)),
        ("model.d_ff", config.model.d_ff, ("fsdp", "tensor")),
        ("model.vocab_size", config.model.vocab_size, ("tensor",)),
        ("data.seq_length", config.data.seq_length, ("context",)),
    ]
    if config.model.architecture == "encoder-decoder":
        needs.append(("data.target_length", config.data.target_length, ("context",)))
    for name, value, axes in needs:
        ways = int(np.prod([mesh.shape[axis] for axis in axes]))
        if value % ways:
            raise InputError(
                f"{name} is {value}, which mesh {' x '.join(axes)} = {ways} does not divide; "
                f"nearest: {nearest(value, ways)}."
            )


def nearest(value: int, step: int) -> str:
    """Returns the multiples of `step` next to a value, for a message."""
    below = value // step * step
    return f"{below} or {below + step}" if below else str(step)


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

    `context` does not split a batch, which is a few integers a token that masking sorts. It splits their embeddings.
    """
    return NamedSharding(mesh, P(BATCH))


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of the global batch that this process's devices hold, ascending.

    On a TPU they need not be consecutive: a host's chips are a square of the network, not a line.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique([np.arange(batch_size)[index] for index in indices.values() if index is not None])


def place_rows(mesh: Mesh, batch_size: int, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Returns the global batch, of which each process gives its `process_rows`."""
    place = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # the only intended transfer of a step
        return {
            name: jax.make_array_from_process_local_data(place, rows, (batch_size, *rows.shape[1:]))
            for name, rows in batch.items()
        }


def is_trivial() -> bool:
    """Returns whether there is a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def constrain(array: jax.Array, dims: str) -> jax.Array:
    """Constrains the sharding of an activation: `constrain(hidden_BLD, "BLD")`. Does nothing without a mesh."""
    if is_trivial():
        return array
    return jax.lax.with_sharding_constraint(array, P(*(ACTIVATIONS.get(dim) for dim in dims)))


def platform() -> str:
    """Returns the platform that the traced program is for, `cpu`, `gpu` or `tpu`; another one may trace it."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def ways(dim: str) -> int:
    """Returns into how many parts the dimension of this letter is split."""
    return math.prod(map(axis_size, _names(ACTIVATIONS.get(dim))))


def axis_size(axis: str) -> int:
    """Returns the number of devices along an axis of the mesh; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def map_shards(function: Callable[..., jax.Array], inputs: Sequence[str], output: str) -> Callable[..., jax.Array]:
    """Returns a function that each device computes on its shards; `inputs` and `output` are dims as of `constrain`."""
    if is_trivial():
        return function
    spec = lambda dims: P(*(ACTIVATIONS.get(dim) for dim in dims))  # noqa: E731
    # JAX cannot check whether a kernel's result is replicated.
    return jax.shard_map(function, in_specs=tuple(map(spec, inputs)), out_specs=spec(output), check_vma=False)


def shard_start(dim: str, size: int) -> jax.Array | int:
    """Returns the index where this device's part of a dimension begins, within `map_shards`; `size` is a part's."""
    return 0 if ways(dim) == 1 else jax.lax.axis_index(ACTIVATIONS[dim]) * size


def gathered(path: str, array: jax.Array) -> jax.Array:
    """All-gathers a parameter along `fsdp`, as a layer needs it; `path` is the one of `PARAMETERS`.

    Without this constraint the compiler may move activations instead of weights.
    """
    return _relaid(path, array, whole=True)


def scattered(path: str, gradient: jax.Array) -> jax.Array:
    """Shards the gradient of a parameter as the parameter is.

    The compiler then uses a reduce-scatter, which takes half the traffic of an all-reduce.
    """
    return _relaid(path, gradient, whole=False)


def _relaid(path: str, array: jax.Array, *, whole: bool) -> jax.Array:
    if is_trivial() or not path:
        return array
    spec = [_names(axes) for axes in parameter_spec(path, array.ndim)]
    if not any("fsdp" in names for names in spec):
        return array
    layout = P(*(tuple(name for name in names if name != "fsdp" or not whole) for names in spec))
    return jax.lax.with_sharding_constraint(array, layout)


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the mesh axes that split a dimension."""
    return (axes,) if isinstance(axes, str) else axes or ()


def look_up(table_VD: jax.Array, rows_BL: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns rows of an embedding table, [B, L, D], not yet sharded as an activation.

    Where the table is split along D, each device looks up its part of D for all devices of its `fsdp` group, and an
    all-to-all follows. That moves far fewer bytes than an all-gather of the table, and the table's gradient is split
    from the start.
    """
    if is_trivial():
        return table_VD[rows_BL].astype(dtype)
    rows_BL = jax.lax.with_sharding_constraint(rows_BL, P("data", "context"))
    return jax.lax.with_sharding_constraint(table_VD[rows_BL].astype(dtype), P("data", "context", "fsdp"))
