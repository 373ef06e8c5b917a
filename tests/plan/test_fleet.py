"""A simulated fleet against cases that are computed by hand, and the autoscalers' rules against their definitions."""

import contextlib
import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm import cli
from lm.cluster import pace, ray_serve
from lm.cluster.pace import Pace
from lm.data import workers
from lm.errors import InputError
from lm.plan import fleet_flags, fleet_report, traffic
from lm.plan.autoscale import Delayed, Fixed, Horizontal, Rule
from lm.plan.fleet import Capacity, Fleet, Outcome, Simulation
from lm.plan.fleet_flags import Setting
from lm.serving.settings import Settings

READER = Capacity(tokens_per_second=100, batch_tokens=100)
OUTPUT: Any = types.SimpleNamespace(name="output", value="")
QUICK = Pace(window=0, percent=100, pods=4, period=15)


class Script:
    """A rule that asks for given numbers, one after the other."""

    def __init__(self, *wanted: int, every: float = 15.0):
        self.every, self._wanted, self.loads = every, list(wanted), []

    def wanted(self, now: float, replicas: int, load: float) -> int:
        self.loads.append(load)
        return self._wanted.pop(0) if self._wanted else replicas


def simulate(arrivals, tokens, capacity: Capacity = READER, rule: Rule | None = None, **fleet) -> Outcome:
    chosen = rule or Fixed(fleet.get("least", 1))
    return Simulation(arrivals, tokens, capacity, Fleet(**{"target": 100.0, **fleet}), chosen).run()


# ---- One replica ----------------------------------------------------------------------------------


def test_full_batches_follow_each_other() -> None:
    out = simulate([0, 0, 0], [100, 100, 100])
    np.testing.assert_allclose(out.latencies, [1, 2, 3])
    assert out.replica_hours == pytest.approx(3 / 3600)


def test_what_waits_is_read_as_one_batch() -> None:
    """The first is read alone; the next two fit into a batch of 100 tokens, the last does not."""
    out = simulate([0, 0.1, 0.2, 0.3], [50, 40, 60, 10])
    np.testing.assert_allclose(np.add(out.latencies, [0, 0.1, 0.2, 0.3]), [0.5, 1.5, 1.5, 1.6])


def test_a_small_batch_takes_the_shortest_time() -> None:
    out = simulate([0], [10], Capacity(tokens_per_second=100, batch_tokens=100, seconds=0.5))
    np.testing.assert_allclose(out.latencies, [0.5 + 0.5 * 10 / 100])


def test_a_sequence_keeps_its_slot_until_its_last_token() -> None:
    """Two slots write 10 tokens a second together: each 5."""
    out = simulate([0, 0, 0], [10, 20, 5], Capacity(tokens_per_second=10, slots=2, seconds=1))
    np.testing.assert_allclose(out.latencies, [3, 5, 3 + 2])


def test_a_full_queue_refuses() -> None:
    out = simulate([0, 0, 0, 0], [100] * 4, dataclasses.replace(READER, waiting_tokens=150))
    assert (out.refused, np.isnan(out.latencies).tolist()) == (2, [False, False, True, True])
    late = simulate([0, 0, 0, 0], [100] * 4, dataclasses.replace(READER, deadline=0.5))
    assert late.refused == 2


def test_a_second_replica_halves_the_wait() -> None:
    out = simulate([0.0] * 40, [100] * 40, least=2)
    assert sorted(out.latencies)[-1] < 40 / 2 * 1.3
    assert out.quantile(0.5) < 12
    assert out.replicas.tolist() == [2, 2]


# ---- Replicas come and go ---------------------------------------------------------------------------


def test_a_new_replica_is_ready_after_its_start() -> None:
    """It is wanted at 15 s and ready at 45 s, and paid for from 15 s on."""
    arrivals = [0.0] * 60 + [50.0] * 2
    out = simulate(arrivals, [100] * 62, dataclasses.replace(READER, startup=30.0), Script(2))
    assert list(zip(out.times.tolist(), out.replicas.tolist(), strict=True))[:2] == [(0.0, 1), (15.0, 2)]
    assert min(out.latencies[-2:]) == 1  # the first still has ten in its queue
    end = out.times[-1]
    assert out.replica_hours == pytest.approx((2 * end - 15) / 3600)


