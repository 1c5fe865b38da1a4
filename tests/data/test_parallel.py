from __future__ import annotations

import threading
from itertools import count

import pytest

from ferdist.data import parallel
from ferdist.data.parallel import in_order


def test_results_come_in_order_and_only_a_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "THREADS", 3)
    taken, later = [], threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert later.wait(60), "the first item ends after one that came later"
        if item == 2:
            later.set()
        return item

    def items() -> object:
        for item in count():  # without end
            taken.append(item)
            yield item

    results = in_order(work, items())
    assert [next(results) for _ in range(100)] == list(range(100))
    assert len(taken) <= 100 + 3 * 8
    results.close()


def test_the_first_error_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "THREADS", 2)
    done = []

    def work(item: int) -> int:
        if item % 10 == 5:
            raise ValueError(item)
        done.append(item)
        return item

    results = in_order(work, range(1000))
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match=r"^5$"):
        next(results)
    assert len(done) < 50
    assert not [thread.name for thread in threading.enumerate() if "ThreadPool" in thread.name]
