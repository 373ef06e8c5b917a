"""A mixture: its rates to the row, its batches as reproducible as those of one task, its texts with one tokenizer."""

import dataclasses
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.config import (
    Config,
    DataConfig,
    MixtureConfig,
    ModelConfig,
    ObjectiveConfig,
    TaskConfig,
    changed_fields,
    from_dict,
    to_json,
)
from lm.data import mixture, prepare
from lm.data.batches import Source, loader, padding_fraction
from lm.data.special_ids import FIRST_ORDINARY_ID
from lm.data.store import Store
from lm.errors import InputError

ROOT = Path(__file__).parent.parent.parent
ARRAYS = ("tokens", "segments", "positions", "targets", "target_segments", "target_positions")
RATES = [[1], [1, 1, 1], [0.5, 0.3, 0.2], [1, 2], [0.35, 0.65], [1, 97], [3, 1, 4, 1, 5, 9, 2, 6]]


def make_config(tasks: dict[str, TaskConfig], **sections) -> Config:
    data = {"vocab_size": 600, "seq_length": 48, "target_length": 24, "batch_size": 16, **sections.pop("data", {})}
    return Config(
        data=DataConfig(**data),
        model=ModelConfig(architecture="encoder-decoder", vocab_size=640),
        objective=ObjectiveConfig(name="span_corruption"),
        mixture=MixtureConfig(tasks=tasks, **sections.pop("mixture", {})),
        **sections,
    )


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("".join(f"Night {i} of the year\tday {i}\n" for i in range(300)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pairs(made: Store, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of pairs with the tokenizer of the documents."""
    data = DataConfig(source="tsv", path=str(pairs_file), vocab_size=600, heldout_fraction=0.1)
    out = str(tmp_path_factory.mktemp("store"))
    return prepare.prepare(data, out, num_workers=1, progress=False, tokenizer=made.tokenizer)


@pytest.fixture(scope="module")
def config(made: Store, pairs: Store) -> Config:
    """Spans, infilling of the same text, and pairs with a prefix: 5:3:2."""
    return make_config(
        {
            "spans": TaskConfig(store=made.path, rate=0.5),
            "infill": TaskConfig(store=made.path, objective="infilling", rate=0.3),
            "nights": TaskConfig(store=pairs.path, objective="pairs", prefix="count the days: ", rate=0.2),
        }
    )


def make_tasks(config: Config) -> list[mixture.Task]:
    return mixture.make_tasks(config, mixture.prepare_stores(config, "unused", num_workers=1, progress=False))


def mixed(config: Config) -> Source:
    return mixture.mixed(make_tasks(config), config.data.batch_size)


def assert_equal(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


# --- the quota


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_every_beginning_has_each_task_within_one_row_of_its_rate(rates: list[float]) -> None:
    rows = mixture.quota(rates)
    order = np.tile(mixture.schedule(rows), 3)
    share = np.array(rates) / sum(rates)
    np.testing.assert_allclose(rows / rows.sum(), share, rtol=1e-12)
    had = np.stack([np.cumsum(order == task) for task in range(len(rates))])
    assert np.abs(had - share[:, None] * np.arange(1, len(order) + 1)).max() < 1


def test_odd_rates_are_met_closely_and_their_quota_exactly(rng: np.random.Generator) -> None:
    for count in (2, 3, 5, 8):
        rates = rng.random(count) + 0.01
        rows = mixture.quota(rates)
        assert np.abs(rows / rows.sum() - rates / rates.sum()).max() < 1 / 30_000
        order = mixture.schedule(rows)
        had = np.stack([np.cumsum(order == task) for task in range(count)])
        owed = np.outer(rows, np.arange(1, len(order) + 1)) / len(order)
        assert np.abs(had - owed).max() < 1
        np.testing.assert_array_equal(had[:, -1], rows)


def test_the_period_is_the_shortest_that_meets_the_rates() -> None:
    assert mixture.quota([2, 2]).tolist() == [1, 1]
    assert mixture.quota([0.5, 0.3, 0.2]).tolist() == [5, 3, 2]
    assert mixture.quota([1, 1, 1]).tolist() == [1, 1, 1]
    assert mixture.quota([1, 1_000_000]).tolist() == []


def test_rates_from_sizes() -> None:
    """By hand: sizes 100, 400 and 10,000 under K = 900 count as 100, 400 and 900, and T = 2 takes their roots."""
    sizes = [100, 400, 10_000]
    assert mixture.size_factors(MixtureConfig(), sizes).tolist() == [1, 1, 1]
    assert mixture.size_factors(MixtureConfig(temperature=1), sizes).tolist() == sizes
    assert mixture.size_factors(MixtureConfig(temperature=2), sizes).tolist() == [10, 20, 100]
    assert mixture.size_factors(MixtureConfig(temperature=1, limit=900), sizes).tolist() == [100, 400, 900]
    found = mixture.size_factors(MixtureConfig(temperature=2, limit=900), sizes)
    assert found.tolist() == [10, 20, 30]
    assert mixture.quota(found).tolist() == [1, 2, 3]


def test_sizes_are_rows_and_multiply_the_rates(config: Config) -> None:
    by_size = MixtureConfig(tasks=config.mixture.tasks, temperature=1.0, limit=400)
    tasks = make_tasks(dataclasses.replace(config, mixture=by_size))
    sizes = [task.train.rows_per_epoch for task in tasks]
    assert min(sizes) < 400 < max(sizes)
    weights = np.array([config.mixture.tasks[task.name].rate for task in tasks]) * np.minimum(sizes, 400)
    rows = np.array([task.rows for task in tasks])
    np.testing.assert_allclose(rows / rows.sum(), weights / weights.sum(), atol=1 / 30_000)


# --- batches


def test_each_task_reads_on_where_it_stopped(config: Config) -> None:
    """The rows of a task, taken together, are the rows that it would show alone, in order."""
    tasks, steps = make_tasks(config), 120
    source = mixture.mixed(tasks, config.data.batch_size)
    batches = [source(step, None) for step in range(steps)]
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in ARRAYS}
    order = np.resize(mixture.schedule(np.array([task.rows for task in tasks])), len(whole["tokens"]))
    for index, task in enumerate(tasks):
        here = order == index
        assert here.sum() == len(order) * config.mixture.tasks[task.name].rate
        assert_equal({name: whole[name][here] for name in ARRAYS}, task.train.take(np.arange(here.sum())))
    assert here.sum() > task.train.rows_per_epoch  # over the end of an epoch


def test_a_batch_depends_on_seed_and_step_alone(config: Config) -> None:
    source = mixed(config)
    later = source(1_000_003, None)
    assert_equal(mixed(config)(1_000_003, None), later)
    other = mixed(dataclasses.replace(config, seed=1))(1_000_003, None)
    assert (other["tokens"] != later["tokens"]).any()


def test_the_order_in_which_tasks_are_written_does_not_matter(config: Config) -> None:
    turned = dict(reversed(config.mixture.tasks.items()))
    other = dataclasses.replace(config, mixture=MixtureConfig(tasks=turned))
    assert_equal(mixed(config)(7, None), mixed(other)(7, None))
    assert changed_fields(config, other) == []


@pytest.mark.parametrize("processes", [2, 16])
def test_any_number_of_processes_sees_the_same_batch(config: Config, processes: int) -> None:
    source, each = mixed(config), 16 // processes
    for step in (0, 5, 1000):
        parts = [source(step, slice(first, first + each)) for first in range(0, 16, each)]
        assert_equal(source(step, None), {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS})


def test_a_resumed_loader_goes_on(config: Config) -> None:
    source = mixed(config)
    unbroken = list(itertools.islice(loader(source), 6))
    for expected, batch in zip(unbroken[4:], loader(mixed(config), 4), strict=False):
        assert_equal(batch, expected)


def test_two_tasks_of_one_text_are_not_in_step(made: Store) -> None:
    tasks = make_tasks(make_config({name: TaskConfig(store=made.path) for name in ("one", "two")}))
    one, two = (task.train(0) for task in tasks)
    assert (one["tokens"] != two["tokens"]).any()


def test_objectives_meet_in_one_batch_of_little_padding(config: Config, made: Store) -> None:
    tasks, special = {task.name: task for task in make_tasks(config)}, made.tokenizer.special
    batch = mixed(config)(0, None)
    assert set(batch) == set(ARRAYS)
    assert batch["tokens"].shape == (16, 48)
    assert batch["targets"].shape == (16, 24)
    assert (tasks["spans"].train(0)["targets"] == special.first_sentinel).any()
    assert (tasks["infill"].train(0)["tokens"] == special.mask).any()
    alone = [task.rows * padding_fraction(task.train(0)) for task in tasks.values()]
    assert padding_fraction(batch) < sum(alone) / 10 + 0.1
    for side in ("", "target_"):  # equal numbers on both sides: no example of one task reads another's source
        assert (batch[f"{side}segments"].max(axis=1) == batch["segments"].max(axis=1)).all()


def test_a_prefix_stands_before_every_source_as_if_it_were_written_there(config: Config, made: Store) -> None:
    (nights,) = (task for task in make_tasks(config) if task.name == "nights")
    batch, seen = nights.train(0), 0
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        for segment in range(1, segments.max() + 1):
            ids = tokens[segments == segment]
            text = made.tokenizer.decode(ids)
            assert text.startswith("count the days: Night ")
            np.testing.assert_array_equal(ids[:-1], made.tokenizer.encode([text])[0])
            assert ids[-1] == made.tokenizer.special.sep
            assert text == mixture.prefixed(config, "nights", text.removeprefix("count the days: "))
            seen += 1
    assert seen >= 16
    assert not any("count" in made.tokenizer.decode(row) for row in batch["targets"])


@pytest.mark.parametrize("objective", ["span_corruption", "infilling"])
def test_a_prefix_of_corrupted_text_leaves_room_for_it(made: Store, objective: str) -> None:
    task = TaskConfig(store=made.path, objective=objective, prefix="fill:")
    (found,) = make_tasks(make_config({"fill": task}, data={"begin_with_cls": True}))
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
    source, (en, zh) = mixed(config), make_tasks(config)
    order = np.resize(mixture.schedule(np.array([3, 1])), 8)
    expected = {name: np.empty_like(values) for name, values in source(0, None).items()}
    assert "nsp_labels" in expected
    for index, task in enumerate((en, zh)):
        for name, values in task.train.take(np.arange((order == index).sum())).items():
            expected[name][order == index] = values
    assert_equal(source(0, None), expected)


# --- stores


def test_one_tokenizer_learns_from_all_texts(corpus_file: str, pairs_file: Path, tmp_path: Path) -> None:
    greek = tmp_path / "greek.txt"
    greek.write_text("\n\n".join(f"μῆνιν ἄειδε θεὰ {i}" for i in range(200)), encoding="utf-8")
    tasks = {
        "greek": TaskConfig(source="text", path=str(greek)),
        "nights": TaskConfig(source="tsv", path=str(pairs_file), objective="pairs"),
        "words": TaskConfig(source="text", path=corpus_file),
    }
    config, folder = make_config(tasks), str(tmp_path / "store")
    stores = mixture.prepare_stores(config, folder, num_workers=1, progress=False)
    assert {name: store.path for name, store in stores.items()} == {name: f"{folder}/{name}" for name in tasks}
    assert len({store.tokenizer.fingerprint for store in stores.values()}) == 1
    tokenizer = stores["nights"].tokenizer
    for ids in tokenizer.encode(["μῆνιν", "Night", "people"]):
        assert ids.min() >= FIRST_ORDINARY_ID + 256  # no byte: all three alphabets have pieces
    before = sorted((path, path.stat().st_mtime_ns) for path in Path(folder).rglob("*") if path.is_file())
    again = mixture.prepare_stores(config, folder, num_workers=1, progress=False)
    assert sorted((path, path.stat().st_mtime_ns) for path in Path(folder).rglob("*") if path.is_file()) == before
    assert again["greek"].manifest == stores["greek"].manifest
    opened = mixture.open_stores(config, folder, tokenizer)
    assert [store.manifest for store in opened.values()] == [store.manifest for store in stores.values()]


def test_a_store_with_another_tokenizer_is_refused(config: Config, pairs_file: Path, tmp_path: Path) -> None:
    data = DataConfig(source="tsv", path=str(pairs_file), vocab_size=500)
    other = prepare.prepare(data, str(tmp_path / "other"), num_workers=1, progress=False)
    tasks = {**config.mixture.tasks, "other": TaskConfig(store=other.path, objective="pairs")}
    with pytest.raises(InputError, match="tokenizer and store do not belong together"):
        make_tasks(make_config(tasks))


def test_what_a_store_cannot_give_is_refused(made: Store, pairs: Store, tmp_path: Path) -> None:
    for tasks, message in [
        ({"gone": TaskConfig(store=str(tmp_path))}, "no complete token store"),
        ({"nights": TaskConfig(store=pairs.path)}, "nights.objective is 'span_corruption', but the token store"),
        ({"text": TaskConfig(store=made.path, objective="pairs")}, "holds documents; change one of them"),
        ({"long": TaskConfig(store=made.path, prefix="time " * 60)}, "mixture.tasks.long: data.seq_length=48"),
        (
            {"long": TaskConfig(store=pairs.path, objective="pairs", prefix="time " * 60)},
            r"mixture.tasks.long: data.seq_length=48 holds no source beside a prefix of \d+ tokens; raise it",
        ),
        (
            {"rare": TaskConfig(store=made.path, rate=1e-6), "text": TaskConfig(store=made.path)},
            "one of the tasks rare, text gets less than one row in 16,384",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            make_tasks(make_config(tasks))


# --- config


@pytest.mark.parametrize(
    ("tasks", "mixture_fields", "message"),
    [
        ({"a": TaskConfig(source="web")}, {}, "mixture.tasks.a: data.source is 'web'; accepted: installed-docs"),
        ({"a": TaskConfig(source="text")}, {}, "mixture.tasks.a: data.path is empty"),
        ({"a": TaskConfig()}, {}, "mixture.tasks.a has source='' and store=''; give one of them"),
        ({"a": TaskConfig(source="dates", store="x")}, {}, "give one of them: a source to prepare, or an existing"),
        ({"a": TaskConfig(store="x", rate=0)}, {}, "mixture.tasks.a.rate is 0; it must be above 0"),
        ({"a": TaskConfig(store="x", rate=-1.0)}, {}, "mixture.tasks.a.rate is -1.0"),
        ({"a": TaskConfig(store="x", rate=math.nan)}, {}, "mixture.tasks.a.rate is nan"),
        (
            {"a": TaskConfig(store="x", rate="1")},  # pyright: ignore[reportArgumentType]
            {},
            "mixture.tasks.a.rate is '1'; accepted: a value of type float",
        ),
        ({"a": TaskConfig(store="x", objective="spans")}, {}, "mixture.tasks.a.objective is 'spans'; accepted: mlm"),
        ({"a": TaskConfig(store="x", objective="mlm")}, {}, "for architecture 'encoder', but model.architecture"),
        ({"a": TaskConfig(source="dates")}, {}, "is 'span_corruption', but its source=dates gives pairs"),
        ({"a b": TaskConfig(store="x")}, {}, "mixture.tasks has the name 'a b'; accepted: letters, digits and _"),
        ({"items": TaskConfig(store="x")}, {}, "mixture.tasks has the name 'items'"),
        ({"a": {"store": "x"}}, {}, "accepted: a value of type TaskConfig"),
        ({"a": TaskConfig(store="x")}, {"temperature": -1.0}, "mixture.temperature is -1.0"),
        ({"a": TaskConfig(store="x")}, {"limit": 5}, "mixture.limit is 5, but without a mixture.temperature"),
        ({}, {"temperature": 2.0}, "mixture.temperature is 2.0, but mixture.tasks is empty"),
    ],
)
def test_a_mixture_that_cannot_run_is_refused(tasks: dict, mixture_fields: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        make_config(tasks, mixture=mixture_fields)
    assert message in str(error.value)


def test_what_belongs_to_a_task_is_refused_elsewhere() -> None:
    with pytest.raises(InputError, match=r"data.path is 'x', but the run is a mixture; give it to a task"):
        make_config({"a": TaskConfig(store="x")}, data={"path": "x"})
    with pytest.raises(InputError, match=r"mixture.tasks.a.prefix is 'b:', but only an encoder-decoder"):
        Config(mixture=MixtureConfig(tasks={"a": TaskConfig(store="x", prefix="b:")}))


def test_tasks_come_back_from_json_and_are_compared_by_field(config: Config) -> None:
    assert from_dict(json.loads(to_json(config))) == config
    other = from_dict(json.loads(to_json(config)))
    other.mixture.tasks["spans"].rate = 2.0
    del other.mixture.tasks["infill"]
    changes = changed_fields(config, other)
    assert "mixture.tasks.spans.rate (0.5 -> 2.0)" in changes
    assert "mixture.tasks.infill.rate (0.3 -> None)" in changes
    with pytest.raises(InputError, match=r"unknown field mixture.tasks.a.weight; accepted: source, path"):
        from_dict({"mixture": {"tasks": {"a": {"weight": 1}}}})


def test_languages_are_those_of_all_tasks() -> None:
    one = TaskConfig(source="gettext", languages="de", objective="pairs")
    config = make_config({"one": one, "two": dataclasses.replace(one, languages="zh_CN, de")})
    assert config.languages == ["de", "zh_CN"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixture.tasks.dates.rate=-2", "mixture.tasks.dates.rate is -2.0; it must be above 0"),
        ("mixture.tasks.date.rate=2", "not a field of the config; nearest: mixture.tasks.dates.rate"),
    ],
)
def test_a_flag_reaches_a_task_of_the_config_file(override: str, message: str, tmp_path: Path) -> None:
    command = [sys.executable, "launch/prepare.py", "--config=configs/mixture.py", f"--out={tmp_path}"]
    result = subprocess.run([*command, f"--config.{override}"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 2
    assert message in result.stderr
