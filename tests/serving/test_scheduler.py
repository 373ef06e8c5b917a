"""The scheduler alone: a clock that the tests turn, and an engine that only takes and finishes."""

import dataclasses
import random

import pytest

from lm.serving.refusals import Refusal
from lm.serving.scheduler import Group, Item, Job, Limits, Scheduler


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Slots(Group):
    def __init__(self, slots: int):
        self.slots = slots


class World:
    """A scheduler, its clock, and what requests were told."""

    def __init__(self, **limits):
        self.clock = Clock()
        self.scheduler = Scheduler(Limits(**{"batch_tokens": 100, **limits}), self.clock)
        self.told: list[tuple[Item | None, object]] = []

    def ask(self, group: Group, *tokens: int, **how) -> Job:
        """Submits a request with inputs of so many tokens."""
        job = Job(
            [Item(group, count) for count in tokens], lambda item, result: self.told.append((item, result)), **how
        )
        self.scheduler.submit(job)
        return job

    def refused(self, group: Group, *tokens: int, **how) -> Refusal:
        before = (self.scheduler.items, self.scheduler.tokens)
        with pytest.raises(Refusal) as caught:
            self.ask(group, *tokens, **how)
        assert (self.scheduler.items, self.scheduler.tokens) == before  # all of it or nothing
        return caught.value

    def read(self) -> list[Item]:
        """Does one turn of an encoder."""
        batch = self.scheduler.next_batch()
        for item in batch:
            self.scheduler.finish(item, "done")
        return batch

    def turn(self) -> None:
        """Does one turn of the engine, in which what is written also ends."""
        for item, _ in self.scheduler.fill_slots():
            self.scheduler.finish(item, "done")
        self.read()


# ---- Admission ----------------------------------------------------------------------------------


def test_a_request_that_can_never_fit_is_too_large_and_one_that_can_later_is_overloaded():
    world, group = World(waiting_items=4, waiting_tokens=50), Group()
    assert world.refused(group, 51).kind == "too large"
    assert world.refused(group, *[1] * 5).kind == "too large"
    world.ask(group, 30)
    for tokens in ((21,), (1, 1, 1, 1)):
        refusal = world.refused(group, *tokens)
        assert refusal.kind == "overloaded"
        assert refusal.headers["Retry-After"] == "1"
        assert refusal.headers["retry-after-ms"] == "1000"
    world.ask(group, 20)
    world.read()
    world.ask(group, 50)


def test_a_full_queue_refuses_before_items_are_made():
    world, group = World(waiting_items=2), Group()
    world.ask(group, 1)
    world.scheduler.check_open()
    world.ask(group, 1)
    with pytest.raises(Refusal) as refused:
        world.scheduler.check_open()
    assert refused.value.kind == "overloaded"
    world.read()
    world.scheduler.check_open()


def test_an_input_larger_than_the_budget_is_computed_alone():
    world, group = World(batch_tokens=10), Group()
    large, small = world.ask(group, 25), world.ask(group, 3)
    assert world.read() == list(large.items)
    assert world.read() == list(small.items)
    assert world.scheduler.next_batch() == []


def test_a_request_whose_deadline_the_queue_would_miss_is_refused():
    world, group = World(seconds=30), Group()
    for _ in range(40):
        world.ask(group, 100)
    for _ in range(10):  # 100 tokens a second
        world.clock.now += 1.0
        world.read()
    assert world.scheduler.expected_wait() == pytest.approx(30, rel=0.2)
    refusal = world.refused(group, 1, seconds=5)
    assert refusal.kind == "overloaded"
    assert 10 < refusal.retry_after < 20
    for _ in range(20):
        world.clock.now += 1.0
        world.read()
    assert world.refused(group, 1, seconds=15).kind == "overloaded"  # the queue may take half of a request's time
    world.ask(group, 1, seconds=25)


@pytest.mark.parametrize("group", [Group(), Slots(4)], ids=["encoder", "decoder"])
def test_a_server_with_little_to_do_does_not_take_the_demand_for_its_pace(group: Group):
    """Turns take 0.6 s. One or two small requests arrive in each of them, then a large one."""
    world = World(batch_tokens=600)
    for turn in range(40):
        for _ in range(1 + turn % 2):
            world.ask(group, 10)
        world.clock.now += 0.6
        world.turn()
    assert world.scheduler.expected_wait() == 0
    world.ask(group, *[100] * 10)
    world.ask(group, 10)  # 1000 tokens wait, which are two turns
    assert world.scheduler.items == 11


