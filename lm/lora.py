"""Low-rank adapters (LoRA; Hu et al., 2022): a kernel W becomes W + (alpha / r) A B, and A and B alone are trained.

A and B stand beside their kernel in the tree of parameters, as `lora_a` and `lora_b`. A kernel [L, inputs, outputs] of
L stacked layers has A [L, inputs, r] and B [L, r, outputs]. The inputs are two axes in the kernel of the attention's
output, and the outputs are two axes in those of queries, keys and values.
"""

import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lm import parameters
from lm.config import OptimConfig
from lm.errors import InputError
from lm.parameters import Params

Abstract = jax.ShapeDtypeStruct

A, B = "lora_a", "lora_b"
OWNER = "lora_owner"  # which adapter each column of A belongs to, where a tree holds several
HEADS = "adapter_heads"  # the subtree of the heads of several adapters
_KERNEL = "kernel"
_MAY_HAVE = r"(encoder|decoder)/layers/.*/kernel"
_TWO_INPUTS = "attention/out/kernel"  # the end of the path of a kernel whose inputs are heads and their width


def is_adapter(path: str) -> bool:
    """Returns whether a path is that of an A, of a B or of the owners of several."""
    return path.endswith((f"/{A}", f"/{B}", f"/{OWNER}"))


def is_base(path: str) -> bool:
    """Returns whether a parameter is frozen beside adapters: the stacks, and the vocabulary projection.

    The others are the heads, which a task may have to train from random weights.
    """
    first, *rest = path.split("/")
    return not is_adapter(path) and (first in ("encoder", "decoder") or "logits" in (first, *rest))


def scale(config: OptimConfig) -> float:
    """Returns the factor of A B, alpha / r."""
    return config.lora_alpha / config.lora_rank


def targets(shapes: Mapping[str, Abstract], patterns: str) -> list[str]:
    """Returns the paths of the kernels that get an adapter, sorted.

    Args:
        shapes: the parameters of a model, by path.
        patterns: the value of `optim.lora_targets`.

    Raises:
        InputError: an expression matches no parameter, or one that can have no adapter.
    """
    found: set[str] = set()
    for pattern in (each.strip() for each in patterns.split(",")):
        matched = {path for path in shapes if re.fullmatch(pattern, path)}
        wrong = sorted(path for path in matched if not re.fullmatch(_MAY_HAVE, path))
        if wrong or not matched:
            kernels = sorted(path for path in shapes if re.fullmatch(_MAY_HAVE, path))
            raise InputError(
                f"optim.lora_targets has {pattern!r}, which matches {wrong[0] if wrong else 'no parameter'}; accepted: "
                "regular expressions of whole paths of kernels in layers (an embedding may also be the vocabulary "
                f"projection, and heads are trained whole): {', '.join(kernels)}."
            )
        found |= matched
    return sorted(found)


def initial(key: jax.Array, shapes: Mapping[str, Abstract], config: OptimConfig) -> dict[str, jax.Array]:
    """Returns the adapters of step 0, by path: A is normal with standard deviation inputs^-1/2, and B is zero.

    So the model of step 0 is the base.

    Raises:
        InputError: as `targets`.
    """
    found: dict[str, jax.Array] = {}
    for number, path in enumerate(targets(shapes, config.lora_targets)):
        layers, *sizes = shapes[path].shape
        count = 2 if path.endswith(_TWO_INPUTS) else 1
        inputs, outputs = sizes[:count], sizes[count:]
        drawn = jax.random.normal(jax.random.fold_in(key, number), (layers, *inputs, config.lora_rank))
        found[_beside(path, A)] = math.prod(inputs) ** -0.5 * drawn
        found[_beside(path, B)] = jnp.zeros((layers, config.lora_rank, *outputs))
    return found


def _beside(kernel: str, name: str) -> str:
    """Returns the path of the A or B of a kernel."""
    return f"{kernel.removesuffix(_KERNEL)}{name}"


def has_several(params: Params) -> bool:
    """Returns whether a tree comes from `side_by_side`."""
    return any(path.endswith(f"/{OWNER}") for path in parameters.flatten(params))


