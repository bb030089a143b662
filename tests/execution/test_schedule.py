"""Who gets which task: order, queues, steals, copies, failures, and that each task ends exactly once."""

from __future__ import annotations

import pytest
from fakes import task
from hypothesis import given, settings
from hypothesis import strategies as st

from selfedit.execution.schedule import DEATHS, SLOW, TRIES, Schedule
from selfedit.execution.tasks import TaskResult


def schedule(*milliseconds: int, workers: int = 2, **arguments: float) -> Schedule:
    """Tasks u/0, u/1, ... of these costs, and workers w0, w1, ... on machines m0, m1, ..."""
    made = Schedule([task(f"u/{k}", milliseconds=cost) for k, cost in enumerate(milliseconds)], **arguments)
    for number in range(workers):
        made.join(f"w{number}", f"m{number}")
    return made


def taken(made: Schedule, worker: str, now: float = 0.0) -> str | None:
    assignment = made.take(worker, now)
    return assignment.task.id if assignment else None


def test_the_longest_task_goes_first() -> None:
    made = schedule(100, 300, 200, workers=3)
    assert [taken(made, f"w{k}") for k in range(3)] == ["u/1", "u/2", "u/0"]


def test_a_second_task_is_given_only_while_there_are_enough() -> None:
    made = schedule(*[100] * 5)
    assert taken(made, "w0") == "u/0"
    assert taken(made, "w0") == "u/1"
    assert taken(made, "w0") is None
    assert taken(made, "w1") == "u/2"
    assert taken(made, "w1") is None  # two are left for two workers
    assert made.waiting == 2


def test_an_idle_worker_takes_what_waits_behind_another() -> None:
    made = schedule(*[100] * 4)
    assert [taken(made, "w0"), taken(made, "w0")] == ["u/0", "u/1"]
    for expected in ("u/2", "u/3"):
        assert taken(made, "w1") == expected
        assert made.finish("w1", expected, 1.0)
    stolen = made.take("w1", 1.0)
    assert stolen is not None
    assert (stolen.task.id, stolen.taken_from) == ("u/1", "w0")
    assert made.finish("w1", "u/1", 2.0)
    assert made.finish("w0", "u/0", 2.0)
    assert made.done


def test_a_stolen_task_that_was_begun_after_all_counts_once() -> None:
    made = schedule(*[100] * 4)
    for _ in range(2):
        taken(made, "w0")
    for _ in range(2):
        made.finish("w1", str(taken(made, "w1")), 1.0)
    assert taken(made, "w1") == "u/1"
    made.finish("w0", "u/0", 2.0)
    assert made.finish("w0", "u/1", 3.0)  # it had begun before it heard
    assert not made.finish("w1", "u/1", 3.5)
    assert made.done


def test_a_worker_keeps_to_its_policy_and_goes_on_rather_than_back() -> None:
    made = Schedule(
        [
            task("base", milliseconds=500),
            task("base-short", milliseconds=50),
            task("one", milliseconds=400, policy=("r1",)),
            task("two", milliseconds=300, policy=("r1", "r2")),
        ]
    )
    made.join("w", "m")
    order = []
    for _ in range(4):
        order.append(str(taken(made, "w")))
        made.finish("w", order[-1], 0.0)
    assert order == ["base", "base-short", "one", "two"]


def test_a_slow_task_is_copied_for_an_idle_worker_and_the_second_result_dropped() -> None:
    made = schedule(*[100] * 5, slow_seconds=0.0)
    assert taken(made, "w0", 0.0) == "u/0"
    for second in range(4):
        name = taken(made, "w1", second)
        assert made.finish("w1", str(name), second + 1.0)
    # The others took one second each.
    assert made.take("w1", SLOW - 0.1) is None
    copy = made.take("w1", SLOW + 0.1)
    assert copy is not None
    assert (copy.task.id, copy.copied_from) == ("u/0", "w0")
    made.join("w2", "m2")
    assert made.take("w2", 100.0) is None  # one copy is enough
    assert made.finish("w1", "u/0", 6.0)
    assert made.done
    assert not made.finish("w0", "u/0", 7.0)


def test_short_tasks_are_not_copied_for_a_hiccup() -> None:
    made = schedule(*[100] * 5, slow_seconds=10.0)
    taken(made, "w0", 0.0)
    for _ in range(4):
        made.finish("w1", str(taken(made, "w1", 0.0)), 0.01)
    assert made.take("w1", 9.0) is None
    assert made.take("w1", 11.0) is not None


