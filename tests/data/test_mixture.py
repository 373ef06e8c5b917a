"""A mixture: its rates to the row, its texts with one tokenizer, its settings."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.config import (
    Config,
    MixtureConfig,
    TaskConfig,
    changed_fields,
    from_dict,
    to_json,
)
from lm.data import mixture
from lm.errors import InputError
from lm.tokenizers.special_ids import FIRST_ORDINARY_ID

from .conftest import make_mixture

ROOT = Path(__file__).parent.parent.parent
RATES = [[1], [1, 1, 1], [0.5, 0.3, 0.2], [1, 2], [0.35, 0.65], [1, 97], [3, 1, 4, 1, 5, 9, 2, 6]]


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


# --- stores


def test_one_tokenizer_learns_from_all_texts(corpus_file: str, pairs_file: Path, tmp_path: Path) -> None:
    greek = tmp_path / "greek.txt"
    greek.write_text("\n\n".join(f"μῆνιν ἄειδε θεὰ {i}" for i in range(200)), encoding="utf-8")
    tasks = {
        "greek": TaskConfig(source="text", path=str(greek)),
        "nights": TaskConfig(source="tsv", path=str(pairs_file), objective="pairs"),
        "words": TaskConfig(source="text", path=corpus_file),
    }
    config, folder = make_mixture(tasks), str(tmp_path / "store")
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
        make_mixture(tasks, mixture=mixture_fields)
    assert message in str(error.value)


def test_what_belongs_to_a_task_is_refused_elsewhere() -> None:
    with pytest.raises(InputError, match=r"data.path is 'x', but the run is a mixture; give it to a task"):
        make_mixture({"a": TaskConfig(store="x")}, data={"path": "x"})
    with pytest.raises(InputError, match=r"mixture.tasks.a.prefix is 'b:', but only an encoder-decoder"):
        Config(mixture=MixtureConfig(tasks={"a": TaskConfig(store="x", prefix="b:")}))


def test_tasks_come_back_from_json_and_are_compared_by_field(mixture_config: Config) -> None:
    config = mixture_config
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
    config = make_mixture({"one": one, "two": dataclasses.replace(one, languages="zh_CN, de")})
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
