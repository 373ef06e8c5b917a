"""The members of a run, each with a task, a token store and a share of the rows.

A run with a mixture has a member for each of its tasks; any other run has one member.
"""

import dataclasses
import zlib
from collections.abc import Sequence

from lm.config import Config
from lm.data import mixture
from lm.data.batches import Batches, Source
from lm.data.flat import make_keys
from lm.data.pairs import one_line
from lm.data.store import Split, Store
from lm.errors import InputError
from lm.tasks import registry


@dataclasses.dataclass(frozen=True)
class Member:
    """A member of a run and its batches.

    Attributes:
        name: its key in `mixture.tasks`; empty where the run has no mixture.
        store: its token store.
        rows: how many rows it gets in each period; see `mixture.quota`.
        train: its training batches.
        heldout: its held-out batches; None where its store holds out nothing.
    """

    name: str
    store: Store
    rows: int
    train: Batches
    heldout: Batches | None


def make_members(config: Config, stores: dict[str, Store]) -> list[Member]:
    """Returns the members of a run, with the first epoch of each planned.

    Args:
        config: the config of the run.
        stores: member name -> token store, from `mixture.prepare_stores` or `mixture.open_stores`.

    Raises:
        InputError: a store is of the wrong kind for its task, the tasks cannot share a batch, or a member's rate is
            too small for the quota.
    """
    _check_objectives(config)
    train = [batches(config, name, store, store.train) for name, store in stores.items()]
    heldout = [
        batches(config, name, store, store.heldout) if store.heldout.num_tokens else None
        for name, store in stores.items()
    ]
    rows = [1]
    if config.mixture.tasks:
        factors = mixture.size_factors(config.mixture, [source.rows_per_epoch for source in train])
        rows = mixture.quota([config.mixture.tasks[name].rate for name in stores] * factors).tolist()
        if not rows:
            raise InputError(
                f"one of the tasks {', '.join(stores)} gets less than one row in {mixture.LONGEST_PERIOD:,}; raise its "
                "mixture.tasks.NAME.rate, or mixture.temperature."
            )
    return [Member(*fields) for fields in zip(stores, stores.values(), rows, train, heldout, strict=True)]


def _check_objectives(config: Config) -> None:
    """Refuses members with different objectives: a batch holds rows of all members, and one objective reads it."""
    names = {config.task_objective(name).name for name in config.mixture.tasks}
    if len({registry.get(name).objective for name in names}) > 1:
        raise InputError(
            f"mixture.tasks has the objectives {', '.join(sorted(names))}, which cannot share a batch; give all "
            "of them the same one, or train in separate runs."
        )


def batches(config: Config, name: str, store: Store, split: Split, prefix: str = "") -> Batches:
    """Returns the batches of one member.

    Args:
        config: the config of the run.
        name: the name of the member; empty where the run has no mixture.
        store: the member's token store.
        split: a split of that store.
        prefix: goes before each source where `name` is empty; a member has its own.

    Raises:
        InputError: the store is not of the kind that the member's task reads, or its row format refuses the config.
    """
    special = store.tokenizer.special
    objective = config.task_objective(name) if name else config.objective
    if store.kind != registry.get(objective.name).reads:
        asks = f"mixture.tasks.{name}.objective" if name else "objective.name"
        raise InputError(
            f"{asks} is {objective.name!r}, but the token store {store.path!r} holds {store.kind}; change one of them."
        )
    # The prefix ends without a space: the word mark at the beginning of a source stands for it.
    (before,) = store.tokenizer.encode([one_line(config.mixture.tasks[name].prefix if name else prefix)])
    if not name:
        row_format = registry.create_row_format(config.data, objective, special, before)
        return Batches(split, row_format, config.data, config.seed)
    seed = int(make_keys(config.seed, zlib.crc32(name.encode())))  # two members with one store get different orders
    try:
        return Batches(split, registry.create_row_format(config.data, objective, special, before), config.data, seed)
    except InputError as error:
        raise InputError(f"mixture.tasks.{name}: {error}") from None


def mixed(members: Sequence[Member], batch_size: int) -> Source:
    """Returns the training batches of a run: those of its only member, or a mixture of several."""
    if len(members) == 1:
        return members[0].train
    return mixture.Mixture([member.train for member in members], [member.rows for member in members], batch_size)
