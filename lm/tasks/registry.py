"""Finds the task that a config names. Each file of lm.tasks registers its own."""

from collections.abc import Sequence

import numpy as np

from lm.config import ARCHITECTURES, OF_PAIRS, Config, DataConfig, ObjectiveConfig
from lm.data.batches import RowFormat
from lm.data.special_ids import SpecialIds
from lm.errors import InputError
from lm.tasks.task import ArraySpec, Objective, Task, Vocabulary

_TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Lets `objective.name` name a task.

    Raises:
        ValueError: another task has this name, or the config gives it another architecture.
    """
    if task.name in _TASKS:
        raise ValueError(f"a task named {task.name!r} is registered already; choose another name.")
    if ARCHITECTURES.setdefault(task.name, task.architecture) != task.architecture:
        raise ValueError(
            f"the task {task.name!r} is registered for {task.architecture!r}, but lm.config.ARCHITECTURES gives it "
            f"{ARCHITECTURES[task.name]!r}; change one of them."
        )
    if task.reads == "pairs":
        OF_PAIRS.add(task.name)
    _TASKS[task.name] = task


def get(name: str) -> Task:
    """The task that `objective.name` calls by this name.

    Raises:
        InputError: no task has it.
    """
    if name not in _TASKS:
        raise InputError(f"objective.name is {name!r}; accepted: {', '.join(_TASKS)}.")
    return _TASKS[name]


def of_run(config: Config) -> Task:
    """The task of a run, or the first of its mixture: all of them have the same arrays and the same objective."""
    member = next(iter(config.mixture.tasks), None)
    return get(config.task_objective(member).name if member else config.objective.name)


def create_row_format(
    data: DataConfig, objective: ObjectiveConfig, special: SpecialIds, prefix: Sequence[int] | np.ndarray = ()
) -> RowFormat:
    """The host's half of the task that `objective.name` names.

    Args:
        data: lengths of the rows, and what begins an example.
        objective: what the rows are for.
        special: ids with a meaning of their own.
        prefix: ids put before every source that an encoder-decoder reads.

    Raises:
        InputError: the tokenizer lacks the special tokens of the task, or rows are too short for an example.
    """
    return get(objective.name).row_format(data, objective, special, np.asarray(prefix, np.int32))


def create_objective(config: Config, vocabulary: Vocabulary) -> Objective:
    """The device's half of the task of a run; a tokenizer is a vocabulary."""
    return of_run(config).objective(config, vocabulary)


def shapes(config: Config) -> dict[str, ArraySpec]:
    """The arrays of a run's batches, declared: nothing is read or built to learn them."""
    return of_run(config).shapes(config)
