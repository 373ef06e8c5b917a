"""Several texts in every batch: each row of the run belongs to one member of `mixture.tasks`, by a quota.

A batch of a mixture is a pure function of (seed, step), as a batch of one text is: the number of a row says which
member it belongs to and how many rows that member had before. A run without `mixture.tasks` has one member, without a
name.
"""

from collections.abc import Sequence

import numpy as np

from lm.config import Config, MixtureConfig
from lm.config.paths import expand
from lm.data import manifest, prepare
from lm.data.batches import Arrays, Batches, Rows, numbers
from lm.data.pairs import one_line
from lm.data.store import Store
from lm.errors import InputError
from lm.tokenizers import tokenizer as tokenizers
from lm.tokenizers.tokenizer import Tokenizer

LONGEST_PERIOD = 1 << 14  # rows


# --- stores


def _paths(config: Config, folder: str) -> dict[str, str]:
    """Returns the path of each member's token store, in the order of their names."""
    tasks = config.mixture.tasks
    stores = {name: expand(tasks[name].store) for name in sorted(tasks)}
    return {name: store or f"{folder}/{name}" for name, store in stores.items()} or {"": folder}


def open_stores(config: Config, folder: str, tokenizer: Tokenizer | None = None) -> dict[str, Store]:
    """Opens the complete token stores of a run.

    Args:
        config: of the run.
        folder: the store of the run; of a mixture, the folder in which each member with a source has its store.
        tokenizer: the one that all must have been made with; by default each its own.

    Returns:
        The stores by member.

    Raises:
        InputError: a store is missing, or was made with another tokenizer.
    """
    return {name: Store.open(path, tokenizer) for name, path in _paths(config, folder).items()}


def open_to_evaluate(config: Config, folder: str, tokenizer: Tokenizer) -> dict[str, Store]:
    """Opens the stores of a run as `open_stores` does. What is missing, as for an imported model, is not to be made.

    Raises:
        InputError: as `open_stores`.
    """
    for path in _paths(config, folder).values():
        if manifest.read_manifest(path) is None:
            raise InputError(f"there is no token store at {path!r} to take held-out text from; give --input=FILE.")
    return open_stores(config, folder, tokenizer)


def prepare_stores(
    config: Config, folder: str, *, num_workers: int | None = None, runner: str = "local", progress: bool = True
) -> dict[str, Store]:
    """Makes the token stores of a run, or opens those that are already there.

    All members of a mixture have one tokenizer: `data.tokenizer`; else that of the existing stores among them; else
    one trained on equal shares of all texts.

    Args:
        config: of the run.
        folder: as for `open_stores`.
        num_workers, runner: as for `prepare.prepare`.
        progress: as for `prepare.prepare`.

    Returns:
        The stores by member.

    Raises:
        InputError: as `prepare.prepare` and `open_stores`.
    """
    if not config.mixture.tasks:
        return {"": prepare.prepare(config.data, folder, num_workers=num_workers, runner=runner, progress=progress)}
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
            runner=runner,
            progress=progress,
            tokenizer=tokenizer,
            share_tokenizer_with=[] if tokenizer else [other for other in sources.values() if other is not data],
        )
        tokenizer = stores[name].tokenizer
    return {name: stores[name] for name in paths}


def prefixed(config: Config, name: str, source: str) -> str:
    """Returns a source after the prefix of its member, as the model reads it. Without a mixture `name` is empty."""
    prefix = one_line(config.mixture.tasks[name].prefix) if name else ""
    return f"{prefix} {source}" if prefix else source


# --- rates


def size_factors(config: MixtureConfig, sizes: Sequence[int]) -> np.ndarray:
    """Returns the factor of each member's rate for its size e, min(e, K)^(1/T), float64 [N].

    Raffel et al. (2020), section 3.5.2; ones without a temperature.
    """
    if not config.temperature:
        return np.ones(len(sizes))
    return np.minimum(sizes, config.limit or np.inf) ** (1 / config.temperature)


def quota(rates: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns the rows of each member in a period, of at most 16,384 rows, that meets the rates best.

    Rates such as 1:2 or 0.35 are met exactly, others to about one row in 30,000.

    Args:
        rates: [N], above 0; what counts is their proportions.

    Returns:
        int64 [N], each 1 or more; or empty, if a member is too rare for any period.
    """
    share = np.asarray(rates, np.float64) / np.sum(rates)
    periods = np.arange(1, LONGEST_PERIOD + 1)
    rows = np.rint(share[:, None] * periods)
    error = np.abs(rows / periods - share[:, None]).max(axis=0)
    error[(rows.sum(axis=0) != periods) | (rows.min(axis=0) < 1)] = np.inf
    best = error.round(12).argmin()  # the first of those that differ by rounding alone
    return rows[:, best].astype(np.int64) if np.isfinite(error[best]) else np.zeros(0, np.int64)


def schedule(rows: np.ndarray) -> np.ndarray:
    """Returns the member of each row of a period. In every prefix each member is within one row of its share.

    The n-th row of a member may come no earlier than the row in which its share exceeds n, and no later than the one
    in which it reaches n + 1. Taking the member whose time runs out first meets all of these times, since together
    they ask for exactly one row at a time (Baruah et al., 1996: proportionate progress).

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
        ready = [member for member, count in enumerate(counts) if given[member] * period < (row + 1) * count]
        order[row] = first = min(ready, key=lambda member: -(-(given[member] + 1) * period // counts[member]))
        given[first] += 1
    return order


class Mixture:
    """Batches in which each row belongs to the member that the quota gives it."""

    def __init__(self, sources: Sequence[Batches], rows: Sequence[int], batch_size: int):
        """Schedules one period of the quota.

        Args:
            sources: the batches of each member.
            rows: how many rows each member has in a period, from `quota`.
            batch_size: rows of a batch.
        """
        self._sources = sources
        self._batch_size = batch_size
        self._rows = np.array(rows)
        self._members = schedule(self._rows)
        self._before = np.empty_like(self._members)  # rows of the same member, earlier in the period
        for member, count in enumerate(self._rows):
            self._before[self._members == member] = np.arange(count)

    def __call__(self, step: int, rows: Rows | None = None) -> Arrays:
        """As `Batches.__call__`."""
        period, at = np.divmod(numbers(step, self._batch_size, rows), len(self._members))
        row_members = self._members[at]
        of_member = period * self._rows[row_members] + self._before[at]
        batch: Arrays = {}
        for member in np.unique(row_members):
            here = np.flatnonzero(row_members == member)
            for name, values in self._sources[member].take(of_member[here]).items():
                if name not in batch:
                    batch[name] = np.empty((len(at), *values.shape[1:]), values.dtype)
                batch[name][here] = values
        return batch