def test_a_pace_that_is_wrong_does_not_stay():
    world, group = World(batch_tokens=100), Group()
    world.ask(group, *[100] * 10)
    for _ in range(9):  # a machine that is busy otherwise: 10 tokens a second
        world.clock.now += 10
        world.read()
    world.read()
    world.ask(group, *[100] * 5)
    assert world.refused(group, 1).kind == "overloaded"
    world.read()  # now it is fast
    while world.scheduler.items:
        world.read()
    world.clock.now += 11
    for _ in range(5):
        world.ask(group, *[100] * 10)
        world.clock.now += 0.5
        world.read()
    assert world.scheduler.expected_wait() < 60
    for _ in range(20):  # 200 tokens a second, and always more to do
        world.ask(group, *[100] * 2)
        world.clock.now += 1
        world.read()
        world.read()
    assert world.scheduler.expected_wait() == pytest.approx(world.scheduler.tokens / 200, rel=0.2)
    before = world.scheduler.expected_wait()
    for _ in range(10):  # it becomes slow: 100 tokens in five seconds
        world.clock.now += 5
        world.read()
    assert world.scheduler.expected_wait() > before
    assert world.scheduler.expected_wait() == pytest.approx(world.scheduler.tokens / 20, rel=0.3)


def test_a_stop_ends_all_requests_and_refuses_later_ones():
    world, readers, writers = World(), Group(), Slots(1)
    world.ask(readers, 10)
    running, waiting = world.ask(writers, 5), world.ask(writers, 5)
    world.scheduler.fill_slots()
    world.scheduler.stop(Refusal("failed", "the engine stopped"))
    assert [(item, str(what)) for item, what in world.told] == [(None, "the engine stopped")] * 3
    assert running.items[0].ended
    assert waiting.items[0].ended
    assert (world.scheduler.items, world.scheduler.tokens, world.scheduler.slots_in_use()) == (0, 0, 0)
    assert world.refused(readers, 1).kind == "failed"


# ---- Order --------------------------------------------------------------------------------------


def test_a_batch_has_the_oldest_inputs_and_what_else_fits():
    world, group = World(batch_tokens=100), Group()
    jobs = []
    for tokens in (60, 50, 30, 10, 1):
        jobs.append(world.ask(group, tokens))
        world.clock.now += 0.1
    assert [item.tokens for item in world.read()] == [60, 30, 10]
    assert [item.tokens for item in world.read()] == [50, 1]


def test_a_batch_has_inputs_of_one_group_that_of_the_oldest():
    world, one, other = World(), Group(), Group()
    world.ask(other, 1)
    world.clock.now += 1
    world.ask(one, 2)
    world.clock.now += 1
    world.ask(other, 3)
    assert [item.tokens for item in world.read()] == [1, 3]
    assert [item.tokens for item in world.read()] == [2]


def test_a_short_request_passes_a_long_one():
    world, group = World(batch_tokens=100), Group()
    world.ask(group, *[100] * 200)
    world.clock.now += 0.5
    short = world.ask(group, 100)
    turns = next(turn for turn in range(200) if world.read() == list(short.items))
    assert turns < 60


def test_priorities_go_first_and_nothing_starves():
    world, group = World(batch_tokens=10), Group()
    low = world.ask(group, 10, priority="low")
    high = world.ask(group, 10, priority="high")
    assert world.read() == list(high.items)
    turns = []
    while low.unfinished:  # every turn a more important request comes
        world.ask(group, 10, priority="high")
        world.clock.now += 1.0
        turns.append(world.read())
    assert len(turns) == 11


def test_no_request_starves_under_a_random_load():
    """Every request is finished once no more come, whatever came in between."""
    world, rng = World(batch_tokens=64, waiting_tokens=10**6), random.Random(0)
    groups = [Group(), Group(), Slots(2)]
    jobs, running = [], []
    for step in range(3000):
        world.clock.now += 0.01
        if step < 1500 and rng.random() < 0.6:
            counts = [rng.randint(1, 64) for _ in range(rng.choice([1, 1, 1, 8]))]
            job = world.ask(rng.choice(groups), *counts, priority=rng.choice(["high", "normal", "low"]), seconds=1000)
            jobs.append(job)
        running += [item for item, _ in world.scheduler.fill_slots()]
        if len(running) > 1 and step % 2:
            item = running.pop(0)
            world.scheduler.finish(item, "done")
        world.read()
    while items := world.scheduler.running():
        for group in items.values():
            for item in group.values():
                world.scheduler.finish(item, "done")
        world.scheduler.fill_slots()
    assert [job.unfinished for job in jobs] == [0] * len(jobs)
    assert (world.scheduler.items, world.scheduler.tokens) == (0, 0)


