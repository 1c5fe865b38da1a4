"""Where the campaign's commands run: a file system of their own, processes that can be killed as a whole."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ferdist.errors import FerdistError
from tests.faults.processes import children, wait_until_gone
from tests.forking import ROOT, Forked, ranks

HANG = 600.0
"""Seconds after which a command that has not ended hangs."""
NAMESPACE = "FERDIST_TEST_NAMESPACE"
"""Variable that is set where this process has a mount namespace of its own."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: of its first process that failed; None where it hung and was killed.
        errors: what it wrote to stderr.
        seconds: that it took.
    """

    code: int | None
    errors: str
    seconds: float

    @property
    def said(self) -> str:
        """Its last line."""
        return self.errors.strip().rpartition("\n")[2]

    @property
    def refused(self) -> bool:
        """Whether it ended as promised where it cannot go on: with a line that says why."""
        unexpected = "ferdist: unexpected" in self.errors or "Traceback" in self.errors
        return self.code == 1 and self.said.startswith("ferdist") and not unexpected


class Started:
    """A command that runs.

    Args:
        arguments: of ``python -m``.
        log: file for its stderr.
        size: ranks; 0 for one process that is not told of others.
        real: start a Python, or torchrun, of its own; otherwise fork processes that have made the imports.
    """

    def __init__(self, arguments: Sequence[str], log: Path, *, size: int = 0, real: bool = False) -> None:
        log.write_text("")
        self._log, self._begin = log, time.monotonic()
        self._processes: list[Forked] | list[subprocess.Popen[bytes]]
        if real:
            torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"]
            command = [sys.executable, "-m", *(torchrun if size else ()), *arguments]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with log.open("a") as errors:
                self._processes = [
                    subprocess.Popen(
                        command, stdout=subprocess.DEVNULL, stderr=errors, cwd=ROOT, env=environment
                    )
                ]
        else:
            variables = ranks(size) if size else [{}]
            self._processes = [Forked(arguments, environment=one, stderr=log) for one in variables]

    @property
    def pids(self) -> list[int]:
        """Of what was started: torchrun, or each rank."""
        return [process.pid for process in self._processes]

    def rank(self, number: int) -> int:
        """The process id of a rank."""
        if len(self._processes) > 1:
            return self._processes[number].pid
        own = f"\0RANK={number}\0".encode()
        found = (pid for pid in children(self.pids[0]) if own in Path(f"/proc/{pid}/environ").read_bytes())
        return next(found, self.pids[0])  # torchrun has not started it yet

    def running(self) -> bool:
        """Whether one of its processes has not ended."""
        return any(process.poll() is None for process in self._processes)

    def kill(self, *, alone: bool = False) -> Ended:
        """SIGKILL to all of its processes and theirs, or to those alone that were started."""
        running = [process.pid for process in self._processes if process.poll() is None]
        pids = running if alone else [one for pid in running for one in _stopped(pid)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        wait_until_gone(pids)
        return self._ended()

    def end(self) -> Ended:
        """Wait for the end; what hangs is killed."""
        try:
            for process in self._processes:
                process.wait(max(0.0, self._begin + HANG - time.monotonic()))
        except subprocess.TimeoutExpired:
            return Ended(None, self.kill().errors, HANG)
        return self._ended()

    def _ended(self) -> Ended:
        codes = [process.wait() for process in self._processes]
        errors = self._log.read_text(errors="replace")
        return Ended(next(filter(None, codes), 0), errors, time.monotonic() - self._begin)


def _stopped(pid: int) -> list[int]:
    """A process and all below it, stopped before its children are listed, so that it gets no new ones."""
    try:
        os.kill(pid, signal.SIGSTOP)
        return [pid, *(one for child in children(pid) for one in _stopped(child))]
    except (ProcessLookupError, FileNotFoundError):
        return []


class Disk:
    """A tmpfs that is seen at ``view``, from where it can be taken away; a plain folder without mounts.

    Attributes:
        view: what the commands are given; the same for all, since results name it.
        mounts: whether file systems can be mounted.
    """

    def __init__(self, place: Path) -> None:
        self.view, self._store, self._kept = place / "view", place / "store", place / "kept"
        self.mounts = NAMESPACE in os.environ
        for folder in (self.view, self._store, self._kept):
            folder.mkdir()
        if self.mounts:
            _call("mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", str(self._store))
            _call("mount", "-t", "tmpfs", "-o", "ro,size=4k", "tmpfs", str(self.view))
            self.bring_back()

    def bring_back(self) -> None:
        """Show the tmpfs at ``view`` again."""
        _call("mount", "--bind", str(self._store), str(self.view))

    def take_away(self) -> None:
        """Detach it: an empty file system that is read-only is seen in its place."""
        _call("umount", "--lazy", str(self.view))

    def set_writable(self, writable: bool) -> None:
        """Let it be read-only, or not."""
        _call("mount", "-o", "remount,rw" if writable else "remount,ro", str(self._store))

    def leave_free(self, *, pages: int | None = None, inodes: int | None = None) -> None:
        """Let it have so many free pages or inodes; None for as many as anybody needs."""
        page, now = os.sysconf("SC_PAGE_SIZE"), self.used()
        size = 2**31 if pages is None else max(1, now[0] + pages) * page
        count = 10**6 if inodes is None else now[1] + inodes
        _call("mount", "-o", f"remount,size={size},nr_inodes={count}", str(self._store))

    def used(self) -> tuple[int, int]:
        """Pages and inodes that are taken."""
        found = os.statvfs(self.view)
        return found.f_blocks - found.f_bfree, found.f_files - found.f_ffree

    def clear(self) -> None:
        """Remove all."""
        for path in self.view.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def keep(self) -> str:
        """Remember what lies there; a name for it."""
        name = str(len(list(self._kept.iterdir())))
        shutil.copytree(self.view, self._kept / name, symlinks=True)
        return name

    def lay(self, name: str) -> None:
        """Let that lie there which was kept by a name."""
        self.clear()
        shutil.copytree(self._kept / name, self.view, symlinks=True, dirs_exist_ok=True)

    def names(self) -> set[str]:
        """All files and folders, by relative path; not TensorBoard's, which are named by time and process."""
        found = (path.relative_to(self.view) for path in self.view.rglob("*"))
        return {str(path) for path in found if not {"tb", "jobs"} & set(path.parts)}

    def close(self) -> None:
        """Unmount all."""
        if self.mounts:
            for path in (self.view, self.view, self._store):
                _call("umount", "--lazy", str(path))


