"""Work that comes in while threads are busy goes together; everybody has an outcome of its own."""

import gevent
import pytest
from gevent.event import Event

from mailsrv.errors import TemporaryFailure
from mailsrv.mail.together import MOST_TOGETHER, Together


class Work:
    """Remembers its lots, and waits to be let go."""

    def __init__(self, at_once=1, **more):
        self.lots, self.go, self.at_once = [], Event(), at_once
        self.together = Together(self.run, lambda: self.at_once, **more)

    def run(self, items):
        self.lots.append(list(items))
        assert self.go.wait(20)
        return [ValueError(one) if one.startswith("bad") else f"did {one}" for one in items]

    def begin(self, *names):
        greenlets = [gevent.spawn(self.together, name) for name in names]
        gevent.idle()
        return greenlets

    def end(self, greenlets):
        self.go.set()
        gevent.joinall(greenlets, timeout=60)
        assert all(one.ready() for one in greenlets)


@pytest.fixture
def work():
    return Work()


def test_one_alone_does_not_wait_and_those_who_come_meanwhile_go_together(work):
    names = [f"n{number}" for number in range(MOST_TOGETHER + 5)]
    greenlets = work.begin(*names)
    assert work.lots == [["n0"]]
    work.end(greenlets)
    assert work.lots == [names[:1], names[1 : MOST_TOGETHER + 1], names[MOST_TOGETHER + 1 :]]
    assert [one.value for one in greenlets] == [f"did {name}" for name in names]


def test_what_fails_of_one_is_no_concern_of_the_others(work):
    greenlets = work.begin("first", "one", "bad", "two")
    work.end(greenlets)
    assert [one.value for one in greenlets] == ["did first", "did one", None, "did two"]
    assert isinstance(greenlets[2].exception, ValueError)


def test_several_lots_at_once_where_that_is_allowed():
    work = Work(at_once=2)
    greenlets = work.begin("a", "b", "c", "d")
    assert work.lots == [["a"], ["b"]]
    work.end(greenlets)
    assert work.lots == [["a"], ["b"], ["c", "d"]]


def test_more_at_once_as_soon_as_that_is_allowed_and_fewer_again(work):
    greenlets = work.begin("a", "b", "c")
    work.at_once = 2
    greenlets += work.begin("d")
    assert work.lots == [["a"], ["b", "c", "d"]]
    work.at_once = 1
    greenlets += work.begin("e", "f")
    work.end(greenlets)
    assert work.lots == [["a"], ["b", "c", "d"], ["e", "f"]]


def test_who_ends_while_waiting_holds_nobody_up(work):
    first, second, third = work.begin("a", "b", "c")
    second.kill()
    work.end([first, third])
    assert work.lots == [["a"], ["c"]] and third.value == "did c"


def test_who_ends_at_work_leaves_the_lot_to_be_tried_again(work):
    greenlets = work.begin("a", "b", "c")
    work.at_once = 2
    [worker] = work.begin("d")
    assert work.lots[-1] == ["b", "c", "d"]
    worker.kill()
    gevent.joinall(greenlets[1:], timeout=60)
    assert [type(one.exception) for one in greenlets[1:]] == [TemporaryFailure] * 2
    again = work.begin("e")
    work.end([greenlets[0], *again])
    assert greenlets[0].value == "did a" and again[0].value == "did e"


def test_what_may_be_done_again_is_done_again_when_who_worked_has_ended():
    work = Work(again=True)
    greenlets = work.begin("a", "b", "c")
    work.at_once = 2
    [worker] = work.begin("d")
    assert work.lots[-1] == ["b", "c", "d"]
    greenlets.pop(1).kill()  # who only waits for its outcome leaves the others theirs
    worker.kill()
    gevent.idle()
    assert work.lots[-1] == ["c"]
    work.end(greenlets)
    assert [one.value for one in greenlets] == ["did a", "did c"] and work.together.idle


def test_what_fails_by_our_mistake_fails_for_each_by_itself():
    def fail(items):
        gevent.sleep(0)
        raise ZeroDivisionError(items)

    together = Together(fail, lambda: 1, again=True)
    greenlets = [gevent.spawn(together, name) for name in "abcd"]
    gevent.joinall(greenlets, timeout=60)
    assert [type(one.exception) for one in greenlets] == [ZeroDivisionError] * 4 and together.idle


def test_who_ends_at_work_for_others_alone_holds_nobody_up(work):
    """It came when a lot was about to begin that was full without it."""
    first, *full = work.begin("first", *(f"n{number}" for number in range(MOST_TOGETHER)))
    work.at_once = 2
    [last] = work.begin("last")
    assert work.lots[-1] == [f"n{number}" for number in range(MOST_TOGETHER)]
    work.at_once = 1
    [late] = work.begin("late")
    last.kill()
    work.end([first, *full, late])
    assert late.value == "did late" and "last" not in work.lots[-1]


def test_many_at_all_times(work):
    """None is lost, none is done twice, whatever the order."""
    work.go.set()
    greenlets = []
    for number in range(300):
        greenlets.append(gevent.spawn_later(number % 7 / 1000, work.together, f"n{number}"))
        work.at_once = 1 + number % 3
    work.end(greenlets)
    assert sorted(one.value for one in greenlets) == sorted(f"did n{number}" for number in range(300))
    assert sorted(one for lot in work.lots for one in lot) == sorted(f"n{number}" for number in range(300))