def test_a_replica_that_leaves_answers_what_it_has() -> None:
    arrivals = [0.0] * 40 + [100.0]
    out = simulate(arrivals, [100] * 41, rule=Script(1), least=2)
    assert not np.isnan(out.latencies).any()
    assert out.refused == 0
    assert out.replicas.tolist()[-2:] == [1, 1]
    assert 15 < out.times[1] < 25  # 20 batches of a second, more or less


def test_a_machine_that_is_taken_away_hands_its_requests_on() -> None:
    out = simulate([0.0, 1.0] * 1, [6000, 100], READER, preemptions=3600.0, least=1, counts="outstanding")
    assert out.repeated > 0
    steady = simulate(
        np.arange(0, 3600, 2.0), [50] * 1800, dataclasses.replace(READER, startup=20), least=3, preemptions=6
    )
    assert steady.repeated == 0  # 15 s of notice are enough for short requests
    assert np.isnan(steady.latencies).sum() == steady.refused
    assert len(steady.times) > 20


def test_the_autoscaler_sees_the_mean_of_what_waits() -> None:
    """Looks at 10, 20, 30 s; 1 s a request: 49, 39, 29 of them wait, of 100 tokens each."""
    rule = Script(every=31.0)
    simulate([0.0] * 60, [100] * 60, dataclasses.replace(READER, deadline=120.0), rule=rule, averaged=60.0)
    assert rule.loads[0] == pytest.approx((49 + 39 + 29) / 3, abs=1.01)


@pytest.mark.parametrize("counts", ["outstanding", "queue"])
def test_only_ray_leaves_out_a_replica_that_leaves(counts: str) -> None:
    """One of two is told to leave after 15 s, and still has half of the work at 30 s."""
    rule = Script(1, every=15.0)
    patient = dataclasses.replace(READER, deadline=1e6)
    simulate([0.0] * 400, [100] * 400, patient, rule, least=2, counts=counts, every=4.0, averaged=0.0)
    both, after = rule.loads[:2]
    assert both == pytest.approx(400 - 2 * 12, abs=8)
    left = 400 - 2 * 28
    assert after == pytest.approx(left / 2 if counts == "outstanding" else left, abs=40)


def test_keda_starts_the_first_replica_and_stops_the_last() -> None:
    out = simulate([10.0, 40.0, 800.0], [100] * 3, dataclasses.replace(READER, startup=10.0), Script(), least=0)
    assert out.refused == 2  # before the first replica is ready, and after the quiet time
    moments = dict(zip(out.times.tolist(), out.replicas.tolist(), strict=True))
    assert moments[15.0] == 1  # the poll after the first request
    assert moments[345.0] == 0  # the first poll more than 300 s after the last


@pytest.mark.parametrize(("read", "is_steady"), [(0.0, False), (75.0, True)])
def test_tokens_read_keep_replicas_steady_at_a_constant_rate(read: float, is_steady: bool) -> None:
    """120 tokens a second need two replicas of 100. Their queues are empty, so by the queue one of them has to go."""
    rule = Horizontal(1, 4)
    capacity = dataclasses.replace(READER, startup=30.0)
    out = simulate(np.arange(0, 5400, 0.5), [60] * 10_800, capacity, rule, target=500.0, averaged=60.0, read=read)
    late = out.replicas[out.times > 600]
    assert (out.changes == 0 and late.tolist() == [2]) if is_steady else (out.changes > 2 and late.min() == 1)
    assert (np.quantile(out.latencies[1200:], 0.99) < 3) == is_steady


# ---- The rules ----------------------------------------------------------------------------------------


