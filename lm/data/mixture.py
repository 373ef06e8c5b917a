"""Several tasks in every batch: each row of the run belongs to one, by a quota that is known in advance.

A batch of several tasks is a pure function of (seed, step), as a batch of one is: the number of a row says which task
it belongs to and how many rows that task had before. A run without `mixture.tasks` is one task without a name.
"""

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from lm.config import Config, MixtureConfig
from lm.data import prepare
from lm.data import tokenizer as tokenizers
from lm.data.batches import Batches, Rows, Source, numbers
from lm.data.corruption import make_keys
from lm.data.layouts import Arrays
from lm.data.pairs import one_line
from lm.data.store import Split, Store
from lm.data.tokenizer import Tokenizer
from lm.errors import InputError

_LONGEST_PERIOD = 1 << 14


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a run, ready to be read.

    Attributes:
        name: as in `mixture.tasks`; empty where the run is no mixture.
        store: its text.
        rows: how many rows it has in a period of the quota.
        train: its batches.
        heldout: its held-out batches; None where nothing is held out.
    """

    name: str
    store: Store
    rows: int
    train: Batches
    heldout: Batches | None


# --- stores


def _paths(config: Config, folder: str) -> dict[str, str]:
    """Where the token store of each task is, in the order of their names."""
    tasks = config.mixture.tasks
    return {name: tasks[name].store or f"{folder}/{name}" for name in sorted(tasks)} or {"": folder}


def open_stores(config: Config, folder: str, tokenizer: Tokenizer | None = None) -> dict[str, Store]:
    """Opens the complete token stores of a run.

    Args:
        config: of the run.
        folder: the store of the run; of a mixture, the folder in which each task with a source has its store.
        tokenizer: the one that all must have been made with; by default each its own.

    Returns:
        The stores by task.

    Raises:
        InputError: a store is missing, or was made with another tokenizer.
    """
    return {name: Store.open(path, tokenizer) for name, path in _paths(config, folder).items()}


def prepare_stores(
    config: Config, folder: str, *, num_workers: int | None = None, progress: bool = True
) -> dict[str, Store]:
    """Makes the token stores of a run, or opens those that are already there.

    All tasks of a mixture have one tokenizer: `data.tokenizer`; else that of the tasks' existing stores; else one
    trained on equal shares of all texts.

    Args:
        config: of the run.
        folder: as for `open_stores`.
        num_workers: as for `prepare.prepare`.
        progress: as for `prepare.prepare`.

    Returns:
        The stores by task.

    Raises:
        InputError: as `prepare.prepare` and `open_stores`.
    """
    if not config.mixture.tasks:
        return {"": prepare.prepare(config.data, folder, num_workers=num_workers, progress=progress)}
    paths = _paths(config, folder)
    tokenizer = tokenizers.load_tokenizer(config.data.tokenizer) if config.data.tokenizer else None
    stores: dict[str, Store] = {}
    for name, path in paths.items():
        if config.mixture.tasks[name].store:
            stores[name] = Store.open(path, tokenizer)
            tokenizer = stores[name].tokenizer
    sources = {name: config.task_data(name) for name in paths if name not in stores}
    for name, data in sources.items():
        stores[name] = prepare.prepare(
            data,
            paths[name],
            num_workers=num_workers,
            progress=progress,
            tokenizer=tokenizer,
            share_tokenizer_with=[] if tokenizer else [other for other in sources.values() if other is not data],
        )
        tokenizer = stores[name].tokenizer
    return {name: stores[name] for name in paths}


# --- tasks


def make_tasks(config: Config, stores: dict[str, Store]) -> list[Task]:
    """Plans the first epoch of each task.

    Args:
        config: of the run.
        stores: by task, from `prepare_stores` or `open_stores`.

    Raises:
        InputError: a store does not hold what its task needs, or a task is too rare for the quota.
    """
    train = [batches(config, name, store, store.train) for name, store in stores.items()]
    heldout = [
        batches(config, name, store, store.heldout) if store.heldout.num_tokens else None
        for name, store in stores.items()
    ]
    rows = [1]
    if config.mixture.tasks:
        factors = size_factors(config.mixture, [source.rows_per_epoch for source in train])
        rows = quota([config.mixture.tasks[name].rate for name in stores] * factors).tolist()
        if not rows:
            raise InputError(
                f"one of the tasks {', '.join(stores)} gets less than one row in {_LONGEST_PERIOD:,}; raise its "
                "mixture.tasks.NAME.rate, or mixture.temperature."
            )
    return [Task(*fields) for fields in zip(stores, stores.values(), rows, train, heldout, strict=True)]


def batches(config: Config, name: str, store: Store, split: Split) -> Batches:
    """The batches of one task.

    Args:
        config: of the run.
        name: of the task; empty where the run is no mixture.
        store: of the task.
        split: of the store.

    Raises:
        InputError: as `make_tasks`.
    """
    special = store.tokenizer.special
    if not name:
        return Batches(split, special, config.data, config.objective, config.seed)
    objective, task = config.task_objective(name), config.mixture.tasks[name]
    if (store.kind == "pairs") != (objective.name == "pairs"):
        raise InputError(
            f"mixture.tasks.{name}.objective is {objective.name!r}, but the token store {store.path!r} holds "
            f"{store.kind}; change one of them."
        )
    # The space between prefix and source is the word mark with which a source begins.
    (prefix,) = store.tokenizer.encode([one_line(task.prefix)])
    seed = int(make_keys(config.seed, zlib.crc32(name.encode())))  # two tasks of one store are not in step
    try:
        return Batches(split, special, config.data, objective, seed, prefix)
    except InputError as error:
        raise InputError(f"mixture.tasks.{name}: {error}") from None


def prefixed(config: Config, name: str, source: str) -> str:
    """A source as the model is shown it, after the prefix of its task; `name` is empty where there is no mixture."""
    prefix = one_line(config.mixture.tasks[name].prefix) if name else ""
    return f"{prefix} {source}" if prefix else source


# --- rates


def size_factors(config: MixtureConfig, sizes: Sequence[int]) -> np.ndarray:
    """By what each task's rate is multiplied for its size e: min(e, K)^(1/T), float64 [N].

    Raffel et al. (2020), section 3.5.2; ones without a temperature.
    """
    if not config.temperature:
        return np.ones(len(sizes))
    return np.minimum(sizes, config.limit or np.inf) ** (1 / config.temperature)


def quota(rates: Sequence[float] | np.ndarray) -> np.ndarray:
    """How many rows each task has in a period: the period of at most 16,384 rows that meets the rates best.

    Rates such as 1:2 or 0.35 are met exactly, others to about one row in 30,000.

    Args:
        rates: [N], above 0; what counts is their proportions.

    Returns:
        int64 [N], each 1 or more; or empty, if a task is too rare for any period.
    """
    share = np.asarray(rates, np.float64) / np.sum(rates)
    periods = np.arange(1, _LONGEST_PERIOD + 1)
    rows = np.rint(share[:, None] * periods)
    error = np.abs(rows / periods - share[:, None]).max(axis=0)
    error[(rows.sum(axis=0) != periods) | (rows.min(axis=0) < 1)] = np.inf
    best = error.round(12).argmin()  # the first of those that differ by rounding alone
    return rows[:, best].astype(np.int64) if np.isfinite(error[best]) else np.zeros(0, np.int64)


def schedule(rows: np.ndarray) -> np.ndarray:
    """The task of each row of a period, any beginning of which has each task within one row of its share.

    The n-th row of a task may come no earlier than the row in which its share exceeds n, and no later than the one in
    which it reaches n + 1. Taking the task whose time runs out first meets all of these times, since together they
    ask for exactly one row at a time (Baruah et al., 1996: proportionate progress).

    Args:
        rows: int64 [N], from `quota`.

    Returns:
        int64 [sum(rows)].
    """
    period = int(rows.sum())
    counts = rows.tolist()
    given = [0] * len(counts)
    order = np.empty(period, np.int64)
    for row in range(period):
        ready = [task for task, count in enumerate(counts) if given[task] * period < (row + 1) * count]
        order[row] = first = min(ready, key=lambda task: -(-(given[task] + 1) * period // counts[task]))
        given[first] += 1
    return order


class Mixture:
    """Batches in which each row belongs to the task that the quota gives it."""

    def __init__(self, members: Sequence[Task], batch_size: int):
        self._sources = [task.train for task in members]
        self._batch_size = batch_size
        self._rows = np.array([task.rows for task in members])
        self._tasks = schedule(self._rows)
        self._before = np.empty_like(self._tasks)  # rows of the same task, earlier in the period
        for task, count in enumerate(self._rows):
            self._before[self._tasks == task] = np.arange(count)

    def __call__(self, step: int, rows: Rows | None = None) -> Arrays:
        """As `Batches.__call__`."""
        period, at = np.divmod(numbers(step, self._batch_size, rows), len(self._tasks))
        row_tasks = self._tasks[at]
        of_task = period * self._rows[row_tasks] + self._before[at]
        batch: Arrays = {}
        for task in np.unique(row_tasks):
            here = np.flatnonzero(row_tasks == task)
            for name, values in self._sources[task].take(of_task[here]).items():
                if name not in batch:
                    batch[name] = np.empty((len(at), *values.shape[1:]), values.dtype)
                batch[name][here] = values
        return batch


def mixed(members: Sequence[Task], batch_size: int) -> Source:
    """The training batches of a run: those of its task, or a mixture of several."""
    return members[0].train if len(members) == 1 else Mixture(members, batch_size)
