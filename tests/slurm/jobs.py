"""Jobs of a real SLURM: submit a template, see its turns as sacct does, signal it, wait for its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from ferdist.config import Config, to_dict
from tests.conftest import PATIENCE, ROOT

ENDS: Final = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"),
)
"""States after which a job does not come back."""


def ask(*command: str) -> str:
    """What a command of SLURM prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Job:
    """A job, or an element of an array (``12_3``).

    Attributes:
        id: as sbatch printed it.
        log: what the job's script and its processes wrote.
    """

    id: str
    log: Path

    def turns(self) -> list[str]:
        """The state of each turn: a job that was requeued has one more."""
        lines = self.fields("State").splitlines()
        return [line.split()[0] for line in lines]  # `CANCELLED by 0`

    def fields(self, names: str) -> str:
        """Fields of sacct, a line for each turn."""
        options = ("--allocations", "--duplicates", "--noheader", "--parsable2")
        return ask("sacct", *options, f"--jobs={self.id}", f"--format={names}")

    def output(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else "(no log)"

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for something that comes before the job's end."""
        limit = time.monotonic() + PATIENCE
        while not condition():
            turns = self.turns()
            assert not (turns and turns[-1] in ENDS and not condition()), f"{turns}: {self.output()}"
            assert time.monotonic() < limit, f"never came about, {turns}: {self.output()}"
            time.sleep(0.1)

    def wait_for_turn(self, count: int) -> None:
        """Wait until turn number ``count`` has been recorded: the one before it was ended."""
        self.wait_until(lambda: len(self.turns()) >= count)

    def end(self) -> list[str]:
        """Wait for the end; the states of its turns."""
        limit = time.monotonic() + PATIENCE
        while not (turns := self.turns()) or turns[-1] not in ENDS:
            assert time.monotonic() < limit, f"still {turns}: {self.output()}"
            time.sleep(0.2)
        return turns

    def leaves_the_queue(self) -> None:
        """Wait until its last process has gone; its state is recorded before."""
        limit = time.monotonic() + PATIENCE
        while ask("squeue", "--noheader", f"--jobs={self.id}", "--states=all", "--format=%T").endswith("ING"):
            assert time.monotonic() < limit, f"still in the queue: {self.output()}"
            time.sleep(0.1)

    def completes(self) -> list[str]:
        """Wait for a good end; the states of its turns."""
        turns = self.end()
        assert turns[-1] == "COMPLETED", f"{turns}: {self.output()}"
        return turns

    def signal(self, name: str) -> None:
        """Send a signal to the job's processes, as SLURM does before a time limit."""
        ask("scancel", f"--signal={name}", self.id)

    def lift_time_limit(self) -> None:
        """Give the job an hour, in this turn and the next ones."""
        ask("scontrol", "update", f"JobId={self.id}", "TimeLimit=60")

    def kill_ranks(self, *ranks: int) -> None:
        """SIGKILL to ranks, at once: srun ends the others when it sees that one has died."""
        for pid in [self._rank(rank) for rank in ranks]:
            with suppress(ProcessLookupError):  # srun may have been that fast
                os.kill(pid, signal.SIGKILL)

    def _rank(self, rank: int) -> int:
        """The process id of a rank."""
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes()
                variables = (process / "environ").read_text(errors="replace").split("\0")
            except OSError:
                continue
            values = dict(pair.split("=", 1) for pair in variables if "=" in pair)
            array, element = values.get("SLURM_ARRAY_JOB_ID"), values.get("SLURM_ARRAY_TASK_ID")
            number = f"{array}_{element}" if array else values.get("SLURM_JOB_ID")
            # srun and the shell around it carry the same variables and words, but are not Python; python of a
            # template is found on the path.
            python = command.partition(b"\0")[0].rpartition(b"/")[2].startswith(b"python")
            if python and number == self.id and values.get("SLURM_PROCID") == str(rank):
                return int(process.name)
        raise AssertionError(f"job {self.id} has no rank {rank}")


def submit(template: str, config: Config, *arguments: str, options: Sequence[str] = ()) -> Job:
    """Send a template of slurm/ with a config and its run folder.

    Args:
        template: its file's name.
        config: of the run; ``run_dir`` becomes the template's RUN_DIR.
        arguments: overrides of the config.
        options: of sbatch.
    """
    folder = Path(config.run_dir)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(to_dict(config)))
    return sbatch(
        ROOT / "slurm" / template, str(file), str(folder), *arguments, folder=folder, options=options
    )


def sbatch(script: Path, *arguments: str, folder: Path, options: Sequence[str] = ()) -> Job:
    """Send a script; its log is beside ``folder``."""
    log = folder.with_suffix(".log")
    done = subprocess.run(
        ["sbatch", "--parsable", f"--output={log}", *options, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
        env={**os.environ, "FERDIST_VENV": sys.prefix, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Job(done.stdout.strip(), log)
