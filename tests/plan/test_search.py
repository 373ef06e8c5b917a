"""The layouts that a search compiles, and how what came out is ranked."""

import pytest

from lm.accelerators import Topology
from lm.config import Config
from lm.errors import InputError
from lm.plan import cost, search
from lm.plan.step import Plan
from tests.training.conftest import changed


def test_promising_layouts_use_all_devices_and_divide_the_config(encoder: Config):
    layouts = search.promising(encoder, Topology.parse("v5e:2x4"), 5)
    assert len(layouts) == 5
    for layout in layouts:
        mesh = layout.mesh
        assert mesh.data * mesh.fsdp * mesh.tensor == 8
        assert layout.data == encoder.data  # the batch stays
        assert layout.data.batch_size // layout.train.accumulation % (mesh.data * mesh.fsdp) == 0
    assert len({(str(layout.mesh), str(layout.train)) for layout in layouts}) == 5
    assert encoder.mesh.data == -1  # as it was


def test_a_large_state_is_split(encoder: Config):
    wide = changed(encoder, model={"d_model": 8192, "num_heads": 64, "d_ff": 32768, "num_layers": 16})
    for layout in search.promising(wide, Topology.parse("v5e:4x4"), 3):
        assert layout.mesh.fsdp * layout.mesh.tensor >= 16 * 8 / 15.75


def test_slices_split_the_batch_only(encoder: Config):
    for layout in search.promising(encoder, Topology.parse("2*v5e:2x2"), 5):
        assert layout.mesh.data % 2 == 0


def test_a_batch_that_nothing_divides_is_refused(encoder: Config):
    with pytest.raises(InputError, match=r"no mesh of v5e:2x4 divides data\.batch_size=15"):
        search.search(changed(encoder, data={"batch_size": 15}), [Topology.parse("v5e:2x4")], 1, 1)


def test_a_search_compiles_and_announces(encoder: Config):
    seen = []
    plans = search.search(encoder, [Topology.parse("v5e:2x2")], compiled=1, workers=1, announce=seen.append)
    assert plans == seen
    assert [(each.fits, each.unroll) for each in plans] == [(True, 1), (True, 0)]
    assert plans[0].mesh == plans[1].mesh


def make_run(topology: str, seconds: float | None, price: float | None = None) -> cost.Run:
    plan = Plan(topology, {"data": 1}, 1, 1, "none", 1, fits=seconds is not None, predicted_step_seconds=seconds)
    return cost.whole_run(plan, 3600, {} if price is None else {plan.topology.split(":")[0]: price})


def test_the_cheapest_that_fits_comes_first():
    cheap, fast, none = make_run("v5e:4x4", 10, 1.0), make_run("v5p:4x4x4", 4, 4.0), make_run("v5e:2x2", None, 1.0)
    assert cost.ranked([none, fast, cheap]) == [cheap, fast, none]
    assert (cheap.hours, cheap.cost, fast.cost) == (10, 160, 1024)


def test_under_a_deadline_the_cheapest_that_meets_it_comes_first():
    cheap, fast = make_run("v5e:4x4", 10, 1.0), make_run("v5p:4x4x4", 4, 4.0)
    assert cost.ranked([cheap, fast], deadline=5) == [fast, cheap]
    assert cost.ranked([cheap, fast], deadline=3) == [fast, cheap]  # none does: the fastest
    assert cost.ranked([cheap, fast], deadline=20) == [cheap, fast]


def test_without_prices_chip_hours_count():
    few, many = make_run("v5e:2x2", 5), make_run("v5e:4x4", 2)
    assert cost.ranked([many, few]) == [few, many]
    assert few.cost is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((None, "No such file"), ("{", "no JSON object"), ("[1]", "no JSON object")),
        ('{"v5e": "dear"}', "no JSON object"),
        ('{"v5e": 1.2}', "which has no price of v6e, v5p; give"),
    ],
)
def test_wrong_prices_are_refused(tmp_path, content: str | None, message: str):
    path = tmp_path / "prices.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        cost.read_prices(str(path), ["v5e", "v6e", "v5p", "v6e"])


def test_prices_of_all_kinds_are_read(tmp_path):
    (tmp_path / "prices.json").write_text('{"v5e": 1.2, "v6e": 2, "v4": 3}')
    assert cost.read_prices(str(tmp_path / "prices.json"), ["v6e", "v5e"])["v6e"] == 2
    assert cost.read_prices("", ["v6e"]) == {}
