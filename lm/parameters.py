"""Parameter trees: nested dicts whose leaves have paths such as `encoder/layers/mlp/up/kernel`."""

from collections.abc import Collection
from typing import TypeAlias, TypeVar, Union

import jax

Leaf = TypeVar("Leaf")
Tree: TypeAlias = dict[str, Union["Tree[Leaf]", Leaf]]
Params: TypeAlias = Tree[jax.Array]


def flatten(tree: Tree[Leaf]) -> dict[str, Leaf]:
    """Returns the leaves of a tree by path."""
    leaves: dict[str, Leaf] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= {f"{name}/{path}": leaf for path, leaf in flatten(value).items()}
        else:
            leaves[name] = value
    return leaves


def unflatten(leaves: dict[str, Leaf]) -> Tree[Leaf]:
    """Returns the tree whose leaves have these paths."""
    tree: Tree[Leaf] = {}
    below: dict[str, dict[str, Leaf]] = {}
    for path, leaf in leaves.items():
        name, separator, rest = path.partition("/")
        if separator:
            below.setdefault(name, {})[rest] = leaf
        else:
            tree[name] = leaf
    return tree | {name: unflatten(inner) for name, inner in below.items()}


def merge(first: Tree[Leaf], second: Tree[Leaf]) -> Tree[Leaf]:
    """Returns the tree with the leaves of both, which share no path."""
    return unflatten(flatten(first) | flatten(second)) if second else first


def abridge(paths: Collection[str], among: Collection[str]) -> list[str]:
    """Returns short names for some paths of a tree: `mlm` stands for all paths below `mlm/`.

    Args:
        paths: the paths to name.
        among: all paths of the tree.
    """
    names = []
    for path in sorted(paths):
        parts = path.split("/")
        prefixes = ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
        whole = (name for name in prefixes if all(p in paths for p in among if f"{p}/".startswith(f"{name}/")))
        names.append(next(whole, path))
    return list(dict.fromkeys(names))
