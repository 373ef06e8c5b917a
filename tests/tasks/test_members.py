"""Members of a run get the rows of their quota, and their batches are a function of (seed, step)."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from lm.config import Config, DataConfig, MixtureConfig, ModelConfig, TaskConfig, changed_fields
from lm.data import mixture, prepare
from lm.data.batches import Source, loader, padding_fraction
from lm.data.store import Store
from lm.errors import InputError
from lm.tasks.members import Member, make_members, mixed
from tests.data.conftest import make_mixture

ARRAYS = ("tokens", "segments", "positions", "targets", "target_segments", "target_positions")


def members_of(config: Config) -> list[Member]:
    return make_members(config, mixture.prepare_stores(config, "unused", num_workers=1, progress=False))


def source_of(config: Config) -> Source:
    return mixed(members_of(config), config.data.batch_size)


def assert_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def test_sizes_are_rows_and_multiply_the_rates(mixture_config: Config) -> None:
    by_size = MixtureConfig(tasks=mixture_config.mixture.tasks, temperature=1.0, limit=400)
    members = members_of(dataclasses.replace(mixture_config, mixture=by_size))
    sizes = [member.train.rows_per_epoch for member in members]
    assert min(sizes) < 400 < max(sizes)
    weights = np.array([mixture_config.mixture.tasks[member.name].rate for member in members]) * np.minimum(sizes, 400)
    rows = np.array([member.rows for member in members])
    np.testing.assert_allclose(rows / rows.sum(), weights / weights.sum(), atol=1 / 30_000)


def test_each_task_reads_on_where_it_stopped(mixture_config: Config) -> None:
    """The rows of a member, taken together, are the rows that it would show alone, in order."""
    members, steps = members_of(mixture_config), 120
    source = mixed(members, mixture_config.data.batch_size)
    batches = [source(step, None) for step in range(steps)]
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in ARRAYS}
    order = np.resize(mixture.schedule(np.array([member.rows for member in members])), len(whole["tokens"]))
    for index, member in enumerate(members):
        here = order == index
        assert here.sum() == len(order) * mixture_config.mixture.tasks[member.name].rate
        assert_equal({name: whole[name][here] for name in ARRAYS}, member.train.take(np.arange(here.sum())))
    assert here.sum() > member.train.rows_per_epoch  # over the end of an epoch


def test_a_batch_depends_on_seed_and_step_alone(mixture_config: Config) -> None:
    source = source_of(mixture_config)
    later = source(1_000_003, None)
    assert_equal(source_of(mixture_config)(1_000_003, None), later)
    other = source_of(dataclasses.replace(mixture_config, seed=1))(1_000_003, None)
    assert (other["tokens"] != later["tokens"]).any()


def test_the_order_in_which_tasks_are_written_does_not_matter(mixture_config: Config) -> None:
    turned = dict(reversed(mixture_config.mixture.tasks.items()))
    other = dataclasses.replace(mixture_config, mixture=MixtureConfig(tasks=turned))
    assert_equal(source_of(mixture_config)(7, None), source_of(other)(7, None))
    assert changed_fields(mixture_config, other) == []


@pytest.mark.parametrize("processes", [2, 16])
def test_any_number_of_processes_sees_the_same_batch(mixture_config: Config, processes: int) -> None:
    source, each = source_of(mixture_config), 16 // processes
    for step in (0, 5, 1000):
        parts = [source(step, slice(first, first + each)) for first in range(0, 16, each)]
        assert_equal(source(step, None), {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS})


def test_a_resumed_loader_goes_on(mixture_config: Config) -> None:
    source = source_of(mixture_config)
    unbroken = list(itertools.islice(loader(source), 6))
    for expected, batch in zip(unbroken[4:], loader(source_of(mixture_config), 4), strict=False):
        assert_equal(batch, expected)


def test_two_tasks_of_one_text_are_not_in_step(made: Store) -> None:
    members = members_of(make_mixture({name: TaskConfig(store=made.path) for name in ("one", "two")}))
    one, two = (member.train(0) for member in members)
    assert (one["tokens"] != two["tokens"]).any()


def test_objectives_meet_in_one_batch_of_little_padding(mixture_config: Config, made: Store) -> None:
    members, special = {member.name: member for member in members_of(mixture_config)}, made.tokenizer.special
    batch = source_of(mixture_config)(0, None)
    assert set(batch) == set(ARRAYS)
    assert batch["tokens"].shape == (16, 48)
    assert batch["targets"].shape == (16, 24)
    assert (members["spans"].train(0)["targets"] == special.first_sentinel).any()
    assert (members["infill"].train(0)["tokens"] == special.mask).any()
    alone = [member.rows * padding_fraction(member.train(0)) for member in members.values()]
    assert padding_fraction(batch) < sum(alone) / 10 + 0.1
    for side in ("", "target_"):  # equal numbers on both sides: no example of one member reads another's source
        assert (batch[f"{side}segments"].max(axis=1) == batch["segments"].max(axis=1)).all()


def test_a_prefix_stands_before_every_source_as_if_it_were_written_there(mixture_config: Config, made: Store) -> None:
    (nights,) = (member for member in members_of(mixture_config) if member.name == "nights")
    batch, seen = nights.train(0), 0
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        for segment in range(1, segments.max() + 1):
            ids = tokens[segments == segment]
            text = made.tokenizer.decode(ids)
            assert text.startswith("count the days: Night ")
            np.testing.assert_array_equal(ids[:-1], made.tokenizer.encode([text])[0])
            assert ids[-1] == made.tokenizer.special.sep
            assert text == mixture.prefixed(mixture_config, "nights", text.removeprefix("count the days: "))
            seen += 1
    assert seen >= 16
    assert not any("count" in made.tokenizer.decode(row) for row in batch["targets"])


@pytest.mark.parametrize("objective", ["span_corruption", "infilling"])
def test_a_prefix_of_corrupted_text_leaves_room_for_it(made: Store, objective: str) -> None:
    task = TaskConfig(store=made.path, objective=objective, prefix="fill:")
    (found,) = members_of(make_mixture({"fill": task}, data={"begin_with_cls": True}))
    batch = found.train(3)
    (prefix,) = made.tokenizer.encode(["fill:"])
    begins = (batch["segments"] > 0) & (batch["positions"] == 0)
    for row, column in np.argwhere(begins):
        found_ids = batch["tokens"][row, column : column + len(prefix) + 1]
        assert found_ids.tolist() == [made.tokenizer.special.cls, *prefix]


def test_an_encoder_mixes_its_texts_too(made: Store) -> None:
    tasks = {name: TaskConfig(store=made.path, rate=rate) for name, rate in (("en", 3), ("zh", 1))}
    data = DataConfig(vocab_size=600, seq_length=64, batch_size=8)
    config = Config(data=data, model=ModelConfig(vocab_size=640), mixture=MixtureConfig(tasks=tasks))
    source, (en, zh) = source_of(config), members_of(config)
    order = np.resize(mixture.schedule(np.array([3, 1])), 8)
    expected = {name: np.empty_like(values) for name, values in source(0, None).items()}
    assert "nsp_labels" in expected
    for index, member in enumerate((en, zh)):
        for name, values in member.train.take(np.arange((order == index).sum())).items():
            expected[name][order == index] = values
    assert_equal(source(0, None), expected)


def test_a_store_with_another_tokenizer_is_refused(mixture_config: Config, pairs_file: Path, tmp_path: Path) -> None:
    data = DataConfig(source="tsv", path=str(pairs_file), vocab_size=500)
    other = prepare.prepare(data, str(tmp_path / "other"), num_workers=1, progress=False)
    tasks = {**mixture_config.mixture.tasks, "other": TaskConfig(store=other.path, objective="pairs")}
    with pytest.raises(InputError, match="tokenizer and store do not belong together"):
        members_of(make_mixture(tasks))


def test_what_a_store_cannot_give_is_refused(made: Store, pairs: Store, tmp_path: Path) -> None:
    for tasks, message in [
        ({"gone": TaskConfig(store=str(tmp_path))}, "no complete token store"),
        ({"nights": TaskConfig(store=pairs.path)}, "nights.objective is 'span_corruption', but the token store"),
        ({"text": TaskConfig(store=made.path, objective="pairs")}, "holds documents; change one of them"),
        ({"long": TaskConfig(store=made.path, prefix="time " * 60)}, "mixture.tasks.long: data.seq_length=48"),
        (
            {"long": TaskConfig(store=pairs.path, objective="pairs", prefix="time " * 60)},
            r"mixture.tasks.long: data.seq_length=48 holds no source after a prefix of \d+ tokens; raise it",
        ),
        (
            {"rare": TaskConfig(store=made.path, rate=1e-6), "text": TaskConfig(store=made.path)},
            "one of the tasks rare, text gets less than one row in 16,384",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            members_of(make_mixture(tasks))