Parts = dict[str, str]
"""What a state holds: a digest for each part that is to be the old or the new one as a whole."""


@dataclass(frozen=True)
class Command:
    """A command under test.

    Attributes:
        arguments: of ``python -m``; ``VIEW`` stands for the folder of the state.
        read: the parts of the state; raises a `FerdistError` where it is refused.
        before: the commands, one after another, that lay the state before; the first of them may be shared.
        kills: how often it is killed in a whole campaign.
        size: ranks; 0 for one process that is not told of others.
    """

    arguments: str
    read: Callable[[Path], Parts]
    before: tuple[str, ...]
    kills: int = 200
    size: int = 0

    @property
    def launches(self) -> bool:
        """Whether it starts jobs that can outlive it."""
        return self.arguments.startswith("launch")


@dataclass
class Measured:
    """An undisturbed run of a command, and the state before it.

    Attributes:
        old, new: the parts before and after it.
        names: of the files after it.
        seconds: that it took.
        pages, inodes, memory: the most that it used beyond what there was; memory is of addresses, in bytes.
    """

    old: Parts
    new: Parts = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    seconds: float = 0.0
    pages: int = 0
    inodes: int = 0
    memory: int = 0


class Lab:
    """Runs commands on states that it lays.

    Attributes:
        disk: where the states lie.
        pause: seconds of a SIGSTOP.
    """

    def __init__(self, disk: Disk, log: Path, pause: float) -> None:
        self.disk, self.pause, self._log = disk, pause, log
        self.measured = functools.cache(self._measured)
        self._laid = functools.cache(self._lay)

    def start(self, command: Command, *wrapper: object, real: bool = False) -> Started:
        """Start a command; a wrapper is what ``campaign_child`` is to do to it."""
        arguments = command.arguments.replace("VIEW", str(self.disk.view)).split()
        if wrapper:
            arguments = ["tests.faults.campaign_child", *map(str, wrapper), *arguments]
        return Started(arguments, self._log, size=command.size, real=real)

    def lay(self, command: Command) -> None:
        """Lay the state before a command."""
        self.disk.lay(self._laid(command.before))

    def _lay(self, before: tuple[str, ...]) -> str:
        """Run these commands and keep what they leave; its name."""
        *earlier, last = before
        if earlier:
            self.disk.lay(self._laid(tuple(earlier)))
        else:
            self.disk.clear()
        ended = self.start(Command(last, lambda _: {}, ())).end()
        assert ended.code == 0, f"{last}: {ended.errors}"
        return self.disk.keep()

    def _measured(self, command: Command, *wrapper: object, real: bool = False) -> Measured:
        self.lay(command)
        measured = Measured({})
        with suppress(FerdistError):
            measured.old = command.read(self.disk.view)
        pages, inodes = self.disk.used()
        started = self.start(command, *wrapper, real=real)
        memory = memory_of(started.pids[0])
        while started.running():
            used = self.disk.used()
            measured.pages = max(measured.pages, used[0] - pages)
            measured.inodes = max(measured.inodes, used[1] - inodes)
            with suppress(OSError):
                measured.memory = max(measured.memory, memory_of(started.pids[0]) - memory)
            time.sleep(0.002)
        ended = started.end()
        assert ended.code == 0, f"{command.arguments}: {ended.errors}"
        measured.new, measured.names = command.read(self.disk.view), self.disk.names()
        measured.seconds = ended.seconds
        return measured


def memory_of(pid: int) -> int:
    """Bytes of addresses that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def with_mounts() -> None:
    """Go on in a mount namespace of this process's own, where the system lets us."""
    unshare = ["unshare", "--mount", "--propagation=private"]
    unshare += [] if os.geteuid() == 0 else ["--map-root-user"]
    if NAMESPACE in os.environ or shutil.which("unshare") is None:
        return
    trial = [*unshare, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if not subprocess.run(trial, capture_output=True, check=False).returncode:
        os.environ[NAMESPACE] = "1"
        os.execvp("unshare", [*unshare, sys.executable, "-m", *sys.orig_argv[2:]])


def _call(*command: str) -> None:
    subprocess.run(command, check=True)
