"""Small runs as real processes, and the unbroken ones that they are compared with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ferdist.config import Config
from ferdist.data import prepare
from tests.faults import processes
from tests.faults.processes import Training, finish, small_config


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show how each fault ended."""
    if processes.ENDS:
        terminalreporter.write_sep("=", "fault | seconds to its end | exit code | what is left")
        for line in processes.ENDS:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the ends over where this is a worker of pytest-xdist."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["ends"] = processes.ENDS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the ends over from a worker of pytest-xdist."""
    processes.ENDS.extend(getattr(node, "workeroutput", {}).get("ends", []))


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A beton of 140 drawn faces."""
    return prepare.synthetic(tmp_path_factory.mktemp("faces"), images=140, seed=1)


@pytest.fixture(scope="session")
def whole(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of one process that nothing interrupted."""
    yield from _whole(faces, tmp_path_factory, 0)


@pytest.fixture(scope="session")
def whole_of_two(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run of two processes that nothing interrupted."""
    yield from _whole(faces, tmp_path_factory, 2)


def _whole(faces: Path, tmp_path_factory: pytest.TempPathFactory, count: int) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("whole")
    finish(small_config(faces, place / "run"), count)
    yield place / "run"
    shutil.rmtree(place)


@pytest.fixture
def small(faces: Path, place: Path) -> Callable[..., Config]:
    """Configs of small runs: ``small("train.lr=1", run="name")``."""

    def make(*overrides: str, run: str = "run") -> Config:
        return small_config(faces, place / run, *overrides)

    return make


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Training]]:
    """Start a `Training`; what still runs after the test is ended."""
    started: list[Training] = []

    def begin(*arguments: object, **options: object) -> Training:
        started.append(Training(*arguments, **options))  # type: ignore[arg-type]
        return started[-1]

    yield begin
    for training in started:
        training.close()
