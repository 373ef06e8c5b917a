"""The section `mixture`: several tasks in one run."""

import dataclasses
import re

from lm.config.bounds import check, one_of, setting
from lm.config.objective import ARCHITECTURES
from lm.errors import InputError

_TASK_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(kw_only=True)
class TaskConfig:
    """One task of a mixture: a text, what is asked about it, and how often.

    Attributes:
        source: as `data.source`.
        path: as `data.path`.
        field: as `data.field`.
        target_field: as `data.target_field`.
        languages: as `data.languages`.
        store: an existing token store to read. `source` must then be empty.
        objective: as `objective.name`; empty means that of the run. All tasks share the other settings of `objective`.
        prefix: a text that is put before every source of an encoder-decoder, followed by a space, such as
            `translate English to German:` (Raffel et al., 2020, section 2.4).
        rate: how many rows the task gets, relative to the others.
    """

    source: str = ""
    path: str = ""
    field: str = "text"
    target_field: str = ""
    languages: str = ""
    store: str = ""
    objective: str = ""
    prefix: str = ""
    rate: float = 1.0


@dataclasses.dataclass(kw_only=True)
class MixtureConfig:
    """Several tasks in one run, mixed in every batch. Without tasks, `data` and `objective` are the only one.

    Attributes:
        tasks: the tasks by name. A flag changes a task of the config file: `--config.mixture.tasks.NAME.rate=2`.
        temperature: T. Above 0, a task's rate is multiplied by min(e, K)^(1/T), where e is the number of rows that
            its text fills (Raffel et al., 2020, section 3.5.2, with rows for examples). At 1 all texts are seen
            equally often; the larger T, the less their sizes count. 0: only the rates count.
        limit: K, the largest number of rows that `temperature` counts; 0 means no limit.
    """

    tasks: dict[str, TaskConfig] = dataclasses.field(default_factory=dict)
    temperature: float = setting(0.0, at_least=0.0)
    limit: int = setting(0, at_least=0)

    def validate(self) -> None:
        """Checks every field, every task alone, and the fields that must agree.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("mixture", self)
        if self.limit and not self.temperature:
            raise InputError(
                f"mixture.limit is {self.limit}, but without a mixture.temperature no size counts; set the temperature "
                "above 0, or leave the limit 0."
            )
        if not self.tasks and self.temperature:
            raise InputError(
                f"mixture.temperature is {self.temperature}, but mixture.tasks is empty; give tasks in the config file."
            )
        for name, task in self.tasks.items():
            _check_task(name, task)


def _check_task(name: object, task: object) -> None:
    # `config_flags` reads a task as an attribute of the dict, so a method of dict may not be a name.
    if not isinstance(name, str) or not _TASK_NAME.fullmatch(name) or hasattr(dict, name):
        methods = ", ".join(method for method in dir(dict) if not method.startswith("_"))
        raise InputError(
            f"mixture.tasks has the name {name!r}; accepted: letters, digits and _, but none of {methods}."
        )
    where = f"mixture.tasks.{name}"
    if not isinstance(task, TaskConfig):
        raise InputError(f"{where} is {task!r}; accepted: a value of type TaskConfig.")
    check(where, task)
    if bool(task.store) == bool(task.source):
        raise InputError(
            f"{where} has source={task.source!r} and store={task.store!r}; give one of them: "
            "a source to prepare, or an existing store."
        )
    if task.objective:
        one_of(f"{where}.objective", task.objective, ARCHITECTURES)
    if task.rate <= 0:
        raise InputError(
            f"{where}.rate is {task.rate}; it must be above 0. To leave the task out, remove it from the config file."
        )
