"""The registry of tasks, and the parts of the task that a config names."""

from collections.abc import Sequence

import numpy as np

from lm.config import ARCHITECTURES, OF_PAIRS, Config, DataConfig, ObjectiveConfig
from lm.data.batches import RowFormat
from lm.errors import InputError
from lm.tasks.task import ArraySpec, Objective, Task, Vocabulary
from lm.tokenizers.special_ids import SpecialIds

_TASKS: dict[str, Task] = {}


def register(task: Task) -> None:
    """Adds a task, which `objective.name` may then name.

    Raises:
        ValueError: another task has this name, or `lm.config.ARCHITECTURES` gives it another architecture.
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
    """Returns the task of this name.

    Raises:
        InputError: no task has this name.
    """
    if name not in _TASKS:
        raise InputError(f"objective.name is {name!r}; accepted: {', '.join(_TASKS)}.")
    return _TASKS[name]


def of_run(config: Config) -> Task:
    """Returns the task of a run, or of the first member of a mixture: all members share arrays and objective."""
    member = next(iter(config.mixture.tasks), None)
    return get(config.task_objective(member).name if member else config.objective.name)


def create_row_format(
    data: DataConfig, objective: ObjectiveConfig, special: SpecialIds, prefix: Sequence[int] | np.ndarray = ()
) -> RowFormat:
    """Returns the row format of the task that `objective.name` names.

    Args:
        data: has the lengths of the rows and `begin_with_cls`.
        objective: has the settings of the task.
        special: the ids of the special tokens.
        prefix: token ids that come before every source of an encoder-decoder.

    Raises:
        InputError: the tokenizer lacks the special tokens of the task, or rows are too short for an example.
    """
    return get(objective.name).row_format(data, objective, special, np.asarray(prefix, np.int32))


def create_objective(config: Config, vocabulary: Vocabulary) -> Objective:
    """Returns the objective of a run's task. A tokenizer is a `Vocabulary`."""
    return of_run(config).objective(config, vocabulary)


def shapes(config: Config) -> dict[str, ArraySpec]:
    """Returns the shapes and dtypes of a run's batches, without reading any data."""
    return of_run(config).shapes(config)
