"""The mesh, and the one table that says how every parameter and activation lies on it.

Nothing outside this file names a mesh axis. Three axes: `data` (replicas), `fsdp` (batch and
parameters both split) and `tensor` (heads, feed-forward and vocabulary split).

Array names carry their shape: B batch, L length, D model, H heads, K head dim, F feed-forward,
V vocabulary, M masked positions, P segments of a row.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.config import Config, InputError, MeshConfig

AXES = ("data", "fsdp", "tensor")
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
    (r"mlp/down/kernel", P("tensor", "fsdp")),
    (r"relative_bias", P(None, "tensor")),
    (r"(pooler|nsp|mlm/dense)/kernel", P("fsdp", None)),
    (r"logits/kernel", P("fsdp", "tensor")),
    (r"logits/bias", P("tensor")),
    (r"(out|down|pooler|nsp|dense)/bias", P(None)),
    (r"norm/(scale|bias)", P(None)),
)

# Letter of an array's name -> mesh axes of that dimension; letters not here are never split.
ACTIVATIONS = {"B": BATCH, "H": "tensor", "F": "tensor", "V": "tensor"}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays the devices out as the config says, an axis of -1 taking whatever is left.

    Args:
        config: sizes along each axis.
        devices: all devices of all processes by default.

    Raises:
        InputError: when the sizes do not multiply to the number of devices.
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
    grid = np.asarray(devices).reshape([sizes[name] for name in AXES])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


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
        ("model.d_ff", config.model.d_ff, ("tensor",)),
        ("model.vocab_size", config.model.vocab_size, ("tensor",)),
    ]
    for name, value, axes in needs:
        ways = int(np.prod([mesh.shape[axis] for axis in axes]))
        if value % ways:
            below = value // ways * ways
            nearest = f"{below} or {below + ways}" if below else str(ways)
            raise InputError(
                f"{name} is {value}, which mesh {' x '.join(axes)} = {ways} does not divide; nearest: {nearest}."
            )


def path_name(path: tuple[Any, ...]) -> str:
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


def state_shardings(mesh: Mesh, state: dict[str, Any]) -> dict[str, Any]:
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

    def place_parameter(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_name(path)
        known[name] = (leaf.shape, parameter_spec(name, leaf.ndim))
        return NamedSharding(mesh, known[name][1])

    def place_statistic(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
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
    """Rows of a batch over `data` and `fsdp`; everything else whole."""
    return NamedSharding(mesh, P(BATCH))


def process_rows(mesh: Mesh, batch_size: int) -> slice:
    """The rows of the global batch that this process's devices hold."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    bounds = [index[0].indices(batch_size)[:2] for index in indices.values() if index is not None]
    return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))


def _mesh_is_trivial() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def constrain(array: jax.Array, dims: str) -> jax.Array:
    """Pins an activation's layout: `constrain(hidden_BLD, "BLD")`. Without a mesh it does nothing."""
    if _mesh_is_trivial():
        return array
    return jax.lax.with_sharding_constraint(array, P(*(ACTIVATIONS.get(dim) for dim in dims)))


def gather_weights(module: Any) -> Any:
    """A module whose weights are whole along `fsdp`: what a layer needs while it computes.

    Said explicitly because the compiler otherwise may move activations instead of weights.
    """
    if _mesh_is_trivial():
        return module

    def gather(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        # A module's leaves end in the variable's own value, which is no part of the parameter's name.
        name = re.sub(r"/(value|raw_value|0)$", "", path_name(path))
        spec = parameter_spec(name, leaf.ndim)
        return jax.lax.with_sharding_constraint(leaf, P(*(None if axis == "fsdp" else axis for axis in spec)))

    return jax.tree_util.tree_map_with_path(gather, module)
