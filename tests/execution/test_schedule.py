"""What an idle worker does next: order, tries, copies of slow tasks, and that each task ends exactly once."""

from __future__ import annotations

from fakes import task
from hypothesis import given, settings
from hypothesis import strategies as st

from selfedit.execution.schedule import SLOW, TRIES, Job, Schedule
from selfedit.execution.tasks import TaskResult

PLACES = {"m0", "m1"}


def schedule(*milliseconds: int, **arguments: float) -> Schedule:
    """Tasks u/0, u/1, ... of these costs."""
    return Schedule([task(f"u/{k}", milliseconds=cost) for k, cost in enumerate(milliseconds)], **arguments)


def take(made: Schedule, place: str = "m0", now: float = 0.0) -> Job:
    job = made.take(place, PLACES, now)
    assert job is not None
    return job


def test_the_longest_task_goes_first_and_each_is_given_once() -> None:
    made = schedule(100, 300, 200)
    assert [take(made).task.id for _ in range(3)] == ["u/1", "u/2", "u/0"]
    assert made.take("m0", PLACES, 0.0) is None
    assert made.left == 3


def test_tasks_of_one_policy_go_together_and_on_rather_than_back() -> None:
    made = Schedule(
        [
            task("two", milliseconds=900, policy=("r1", "r2")),
            task("base-short", milliseconds=50),
            task("one", milliseconds=400, policy=("r1",)),
            task("base", milliseconds=500),
        ]
    )
    assert [take(made).task.id for _ in range(4)] == ["base", "base-short", "one", "two"]


def test_a_slow_task_is_copied_for_an_idle_worker_and_the_second_result_dropped() -> None:
    made = schedule(*[100] * 5, slow_seconds=0.0)
    slow = take(made)
    for second in range(4):
        assert made.finish(take(made, now=second), second + 1.0)
    # The others took one second each.
    assert made.take("m1", PLACES, SLOW - 0.1) is None
    copy = take(made, "m1", SLOW + 0.1)
    assert copy is slow
    assert made.take("m1", PLACES, 100.0) is None  # one copy is enough
    assert made.finish(copy, 6.0)
    assert made.left == 0
    assert not made.finish(slow, 7.0)
    assert made.fail(slow, "m0", "too late") is None


def test_short_tasks_are_not_copied_for_a_hiccup() -> None:
    made = schedule(*[100] * 5, slow_seconds=10.0)
    take(made)
    for _ in range(4):
        made.finish(take(made), 0.01)
    assert made.take("m1", PLACES, 9.0) is None
    assert made.take("m1", PLACES, 11.0) is not None


def test_a_copy_goes_on_when_the_other_worker_fails() -> None:
    made = schedule(*[100] * 4, slow_seconds=0.0)
    slow = take(made)
    for _ in range(3):
        made.finish(take(made), 1.0)
    assert take(made, "m1", 10.0) is slow
    assert made.fail(slow, "m0", "killed") is None
    assert made.take("m0", PLACES, 10.0) is None
    assert made.finish(slow, 11.0)


def test_a_task_that_fails_is_tried_elsewhere_and_given_up_after_three_times() -> None:
    made = schedule(300, 100)
    bad = take(made, "m0")
    assert made.fail(bad, "m0", "a bad device") is None
    assert take(made, "m0").task.id == "u/1"  # the longer one waits for the other machine
    assert take(made, "m1") is bad
    assert made.fail(bad, "m1", "a bad device") is None
    assert take(made, "m1") is bad  # it failed everywhere, so anywhere will do
    given_up = made.fail(bad, "m1", "a bad day")
    assert given_up == TaskResult("u/0", 0.0, error=f"failed {TRIES} times, at last with a bad day")
    assert made.left == 1


def test_a_task_that_failed_on_the_only_machine_left_is_tried_there_again() -> None:
    made = schedule(300)
    made.fail(take(made, "m0"), "m0", "a bad device")
    assert made.take("m0", {"m0", "m1"}, 0.0) is None
    assert made.take("m0", {"m0"}, 0.0) is not None


def test_memory_is_halved_each_time_it_ran_out() -> None:
    made = schedule(100)
    for halvings in range(TRIES):
        job = made.take("m0", {"m0"}, 0.0)
        assert job is not None
        assert job.halvings == halvings
        made.fail(job, "m0", "out of memory", out_of_memory=True)
    assert made.left == 0


def test_a_machine_that_is_gone_blames_no_task() -> None:
    made = schedule(100)
    for _ in range(2 * TRIES):
        assert made.fail(take(made), "m0", "gone", blame=False) is None
    assert made.left == 1


@settings(max_examples=200, deadline=None)
@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=30), data=st.data())
def test_whatever_happens_each_task_ends_exactly_once(costs: list[int], data: st.DataObject) -> None:
    made = schedule(*costs, slow_seconds=0.0)
    held: dict[str, Job | None] = {"w0": None}
    ended: list[str] = []
    now, lives = 0.0, 0
    for _ in range(1000):
        now += data.draw(st.floats(0.1, 5.0))
        what = data.draw(st.sampled_from(["finish", "finish", "finish", "fail", "lose", "join"]))
        busy = sorted(worker for worker, job in held.items() if job is not None)
        if what == "join" and len(held) < 5:
            lives += 1
            held[f"w{lives}"] = None
        elif busy and what != "join":
            worker = data.draw(st.sampled_from(busy))
            job, held[worker] = held[worker], None
            assert job is not None
            if what == "finish":
                ended += [job.task.id] if made.finish(job, now) else []
            else:
                result = made.fail(job, worker, what, blame=data.draw(st.booleans()))
                ended += [result.task_id] if result else []
                if what == "lose" and len(held) > 1:
                    del held[worker]
        for worker, job in held.items():
            if job is None:
                held[worker] = made.take(worker, set(held), now)
        assert made.left == len(costs) - len(ended)
        if not made.left:
            break
    assert sorted(ended) == sorted(f"u/{k}" for k in range(len(costs)))