def split(leaves: Mapping[str, parameters.Leaf]) -> tuple[dict[str, parameters.Leaf], dict[str, parameters.Leaf]]:
    """Splits parameters by path into those of the model, and the adapters."""
    own = {path: leaf for path, leaf in leaves.items() if is_adapter(path)}
    return {path: leaf for path, leaf in leaves.items() if path not in own}, own


def beside(kernels: Mapping[str, Abstract], adapters: Mapping[str, Abstract]) -> dict[str, Abstract]:
    """Returns the adapters of some kernels, by path, whole on each device that holds a part of the kernel."""
    found: dict[str, Abstract] = {}
    for path, leaf in adapters.items():
        if kernel := kernels.get(f"{path.rpartition('/')[0]}/{_KERNEL}"):
            mesh = getattr(kernel.sharding, "mesh", None)
            place = kernel.sharding if mesh is None else NamedSharding(mesh, PartitionSpec())
            found[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    return found


def add(factor: float, kernel: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns W + factor A B, computed in float32, in the shape and dtype of W."""
    layers, rank = len(kernel), b.shape[1]
    product = jnp.matmul(a.reshape(layers, -1, rank), b.reshape(layers, rank, -1), precision=jax.lax.Precision.HIGHEST)
    return (kernel + factor * product.reshape(kernel.shape)).astype(kernel.dtype)


def merged(leaves: Mapping[str, jax.Array], factor: float) -> dict[str, jax.Array]:
    """Returns the parameters of the model by path, where each kernel contains its adapter."""
    leaves, adapters = split(leaves)
    for path in [path for path in leaves if _beside(path, A) in adapters]:
        leaves[path] = add(factor, leaves[path], adapters[_beside(path, A)], adapters[_beside(path, B)])
    return leaves


def merge_placed(leaves: Mapping[str, jax.Array], factor: float) -> dict[str, jax.Array]:
    """Computes `merged` for arrays that exist. A sum is placed as its kernel was."""
    leaves, adapters = split(leaves)
    kernels = {path: leaf for path, leaf in leaves.items() if _beside(path, A) in adapters}
    place = {path: leaf.sharding for path, leaf in kernels.items()}
    return leaves | jax.jit(merged, out_shardings=place)({**kernels, **adapters}, factor)


def side_by_side(
    base: Params, adapters: Sequence[Mapping[str, jax.Array]], factors: Sequence[float]
) -> dict[str, jax.Array]:
    """Returns the parameters of a base, by path, with several adapters for `lm.models.Several`.

    The A of all adapters are one A with the columns of all, and so are the rows of B, which contain alpha / r. OWNER,
    int32 [L, columns], says which adapter a column belongs to; the first adapter is 1. So their ranks may differ. Heads
    that an adapter trains are stacked below HEADS: first the base's, then each adapter's.

    Args:
        base: the parameters of the base.
        adapters: what each run has trained, by path.
        factors: alpha / r of each.
    """
    leaves = parameters.flatten(base)
    found: dict[str, jax.Array] = {}
    for kernel in [path for path in leaves if any(_beside(path, A) in trained for trained in adapters)]:
        a, b, owners = [], [], []
        for number, (trained, factor) in enumerate(zip(adapters, factors, strict=True), 1):
            if _beside(kernel, A) in trained:
                a.append(trained[_beside(kernel, A)])
                b.append(factor * trained[_beside(kernel, B)])
                owners.append(jnp.full(b[-1].shape[:2], number, jnp.int32))
        found[_beside(kernel, A)] = jnp.concatenate(a, axis=-1)
        found[_beside(kernel, B)] = jnp.concatenate(b, axis=1)
        found[_beside(kernel, OWNER)] = jnp.concatenate(owners, axis=1)
    heads = {path.rpartition("/")[0] for trained in adapters for path in trained if not is_adapter(path)}
    for path in [path for path in leaves if path.rpartition("/")[0] in heads]:
        found[f"{HEADS}/{path}"] = jnp.stack([leaves[path], *(trained.get(path, leaves[path]) for trained in adapters)])
    return leaves | found
