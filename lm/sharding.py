"""The mesh, and the one table that says how every parameter and activation lies on it.

Nothing outside this file names a mesh axis. Four axes: `data` (replicas), `fsdp` (batch and
parameters both split), `context` (rows split along their length) and `tensor` (heads, feed-forward and
vocabulary split).

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

AXES = ("data", "fsdp", "context", "tensor")  # from the least communication to the most
BATCH = ("data", "fsdp")

# Parameter path -> spec of one layer's array; the leading axis of stacked layers is never split.
# The first row whose pattern matches the end of the path is taken.
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

# Letter of an array's name -> mesh axes of that dimension; letters not here are never split. Queries, L, are split
# along `context`, and the keys that they meet, S, are whole: attention gathers them.
ACTIVATIONS = {
    "B": BATCH,
    "L": "context",
    "M": "context",
    "H": "tensor",
    "F": "tensor",
    "V": "tensor",
}


def make_mesh(config: MeshConfig, devices: Sequence[object] | None = None) -> Mesh:
    """Lays the devices out as the config says, an axis of -1 taking whatever is left.

    The axes that communicate most take the nearest neighbours of a TPU's network. Several slices, which a data-centre
    network joins, split the axis `data`: gradients cross it once a step, and nothing else does.

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
            f"{len(devices)} (use -1 for the rest, or sizes among {divisors})."
        )
    for name in derived:
        sizes[name] = len(devices) // fixed
    return Mesh(_device_grid(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _device_grid(sizes: dict[str, int], devices: Sequence[object]) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes["data"] % slices:
        raise InputError(
            f"mesh.data is {sizes['data']}, but the devices are {slices} slices, over which it has to be split; "
            f"nearest: {-(-sizes['data'] // slices) * slices} (with fewer along the other axes), or -1."
        )
    within = (sizes["data"] // slices, *(sizes[name] for name in AXES[1:]))
    if slices == 1:
        return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    across = (slices,) + (1,) * len(within[1:])
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def check_divisible(mesh: Mesh, config: Config) -> None:
    """Refuses a config whose dimensions the mesh would cut unevenly.

    Raises:
        InputError: naming the field, the mesh axes that do not divide it, and the nearest values that work.
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
    """The multiples of `step` next to a value, for a message."""
    below = value // step * step
    return f"{below} or {below + step}" if below else str(step)


def path_name(path: tuple[object, ...]) -> str:
    """A pytree key path as `layers/attention/query/kernel`."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def parameter_spec(path: str, ndim: int) -> P:
    """The table's row for a parameter, its leading (stacked) axes unsplit.

    Raises:
        KeyError: when no row matches; a parameter must never be placed by accident.
    """
    for pattern, spec in PARAMETERS:
        if re.search(rf"(^|[/_]){pattern}$", path):
            return P(*(None,) * (ndim - len(spec)), *spec)
    raise KeyError(f"No row of sharding.PARAMETERS matches the parameter {path!r}; add one.")


def state_shardings(mesh: Mesh, state: Mapping[str, object]) -> dict[str, object]:
    """Shardings of a training state `{params, opt, step}` from its abstract shapes.

    An optimizer statistic with the path and shape of a parameter lies as that parameter does; what is
    left (counts, Adafactor's factored rows and columns) is small and replicated.

    Args:
        mesh: from `make_mesh`.
        state: a pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
        The same tree of `NamedSharding`.
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
    """Rows of a batch over `data` and `fsdp`; everything else whole.

    Along `context` too: a batch is a few integers a token, and masking sorts them. Its embedding is what gets split.
    """
    return NamedSharding(mesh, P(BATCH))


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of the global batch that this process's devices hold, ascending.

    On a TPU they need not be neighbours: a host's chips are a square of the network, not a line.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique([np.arange(batch_size)[index] for index in indices.values() if index is not None])


def place_rows(mesh: Mesh, batch_size: int, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch, each process giving the rows that `process_rows` says."""
    place = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # this is the one transfer of a step that is meant
        return {
            name: jax.make_array_from_process_local_data(place, rows, (batch_size, *rows.shape[1:]))
            for name, rows in batch.items()
        }


def is_trivial() -> bool:
    """Whether there is a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def constrain(array: jax.Array, dims: str) -> jax.Array:
    """Pins an activation's layout: `constrain(hidden_BLD, "BLD")`. Without a mesh it does nothing."""
    if is_trivial():
        return array
    return jax.lax.with_sharding_constraint(array, P(*(ACTIVATIONS.get(dim) for dim in dims)))


def platform() -> str:
    """What the program being traced will run on, which need not be what traces it: `cpu`, `gpu` or `tpu`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def ways(dim: str) -> int:
    """Into how many parts the dimension of that letter is split."""
    return math.prod(map(axis_size, _names(ACTIVATIONS.get(dim))))


def axis_size(axis: str) -> int:
    """Devices along an axis of the mesh; 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def map_shards(function: Callable[..., jax.Array], inputs: Sequence[str], output: str) -> Callable[..., jax.Array]:
    """A function that every device computes on its own part, its arrays laid out as in `constrain`."""
    if is_trivial():
        return function
    spec = lambda dims: P(*(ACTIVATIONS.get(dim) for dim in dims))  # noqa: E731
    # What a kernel computes is not checked for replication: kernels do not say.
    return jax.shard_map(function, in_specs=tuple(map(spec, inputs)), out_specs=spec(output), check_vma=False)


def shard_start(dim: str, size: int) -> jax.Array | int:
    """Where this device's part of a dimension begins, within `map_shards`, when each part has that size."""
    return 0 if ways(dim) == 1 else jax.lax.axis_index(ACTIVATIONS[dim]) * size


def gathered(path: str, array: jax.Array) -> jax.Array:
    """A parameter made whole along `fsdp`, as a layer needs it; the path is how `PARAMETERS` knows it.

    Said explicitly because the compiler otherwise may move activations instead of weights.
    """
    return _relaid(path, array, whole=True)


def scattered(path: str, gradient: jax.Array) -> jax.Array:
    """A parameter's gradient, split as the parameter is.

    It is reduced and scattered then, which is half the traffic of reducing it whole.
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
    """The mesh axes that one dimension is split over."""
    return (axes,) if isinstance(axes, str) else axes or ()


def look_up(table_VD: jax.Array, rows_BL: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rows of an embedding table, [B, L, D], not yet laid out as an activation.

    Where tables are split along D, every device looks up its part of D for all that share the table with it, and the
    parts then change hands: far fewer bytes than the table, and its gradient is born split as well.
    """
    if is_trivial():
        return table_VD[rows_BL].astype(dtype)
    rows_BL = jax.lax.with_sharding_constraint(rows_BL, P("data", "context"))
    return jax.lax.with_sharding_constraint(table_VD[rows_BL].astype(dtype), P("data", "context", "fsdp"))
