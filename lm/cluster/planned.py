"""Reads a plan of `launch/plan.py --serve --output=FILE`: what a replica needs, and what it can do."""

import dataclasses
import json

from lm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Planned:
    """What launchers and the simulation of a fleet read of a plan; see `lm.plan.serving.Serving`.

    Attributes:
        tokens_per_second: None if the plan does not fit.
    """

    topology: str
    fits: bool
    batch: int
    length: int
    max_length: int
    parameter_bytes: float
    temporary_bytes: float
    tokens_per_second: float | None


def read(path: str) -> Planned:
    """Reads the plan that `--plan` names.

    Raises:
        InputError: there is no such file, or it holds something else, or several plans.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        if isinstance(found, list):
            raise InputError(
                f"--plan is {path!r}, which has {len(found)} plans; give a file with one, of launch/plan.py --serve "
                "with one --topology and one --batch."
            )
        speed = found["predicted_tokens_per_second"]
        return Planned(
            topology=str(found["topology"]),
            fits=bool(found["fits"]),
            batch=int(found["batch"]),
            length=int(found["length"]),
            max_length=int(found["max_length"]),
            parameter_bytes=float(found["parameter_bytes"]),
            temporary_bytes=float(found["temporary_bytes"]),
            tokens_per_second=None if speed is None else float(speed),
        )
    except OSError as error:
        raise InputError(f"--plan is {path!r}: {error.strerror}; give a file of launch/plan.py --serve.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--plan is {path!r}, which is no plan of launch/plan.py --serve; give one.") from None
