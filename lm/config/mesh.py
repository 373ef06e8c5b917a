"""The section `mesh`: how many devices lie along each axis."""

import dataclasses

from lm.config.bounds import check
from lm.errors import InputError


@dataclasses.dataclass(kw_only=True)
class MeshConfig:
    """Devices along each mesh axis. One axis may be -1: it takes the devices that the others leave.

    Attributes:
        data: replicas of the model, each with its share of the batch.
        fsdp: both batch and parameters are split over this axis.
        context: rows are split along their length over this axis, for long inputs.
        tensor: heads, feed-forward and vocabulary are split over this axis.
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def validate(self) -> None:
        """Checks every axis, and that at most one is -1.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("mesh", self)
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise InputError(f"mesh.{name} is {size}; accepted: a positive number of devices, or -1 for the rest.")
        if list(sizes.values()).count(-1) > 1:
            raise InputError(f"mesh is {sizes}; at most one axis may be -1.")
