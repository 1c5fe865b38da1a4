"""Cases in children that are forked after the imports, each with limits on its time and memory."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from ferdist.errors import FerdistError, printable
from tests.fuzz.change import Files, Special
from tests.fuzz.targets import Target

CPU_SECONDS: Final = 10.0
WALL_SECONDS: Final = 120.0
"""Other work can take a case's CPU from it, and what waits for ever takes none."""
GROWTH_LIMIT: Final = 2**30
"""Most bytes of resident memory that a case may add."""
ADDRESS_LIMIT: Final = 4 * 2**30
"""Most bytes of address space beyond those after the imports: a failing case does not fill the machine."""
PER_CHILD: Final = 500
"""Cases before a fresh child takes over, so that what they leave behind does not add up."""
FINE: Final = ("accepted", "refused")

Case = Callable[[], Files]


@dataclass
class Tally:
    """What became of a target's cases.

    Attributes:
        ends: number of cases by outcome.
        failures: what was wrong with each case that failed, by its name.
        growth: most resident memory that a case added, bytes.
        seconds: that all took.
    """

    ends: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((*FINE, "crash", "hang", "unexpected", "memory"), 0)
    )
    failures: dict[str, str] = field(default_factory=dict)
    growth: int = 0
    seconds: float = 0.0

    def add(self, name: str, outcome: str, fault: str, growth: int) -> None:
        """Count a case; case 0 is the valid files."""
        if name.endswith(" 0") and outcome == "refused":
            outcome, fault = "unexpected", f"valid files are refused: {fault}"
        self.ends[outcome] += 1
        self.growth = max(self.growth, growth)
        if outcome not in FINE:
            self.failures[name] = f"{outcome}: {fault}"


def run(target: Target, cases: Mapping[str, Case], progress: Callable[[int], object]) -> Tally:
    """Run cases, given by their names, one after another; ``progress`` is told how many are done."""
    tally, names, started = Tally(), list(cases), time.monotonic()
    done = 0
    while done < len(names):
        goal = min(done + PER_CHILD, len(names))
        receiving, sending = os.pipe()
        with tempfile.TemporaryDirectory(prefix="ferdist-fuzz-") as place:
            child = os.fork()
            if not child:
                part = {name: cases[name] for name in names[done:goal]}
                _serve(target, part, Path(place) / "case", sending)
            os.close(sending)
            with os.fdopen(receiving) as answers:
                for line in answers:
                    tally.add(*json.loads(line))
                    done += 1
            end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if done < goal:  # it ended in the middle of a case
            outcome = "hang" if end in (-signal.SIGPROF, -signal.SIGALRM) else "crash"
            fault = signal.Signals(-end).name if end < 0 else f"exit code {end}"
            tally.add(names[done], outcome, fault, 0)
            done += 1
        progress(done)
    tally.seconds = time.monotonic() - started
    return tally


def _serve(target: Target, cases: Mapping[str, Case], folder: Path, answers: int) -> NoReturn:
    """Be a child: a line of JSON for each case. A signal ends it where a case crashes or hangs."""
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        faulthandler.disable()
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)  # pytest handles the latter
        logging.disable()
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + ADDRESS_LIMIT,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for name, make in cases.items():
            Path("/proc/self/clear_refs").write_text("5")  # the highest resident size starts anew
            before = _memory("VmRSS")
            outcome, fault = _outcome(target, make, folder)
            growth = max(_memory("VmHWM") - before, 0)
            if outcome in FINE and growth > GROWTH_LIMIT:
                outcome, fault = "memory", f"{growth / 2**20:.0f} MiB"
            shutil.rmtree(folder, ignore_errors=True)
            os.write(answers, json.dumps([name, outcome, fault, growth]).encode() + b"\n")
        code = 0
    finally:
        os._exit(code)


def _outcome(target: Target, make: Case, folder: Path) -> tuple[str, str]:
    """The outcome of a case, and what is wrong with it; the timers end the process."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        write_files(folder, make())
        os.chdir(folder)
        target.read(folder)
        return "accepted", ""
    except FerdistError as error:
        line = str(error)
        one = line.strip() and line == printable(line)
        return ("refused", line) if one else ("unexpected", f"not one line: {printable(line[:200])}")
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in frames if "/ferdist/" in frame.filename] or frames
        place = f"{last[-1].filename.rpartition('/ferdist/')[2]}:{last[-1].lineno}"
        return "unexpected", printable(f"{place}: {type(error).__name__}: {error}"[:300])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _memory(name: str) -> int:
    """Bytes that /proc/self/status tells."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def write_files(folder: Path, files: Files) -> None:
    """Write a case's files into a new folder."""
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match content:
            case Special.FIFO:
                os.mkfifo(path)
            case Special.FOLDER:
                path.mkdir()
            case Special.DEVICE:
                path.symlink_to("/dev/zero")
            case Special.LOOP:
                path.symlink_to(path.name)
            case _:
                path.write_bytes(content)


def keep(path: Path, files: Files) -> None:
    """Keep a case as a zip; a member's comment says where it is no regular file."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.comment = content.encode() if isinstance(content, Special) else b""
            archive.writestr(info, b"" if info.comment else content, zipfile.ZIP_LZMA)


def kept(path: Path) -> Files:
    """The files of a kept case."""
    with zipfile.ZipFile(path) as archive:
        return {
            info.filename: Special(info.comment.decode()) if info.comment else archive.read(info)
            for info in archive.infolist()
        }