# ---- Slots --------------------------------------------------------------------------------------


def test_slots_are_filled_as_they_become_free():
    world, lane = World(), Slots(2)
    first, second, third = (world.ask(lane, 5) for _ in range(3))
    assert [slot for _, slot in world.scheduler.fill_slots()] == [0, 1]
    assert world.scheduler.fill_slots() == []
    world.scheduler.finish(second.items[0], "done")
    assert world.scheduler.fill_slots() == [(third.items[0], 1)]
    assert world.scheduler.running() == {lane: {0: first.items[0], 1: third.items[0]}}


def test_a_full_group_does_not_keep_another_from_its_slots():
    world, full, free = World(), Slots(1), Slots(1)
    for group in (full, full, free):
        world.ask(group, 5)
    assert {item.group for item, _ in world.scheduler.fill_slots()} == {full, free}


def test_few_tokens_enter_between_two_steps():
    world, lane = World(batch_tokens=10), Slots(8)
    for tokens in (6, 6, 30, 1):
        world.ask(lane, tokens)
        world.clock.now += 0.01
    entered = [[item.tokens for item, _ in world.scheduler.fill_slots()] for _ in range(4)]
    assert entered == [[6], [6], [30], [1]]


def test_cancelling_frees_the_queue_and_the_slots():
    world, lane = World(), Slots(1)
    running, waiting = world.ask(lane, 5, 5), world.ask(lane, 7)
    world.scheduler.fill_slots()
    world.scheduler.cancel(running)
    assert (world.scheduler.items, world.scheduler.tokens) == (1, 7)
    assert world.scheduler.fill_slots() == [(waiting.items[0], 0)]
    world.scheduler.finish(running.items[0], "too late")  # the engine may not know yet
    world.scheduler.cancel(running)
    assert world.told == []
    assert world.scheduler.slots_in_use() == 1


def test_a_client_that_leaves_between_two_calls_does_not_confuse_the_engine():
    """The engine has been told of a slot that is taken away before it uses it."""
    world, lane = World(), Slots(2)
    leaving, staying = world.ask(lane, 5), world.ask(lane, 5)
    entered = world.scheduler.fill_slots()
    world.scheduler.cancel(leaving)
    assert [slot for _, slot in entered] == [0, 1]
    assert world.scheduler.running() == {lane: {1: staying.items[0]}}


def test_a_deadline_ends_waiting_and_running_requests():
    world, lane, group = World(seconds=10), Slots(1), Group()
    running, waiting, reading = world.ask(lane, 5), world.ask(lane, 5, seconds=2), world.ask(group, 5, seconds=99)
    world.scheduler.fill_slots()
    world.clock.now += 3
    world.scheduler.expire()
    assert [(item, getattr(result, "kind", "")) for item, result in world.told] == [(None, "deadline")]
    assert all(item.ended for item in waiting.items)
    world.clock.now += 8
    world.scheduler.expire()
    assert len(world.told) == 3
    assert all(item.ended for job in (running, reading) for item in job.items)
    assert world.scheduler.slots_in_use() == world.scheduler.items == 0


def test_a_failure_ends_its_requests_and_no_others():
    world, group = World(batch_tokens=10), Group()
    failing, fine = world.ask(group, 5, 50), world.ask(group, 5)
    batch = world.scheduler.next_batch()
    world.scheduler.fail([batch[0]], Refusal("failed", "poison"))
    assert [(item, str(result)) for item, result in world.told] == [(None, "poison")]
    assert all(item.ended for item in failing.items)
    world.scheduler.finish(fine.items[0], "done")
    assert world.told[1:] == [(fine.items[0], "done")]
    assert world.scheduler.items == 0


def test_groups_without_requests_are_forgotten():
    """Else the weights that a server has replaced would stay in memory."""
    world, lane, group = World(), Slots(1), Group()
    world.ask(lane, 1)
    world.ask(group, 1)
    world.read()
    ((item, _),) = world.scheduler.fill_slots()
    world.scheduler.finish(item, "done")
    assert not any(isinstance(value, dict) and value for value in vars(world.scheduler).values())


def test_waiting_returns_at_once_if_there_is_work():
    world, group = World(), Group()
    world.ask(group, 1)
    world.scheduler.wait(seconds=3600)
    assert dataclasses.asdict(world.scheduler.limits)["batch_tokens"] == 100
