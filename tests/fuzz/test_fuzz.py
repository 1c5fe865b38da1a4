"""Changed files end in a result or in one line; and the harness finds what does neither."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ferdist.errors import DataError
from tests.conftest import start
from tests.fuzz import run as harness
from tests.fuzz.change import Change, Special
from tests.fuzz.run import keep, kept, run
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.slow
def test_cases_of_each_target() -> None:
    ended = start("tests.fuzz", "--cases", "100")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_cases_that_failed_once() -> None:
    ended = start("tests.fuzz", "--kept")
    assert ended.returncode == 0, ended.stdout + ended.stderr


def refuse(reason: str) -> None:
    raise DataError(reason)


def fill_memory() -> None:
    with mmap.mmap(-1, 64 * 2**20) as block:
        block.write(b"x" * len(block))


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda: None, "accepted"),
        (lambda: refuse("x.csv: empty: get it again"), "refused"),
        (lambda: refuse(" "), "unexpected"),
        (lambda: {}["key"], "unexpected"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
        (lambda: os._exit(0), "crash"),
        (lambda: sum(iter(int, 1)), "hang"),
        (signal.pause, "hang"),
        (fill_memory, "memory"),
    ],
)
def test_outcomes(
    read: Callable[[], object], outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"CPU_SECONDS": 0.3, "WALL_SECONDS": 1.0}  # for hangs alone: a busy machine slows the rest, too
    for name, limit in (short if outcome == "hang" else {"GROWTH_LIMIT": 32 * 2**20}).items():
        monkeypatch.setattr(harness, name, limit)
    target = Target(lambda folder: None, lambda folder: (folder / "now").exists() and read())
    tally = run(target, {"case 1": lambda: {"now": b""}, "case 2": dict}, lambda done: None)
    fine = {"accepted": 1} if outcome != "accepted" else {"accepted": 2}
    assert {name: times for name, times in tally.ends.items() if times} == {outcome: 1} | fine


def test_a_name_gives_the_same_case_each_time() -> None:
    valid = {"a.json": b'{"x": [1, 2.5, "y"]}', "b.csv": b"a,b\n1,2\n", "c.bin": bytes(range(200))}
    made = [TARGETS["lists"].case(f"lists {number}", valid) for number in range(1, 60)]
    assert made == [TARGETS["lists"].case(f"lists {number}", valid) for number in range(1, 60)]
    assert len({str(case) for case in made}) > 50
    assert Change("lists 1").value() == Change("lists 1").value()


def test_a_case_can_be_kept(tmp_path: Path) -> None:
    files = {"run/a.json": b"{}", "b": Special.FIFO}
    keep(tmp_path / "lists-1.zip", files)
    assert kept(tmp_path / "lists-1.zip") == files