def test_the_horizontal_rule_is_the_formula() -> None:
    rule = Horizontal(1, 10, QUICK, dataclasses.replace(QUICK, percent=90))
    assert rule.wanted(0, 2, 3.2) == 4
    assert rule.wanted(100, 4, 4.3) == 4  # within a tenth
    assert rule.wanted(200, 4, 99) == 8  # twice as many, the most that are allowed in 15 s
    assert rule.wanted(205, 8, 99) == 8  # the period is not over
    assert rule.wanted(216, 8, 99) == 10  # the most of all
    assert rule.wanted(300, 10, 0.1) == 1


def test_scaling_down_waits_for_its_window() -> None:
    rule = Horizontal(1, 20, QUICK, Pace(window=300, percent=10, pods=1, period=60))
    assert rule.wanted(0, 6, 6) == 6
    assert [rule.wanted(float(t), 6, 2) for t in range(15, 300, 15)] == [6] * 19
    assert rule.wanted(301, 6, 2) == 5  # one a minute
    assert rule.wanted(316, 5, 2) == 5
    assert rule.wanted(362, 5, 2) == 4
    rule.wanted(377, 4, 9)
    assert rule.wanted(437, 9, 2) == 9  # the higher wish is in the window


def test_rays_rule_follows_a_wish_that_lasts() -> None:
    rule = Delayed(1, 10, up=30, down=600)
    assert [rule.wanted(t, 2, 4.5) for t in (0, 29)] == [2, 2]
    assert rule.wanted(30, 2, 4.5) == 5
    assert rule.wanted(31, 5, 1) == 5
    assert rule.wanted(40, 5, 7) == 5  # another direction: the clock begins anew
    assert rule.wanted(60, 5, 1) == 5
    assert [rule.wanted(t, 5, 1) for t in (659, 660)] == [5, 1]
    assert rule.wanted(700, 1, 50) == 1


# ---- Traffic, flags and reports -----------------------------------------------------------------------


def test_a_day_of_a_rate_has_its_requests() -> None:
    found = traffic.from_rate("1:3", tokens=20)
    assert len(found.arrivals) == pytest.approx(2 * traffic.DAY, rel=0.01)
    assert found.tokens.mean() == pytest.approx(20, rel=0.02)
    night, noon = ((found.arrivals // 3600 == hour).sum() for hour in (0, 11))
    assert noon > 2.5 * night
    assert (np.diff(found.arrivals) >= 0).all()


def test_a_trace_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("time,tokens\n0,5\n2.5,0\n")
    found = traffic.read_trace(str(file), tokens=9)
    assert (found.arrivals.tolist(), found.tokens.tolist()) == ([0, 2.5], [5, 1])
    file.write_text("time,tokens\n1.7e9,5\n1700000002.5,0\n")
    assert traffic.read_trace(str(file), tokens=9).arrivals.tolist() == [0, 2.5]
    file.write_text("rate,time\n0,1700000000\n50,1700000100\n0,1700000200\n")
    found = traffic.read_trace(str(file), tokens=1)
    assert len(found.arrivals) == pytest.approx(5000, rel=0.1)
    assert found.arrivals.min() >= 100
    assert set(found.tokens.tolist()) == {1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "with the columns"),
        ("time,words\n1,2\n", "accepted: time,tokens or time,rate"),
        ("time,tokens\n0,1\n\n1,x\n", "whose line 4 is '1,x'; accepted: two numbers a line"),
        ("time,tokens\n1\n", "whose line 2 is '1'; accepted"),
        ("time,tokens\n1,2\n1,2,3,4\n", "whose line 3 is '1,2,3,4'; accepted"),
        ("time,tokens\n2,1\n1,1\n", "whose line 3 is '1,1'; .* rising times"),
        ("time,tokens\n0,nan\n", "whose line 2 is '0,nan'"),
        ("rate,time\n-1,0\n", "whose line 2 is '-1,0'; .* no tokens or rate below 0"),
        ("time,tokens\n", "no line below its header"),
        ("time,rate\n0,1\n", "with one line"),
    ],
    ids=range(10),
)
def test_a_wrong_trace_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        traffic.read_trace(str(tmp_path / "trace.csv"), tokens=1)
    with pytest.raises(InputError, match="which cannot be read"):
        traffic.read_trace(str(tmp_path / "none.csv"), tokens=1)
    with pytest.raises(InputError, match="--rate is '-1'"):
        traffic.from_rate("-1", tokens=1)