def test_a_task_that_raises_is_tried_elsewhere_and_given_up_after_three_times() -> None:
    made = schedule(300, 100)
    assert taken(made, "w0") == "u/0"
    assert made.fail("w0", "u/0", "a bad device", 0.0) is None
    assert taken(made, "w0") == "u/1"  # the longer one waits for the other machine
    assert taken(made, "w1") == "u/0"
    assert made.fail("w1", "u/0", "a bad device", 0.0) is None
    assert taken(made, "w1") == "u/0"  # it failed everywhere, so anywhere will do
    given_up = made.fail("w1", "u/0", "a bad day", 0.0)
    assert given_up is not None
    assert given_up.task_id == "u/0"
    assert given_up.error == f"failed {TRIES} times, at last with a bad day"
    assert made.finish("w0", "u/1", 1.0)
    assert made.done


def test_memory_is_halved_each_time_it_ran_out() -> None:
    made = schedule(100, workers=1)
    for halvings in range(TRIES):
        assignment = made.take("w0", 0.0)
        assert assignment is not None
        assert assignment.halvings == halvings
        made.fail("w0", "u/0", "out of memory", 0.0, out_of_memory=True)
    assert made.done


def test_what_a_lost_worker_held_goes_back_and_only_the_task_under_way_is_blamed() -> None:
    made = schedule(*[100] * 6)
    assert [taken(made, "w0"), taken(made, "w0")] == ["u/0", "u/1"]
    assert made.leave("w0", "killed", 1.0) == []
    assert made.waiting == 6
    results: list[TaskResult] = []
    for life in range(1, DEATHS):
        made.join("w0", "m0")
        assert taken(made, "w0") == "u/0", life
        results += made.leave("w0", "killed", 2.0)
    assert [result.task_id for result in results] == ["u/0"]
    assert str(results[0].error).startswith(f"{DEATHS} workers died at it")
    assert made.left == 5


def test_a_machine_that_is_gone_blames_nobody() -> None:
    made = schedule(100, workers=0)
    for _ in range(2 * DEATHS):
        made.join("w0", "m0")
        assert taken(made, "w0") == "u/0"
        assert made.leave("w0", "gone", 1.0, blame=False) == []
    assert made.left == 1


@settings(max_examples=200, deadline=None)
@given(costs=st.lists(st.integers(1, 50), min_size=1, max_size=30), data=st.data())
def test_whatever_happens_each_task_ends_exactly_once(costs: list[int], data: st.DataObject) -> None:
    made = schedule(*costs, workers=0, slow_seconds=0.0)
    held: dict[str, list[str]] = {}
    ended: list[str] = []
    now, lives = 0.0, 0
    for _ in range(1000):
        now += data.draw(st.floats(0.1, 5.0))
        idle = [w for w in held if not held[w]]
        what = data.draw(st.sampled_from(["join", "finish", "finish", "finish", "fail", "leave"]))
        if not held or (what == "join" and len(held) < 5):
            lives += 1
            made.join(f"w{lives}", f"m{lives % 3}")
            held[f"w{lives}"] = []
        elif what == "leave":
            worker = data.draw(st.sampled_from(sorted(held)))
            ended += [r.task_id for r in made.leave(worker, "lost", now, blame=data.draw(st.booleans()))]
            del held[worker]
        elif len(idle) < len(held):
            worker = data.draw(st.sampled_from(sorted(w for w in held if held[w])))
            name = held[worker].pop(0)
            if what == "fail":
                result = made.fail(worker, name, "raised", now)
                ended += [result.task_id] if result else []
            elif made.finish(worker, name, now):
                ended.append(name)
        for worker in held:
            while (assignment := made.take(worker, now)) is not None:
                if assignment.taken_from is not None and data.draw(st.booleans()):
                    held[assignment.taken_from].remove(assignment.task.id)  # else the news comes too late
                held[worker].append(assignment.task.id)
        if made.done:
            break
    assert sorted(ended) == sorted(f"u/{k}" for k in range(len(costs)))
    assert made.left == 0


def test_an_unknown_worker_is_an_error() -> None:
    with pytest.raises(KeyError):
        schedule(100).take("w9", 0.0)
