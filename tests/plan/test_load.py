"""What a load takes, by arithmetic on plans that are made up."""

import dataclasses

import pytest

from lm.errors import InputError
from lm.plan import cost, load, tables
from lm.plan.serving import Serving

PLAN = Serving("v5e:2x2", {"tensor": 4}, batch=16, length=128, max_length=64, num_beams=1, fits=True)
PLAN = dataclasses.replace(PLAN, predicted_seconds=0.5)  # 32 requests a second


@pytest.mark.parametrize(("rate", "replicas"), [(0.1, 1), (25, 1), (26, 2), (1000, 40)])
def test_replicas_are_few_and_not_too_busy(rate: float, replicas: int):
    found = load.carry(PLAN, rate)
    assert found is not None
    assert (found.capacity, found.replicas, found.chips) == (32, replicas, 4 * replicas)
    assert found.used <= load.USED
    assert replicas == 1 or rate / (replicas - 1) > load.USED * found.capacity
    assert found.slots_in_use * replicas == pytest.approx(rate * 0.5)
    assert found.slots_in_use == pytest.approx(found.used * PLAN.batch)


def test_the_table_begins_with_the_fewest_chips_and_leaves_out_what_does_not_fit():
    large = dataclasses.replace(PLAN, batch=64, predicted_seconds=1.0)
    too_large = dataclasses.replace(PLAN, batch=4096, fits=False, predicted_seconds=None)
    headings, *lines, note = load.tables([PLAN, too_large, large], 100, {})[0].splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["v5e:2x2", "64", "64.0", "2", "8"],
        ["v5e:2x2", "16", "32.0", "4", "16"],
    ]
    assert headings.split()[:2] == ["topology", "slots"]
    assert note.startswith("For 100 requests a second")


def test_prices_say_what_an_hour_and_a_million_tokens_cost():
    """Four chips at 9 an hour write 1,000 tokens a second: 1,000 s of 0.01 each."""
    fast = dataclasses.replace(PLAN, predicted_tokens_per_second=1000.0)
    prices = {"v5e": 9.0}
    assert cost.million_tokens(fast, prices) == pytest.approx(10)
    headings, line, _ = tables.serving_table([fast], prices).splitlines()
    assert (headings.split("  ")[-1], line.split()[-1]) == ("1M tokens", "10")
    headings, line, _ = load.tables([fast], 26, prices)[0].splitlines()
    assert (headings.split("  ")[-1].strip(), line.split()[-1]) == ("an hour", "72.00")
    too_large = dataclasses.replace(PLAN, fits=False, predicted_seconds=None)
    assert "does not fit" in tables.serving_table([too_large], prices)
    assert cost.million_tokens(too_large, prices) is cost.million_tokens(fast, {}) is None


def test_sizes_of_batches():
    assert load.sizes(["8", "32"]) == [8, 32]
    for wrong in ([], ["0"], ["8", "x"], ["-1"], ["1.5"]):
        with pytest.raises(InputError, match="accepted: numbers from 1 on"):
            load.sizes(wrong)
