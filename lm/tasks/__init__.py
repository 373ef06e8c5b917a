"""The training tasks, one file each: the rows of a batch, the predictions, the loss and the baseline.

A new task needs a file here that calls `register`, its settings in `ObjectiveConfig`, and its head in lm.models.
"""

import importlib
import pkgutil

from lm.tasks.registry import create_objective, create_row_format, get, of_run, register, shapes
from lm.tasks.task import ArraySpec, Batch, Objective, Sums, Task, UntrainedVocabulary, Vocabulary

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "ArraySpec",
    "Batch",
    "Objective",
    "Sums",
    "Task",
    "UntrainedVocabulary",
    "Vocabulary",
    "create_objective",
    "create_row_format",
    "get",
    "of_run",
    "register",
    "shapes",
]
