"""What a field accepts, declared where the field is: `steps: int = setting(1000, at_least=1)`."""

import dataclasses
import sys
from collections.abc import Collection
from typing import ClassVar, Protocol, TypeVar, get_origin, get_type_hints

from lm.errors import InputError

_Value = TypeVar("_Value", bool, int, float, str)


class Section(Protocol):
    """A section of the config, or a task of a mixture: an instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]


def setting(
    default: _Value,
    *,
    at_least: float | None = None,
    within: tuple[float, float] | None = None,
    one_of: Collection[str] | None = None,
    before: _Value | None = None,
) -> _Value:
    """Returns a dataclass field with a default and the values that it accepts.

    Args:
        default: the value of the field where none is given.
        at_least: the smallest accepted number.
        within: the smallest and the largest accepted number.
        one_of: the accepted strings. `check` reads them each time, so a dict may gain keys later.
        before: what runs did before the field existed, where that is not the default. A `config.json` without the
            field means this value.
    """
    metadata = {"at_least": at_least, "within": within, "one_of": one_of, "before": before}
    return dataclasses.field(default=default, metadata=metadata)


def check(section: str, values: Section) -> None:
    """Checks the type and the bound of every field of a section.

    An int is accepted where a float is declared, and a float must be finite. A bool is accepted only where a bool is
    declared.

    Args:
        section: the name that error messages put before the field's; empty for the config itself.
        values: the section.

    Raises:
        InputError: naming the field, its value and what is accepted.
    """
    prefix = f"{section}." if section else ""
    types = get_type_hints(type(values))
    for name, expected in types.items():
        value = getattr(values, name)
        accepted = (int, float) if expected is float else get_origin(expected) or expected
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
            raise InputError(f"{prefix}{name} is {value!r}; accepted: a value of type {expected.__name__}.")
    for field in dataclasses.fields(values):
        name, value = prefix + field.name, getattr(values, field.name)
        if (minimum := field.metadata.get("at_least")) is not None:
            at_least(name, value, minimum)
        if (limits := field.metadata.get("within")) is not None:
            within(name, value, *limits)
        if (accepted := field.metadata.get("one_of")) is not None:
            one_of(name, value, accepted)
        if types[field.name] is float and not abs(value) <= sys.float_info.max:  # also an int that no float can hold
            raise InputError(f"{name} is {value}; it must be a finite number.")


def at_least(name: str, value: float, minimum: float) -> None:
    """Refuses a number below `minimum`, and NaN."""
    if not value >= minimum:
        raise InputError(f"{name} is {value}; it must be at least {minimum}.")


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuses a number outside [low, high], and NaN."""
    if not low <= value <= high:
        raise InputError(f"{name} is {value}; it must lie between {low} and {high}.")


def one_of(name: str, value: str, accepted: Collection[str]) -> None:
    """Refuses a string that is not among the accepted ones."""
    if value not in accepted:
        raise InputError(f"{name} is {value!r}; accepted: {', '.join(accepted)}.")
