"""What the tests share: drawn faces as a beton, the real data where they are, commands as users give them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ferdist.config import Config, load_config
from ferdist.data import prepare
from tests.forking import ROOT, Forked, ranks

PATIENCE = 1200.0
"""Seconds to wait for what will come, however busy the machine is: a limit against hanging, not a verdict."""


class Progress:
    """A line for each file of tests that is done, in place of a dot for each test.

    Attributes:
        left: tests of each file that are still to end.
        ends: outcomes of each file's tests.
        seconds: that each file's tests took.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.left: Counter[str] = Counter()
        self.ends: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: Counter[str] = Counter()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count the tests of each file, where there is one process."""
        self.left.update(item.nodeid.partition("::")[0] for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        """Count the tests of each file, which all processes have collected."""
        if not self.left:
            self.left.update(name.partition("::")[0] for name in ids)

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Neither a dot nor a letter for what did not fail."""
        return (report.outcome if report.when == "call" else "", "", "") if report.passed else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test, and print its file's line after the last one."""
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += report.duration  # type: ignore[assignment]
        if report.when == "call" or not report.passed:
            self.ends[file][report.outcome] += 1
        if report.when == "teardown":
            self.left[file] -= 1
            if not self.left[file]:
                ends = ", ".join(f"{number} {outcome}" for outcome, number in self.ends[file].items())
                line = f"{file}: {ends}, {self.seconds[file]:.0f} s"
                self._config.get_terminal_writer().line(line)


def pytest_configure(config: pytest.Config) -> None:
    """Show progress by files, in the process that a person sees."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("FERDIST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}: set FERDIST_DATA")
    return folder


@pytest.fixture(scope="session")
def beton_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A beton of 420 drawn faces, with splits and folds; read-only for the tests."""
    return prepare.synthetic(tmp_path_factory.mktemp("synthetic"), images=420, seed=1)


TINY = (
    "model.stem=imagenet",  # the fastest: feature maps of 12 pixels at most
    "model.width=8",
    "data.batch_size=32",
    "train.epochs=2",
    "train.precision=fp32",
    "train.log_every=3",
    "train.ema=0.9",
    "device=cpu",
)
"""Overrides that make a run of a few seconds."""


@pytest.fixture
def tiny(beton_path: Path, tmp_path: Path) -> Callable[..., Config]:
    """Configs of runs of a few seconds: ``tiny("train.lr=1", run="name")``."""

    def make(*overrides: str, run: str = "run") -> Config:
        places = (f"data.path={beton_path}", f"run_dir={tmp_path / run}")
        return load_config(ROOT / "configs" / "base.yaml", [*TINY, *places, *overrides])

    return make


KINDS = ("square", "patch", "eye_band", "mask", "gaussian_noise")


@pytest.fixture(scope="session")
def evaluated_run(beton_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few seconds on drawn faces, scored on val as they are and under a cell of each sort of
    ``KINDS``; read-only for the tests."""
    from ferdist.evaluation.benchmark import grid
    from ferdist.evaluation.evaluate import Plan, evaluate
    from ferdist.training.run import run

    folder = tmp_path_factory.mktemp("runs") / "drawn"
    own = (f"data.path={beton_path}", f"run_dir={folder}", "train.epochs=1")
    run(load_config(ROOT / "configs" / "base.yaml", [*TINY, *own]))
    evaluate(str(folder), plan=Plan(grid(KINDS, ["zero"])), device="cpu")
    return folder


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed; of several ranks the first code that is not 0."""

    returncode: int
    stdout: str
    stderr: str


def start(*arguments: str, processes: int = 0, **environment: str) -> Ended:
    """Run ``python -m ARGUMENTS`` to its end, as so many ranks where ``processes`` is given."""
    with tempfile.TemporaryDirectory() as place:
        files = {name: Path(place) / name for name in ("stdout", "stderr")}
        started = [
            Forked(arguments, environment={**environment, **variables}, **files)
            for variables in (ranks(processes) if processes else [{}])
        ]
        codes = [process.wait(PATIENCE) for process in started]
        return Ended(next(filter(None, codes), 0), *(file.read_text() for file in files.values()))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that is removed after the test: checkpoints are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium, as playwright drives it."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[test]'")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is on the path")
    with driver.sync_playwright() as started:
        program = started.chromium.launch(
            executable_path=found, args=["--no-sandbox"], timeout=1000 * PATIENCE
        )
        yield program
        program.close()