def flags(monkeypatch: pytest.MonkeyPatch, **given: object) -> None:
    """Gives the flags of launch/plan.py --fleet these values, and the others their defaults."""
    values = {name: None for name in ("picture", "plan", "prices", "trace")}
    values |= {
        "rate": "0.02",
        "tokens": 50,
        "tokens_per_second": 100.0,
        "batch_tokens": 100,
        "slots": 0,
        "seconds": 0.1,
    }
    values |= {"waiting_tokens": 1000, "startup_seconds": 30.0, "autoscaler": "keda", "target": None, "seed": 0}
    values |= {"read_tokens": None}
    values |= {"min_replicas": 1, "max_replicas": 2, "upscale_delay": 30.0, "downscale_delay": 600.0, "search": False}
    values |= {"preemptions_per_hour": 0.0, "accelerator": "l4", "target_p99": 9.0}
    monkeypatch.setattr(fleet_flags, "_F", types.SimpleNamespace(**{**values, **given}))
    present = {name: types.SimpleNamespace(present=given.get(name) is not None) for name in values}
    others = {name: types.SimpleNamespace(present=name in given) for name in fleet_flags._OF_OTHERS}
    monkeypatch.setattr(cli.flags, "FLAGS", {**present, **others})


def test_the_flags_lead_to_a_table(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text('{"l4": 0.5}')
    flags(monkeypatch, search=True, prices=str(tmp_path / "prices.json"))
    output: Any = types.SimpleNamespace(name="output", value=str(tmp_path / "plan.json"))
    fleet_flags.run(output)
    assert json.loads((tmp_path / "plan.json").read_text())[0]["cost"] == pytest.approx(12, rel=0.01)
    flags(monkeypatch, accelerator="h100", prices=str(tmp_path / "prices.json"))
    with pytest.raises(InputError, match="which has no price of h100"):
        fleet_flags.run(output)
    lines = capsys.readouterr().out.splitlines()
    assert {tuple(line.split()[:3]) for line in lines[1:-1]} == {
        (replicas, "4096", read) for replicas in ("1-2", "2-2") for read in ("50", "75", "90")
    }
    assert " 12.0" in lines[1]  # 24 hours of one replica at 0.5
    assert lines[-1] == "The first line is the cheapest that keeps the target."


def test_a_long_simulation_says_what_it_does(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """What takes longer than a second names its setting."""
    said: list[str] = []
    monkeypatch.setattr(workers, "announced", lambda what: (said.append(what), contextlib.nullcontext())[1])
    flags(monkeypatch, search=True, autoscaler="none")
    fleet_flags.run(OUTPUT)
    assert said[0] == "drawing the requests"
    assert [what.partition(" requests, ")[2] for what in said[1:]] == [
        "setting 1 of 2: 1 to 2 replicas, target 4096",
        "setting 2 of 2: 2 to 2 replicas, target 4096",
    ]


@pytest.mark.parametrize("autoscaler", ["hpa", "ray", "none"])
def test_every_rule_has_its_gauge(autoscaler: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    flags(monkeypatch, autoscaler=autoscaler)
    fleet_flags.run(OUTPUT)
    assert "0 (0.00%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "target"),
    [({}, 4096), ({"slots": 16}, 12), ({"slots": 64}, 48), ({"slots": 16, "autoscaler": "ray"}, 4096)],
)
def test_the_target_is_that_of_the_launchers(given, target: float, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, **given)
    assert fleet_flags._target(fleet_flags._capacity()) == target
    assert Settings().slots == pace.SLOTS


def test_rays_delays_are_those_of_the_launcher() -> None:
    rule, launched = Delayed(1, 9), ray_serve.Replicas("")
    assert [rule.wanted(t, 1, 5.0) for t in (0, launched.up - 1, launched.up)] == [1, 1, 5]
    assert [rule.wanted(20 + t, 5, 1.0) for t in (0, launched.down - 1, launched.down)] == [5, 5, 1]


def test_a_plan_is_the_capacity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = {"predicted_tokens_per_second": 800.0, "batch": 8, "length": 64, "max_length": 0, "fits": True}
    plan |= {"topology": "v5e:1x1", "parameter_bytes": 1.0, "temporary_bytes": 1.0}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    flags(monkeypatch, plan=str(tmp_path / "plan.json"), tokens_per_second=None)
    assert fleet_flags._capacity() == Capacity(800.0, 512, 512 / 800, 0, 1000, startup=30.0)
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "max_length": 32}))
    assert fleet_flags._capacity().slots == 8
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "predicted_tokens_per_second": None}))
    with pytest.raises(InputError, match="which does not fit; give one that does"):
        fleet_flags.run(OUTPUT)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trace": "a.csv"}, "and --rate is '0.02'; give one of them"),
        ({"rate": "0"}, "there is no request"),
        ({"tokens_per_second": None}, "give a replica's capacity"),
        ({"plan": "none.json", "tokens_per_second": None}, "--plan is 'none.json': No such file"),
        ({"max_replicas": 1, "min_replicas": 2}, "give a larger one"),
        ({"min_replicas": 0, "autoscaler": "hpa"}, "which only --autoscaler=keda can do"),
        ({"slots": 16, "target": 16.0}, "--target is 16 slots in use, and a replica has 16"),
        ({"plan": "a.json", "tokens_per_second": 5.0}, "--tokens_per_second has no effect with --plan"),
        ({"plan": "a.json", "slots": 4}, "--slots has no effect with --plan"),
        ({"slots": 4, "batch_tokens": 9}, "--batch_tokens has no effect with --slots"),
        ({"upscale_delay": 1.0}, "--upscale_delay has no effect without --autoscaler=ray"),
        ({"autoscaler": "none", "target": 5.0}, "--target has no effect with --autoscaler=none"),
        ({"autoscaler": "none", "max_replicas": 5}, "--max_replicas has no effect with --autoscaler=none"),
        ({"target_p99": 2.0}, "--target_p99 has no effect without --search"),
        ({"accelerator": "l4"}, "--accelerator has no effect without --prices"),
        ({"config": "mini"}, "--config has no effect with --fleet"),
        ({"num_beams": 2}, "--num_beams has no effect with --fleet"),
        ({"slots": 16, "read_tokens": 9}, "--read_tokens has no effect with a model that writes"),
        ({"autoscaler": "ray", "read_tokens": 9}, "--read_tokens has no effect with --autoscaler=ray"),
    ],
    ids=range(19),
)
def test_what_cannot_be_simulated_is_refused(given, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags(monkeypatch, **given)
    with pytest.raises(InputError, match=words):
        fleet_flags.run(OUTPUT)


def test_search_ranks_what_keeps_the_target_by_cost() -> None:
    def day(hours: float, p99: float, refused: int = 0) -> fleet_report.Day:
        out = Outcome(np.full(100, p99), refused, 0, np.zeros(1), np.ones(1, int), 0, hours)
        return fleet_report.Day(Setting(1, 2, 3.0), out, 2.0)

    dear, cheap, slow, refusing = day(9, 0.5), day(5, 0.9), day(1, 2.0), day(1, 0.1, refused=5)
    assert fleet_report.ranked([slow, dear, refusing, cheap], 1.0, 0.001) == [cheap, dear, refusing, slow]
    assert cheap.cost == 10.0
    assert "10.00" in fleet_report.table([cheap])
    assert json.loads(json.dumps(cheap.to_dict()))["p99_seconds"] == pytest.approx(0.9)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    arrivals = np.arange(0.0, 600, 1.0)
    out = simulate(arrivals, [20] * 600)
    day = fleet_report.Day(Setting(1, 1, 1.0), out, None)
    fleet_report.draw(day, traffic.Traffic(arrivals, np.full(600, 20)), str(tmp_path / "day.png"))
    assert (tmp_path / "day.png").read_bytes().startswith(b"\x89PNG")
