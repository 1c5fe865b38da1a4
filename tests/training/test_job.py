"""What a job of submitit does with a training's end: which stops ask for a requeue, and how a rank leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, LocalJobEnvironment

from ferdist.config import Config, to_dict
from ferdist.data.beton import Batch
from ferdist.errors import Preempted
from ferdist.training import job as job_module
from ferdist.training.engine import Engine
from ferdist.training.job import TrainingJob
from ferdist.training.preemption import StopRequest
from ferdist.training.run import run
from tests.conftest import PATIENCE, ROOT

Tiny = Callable[..., Config]


@pytest.mark.parametrize(
    ("signals", "requeue"),
    [
        ((signal.SIGUSR2,), True),
        ((signal.SIGTERM,), False),
        ((signal.SIGTERM, signal.SIGUSR2), True),
        ((signal.SIGUSR2, signal.SIGTERM), True),
    ],
)
def test_sigusr2_asks_for_a_requeue_and_sigterm_alone_does_not(
    signals: tuple[signal.Signals, ...], requeue: bool
) -> None:
    request = StopRequest()
    assert (request.stop, request.requeue) == (False, False)
    for number in signals:
        request.note(number, None)
    assert (request.stop, request.requeue) == (True, requeue)


def test_ctrl_c_again_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun passes the terminal's SIGINT on: two at once are one."""
    request, now = StopRequest(), iter([0.0, 0.5, 9.0])
    monkeypatch.setattr("ferdist.training.preemption.time.monotonic", lambda: next(now))
    for _ in range(2):
        request.note(signal.SIGINT, None)
    assert (request.stop, request.requeue) == (True, False)
    with pytest.raises(KeyboardInterrupt):
        request.note(signal.SIGINT, None)


@pytest.mark.parametrize(("number", "requeue"), [(signal.SIGUSR2, True), (signal.SIGTERM, False)])
def test_a_stopped_run_says_whether_it_is_wanted_again(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, requeue: bool
) -> None:
    config = tiny()
    step = Engine.train_step

    def stop(self: Engine, batches: list[Batch]) -> None:
        step(self, batches)
        if self.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Engine, "train_step", stop)
    with pytest.raises(Preempted, match="stopped by a signal at step 2; start it again") as end:
        run(config)
    assert end.value.requeue is requeue


def test_a_job_without_a_new_checkpoint_is_not_requeued(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would come back to the same point for ever."""
    config = tiny()
    monkeypatch.setattr(Engine, "is_sound", lambda self: False)
    step = Engine.train_step

    def stop(self: Engine, batches: list[Batch]) -> None:
        step(self, batches)
        os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(Engine, "train_step", stop)
    with pytest.raises(Preempted) as end:
        run(config)
    assert end.value.requeue is False


def local_environment(monkeypatch: pytest.MonkeyPatch, number: int, rank: int, size: int) -> None:
    values = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": str(number),
        "SUBMITIT_LOCAL_NTASKS": str(size),
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_GLOBALID": str(rank),
        "SUBMITIT_LOCAL_LOCALID": str(rank),
    }
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "7")  # left over from elsewhere, and put back after the test
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_the_ranks_of_a_job_get_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    local_environment(monkeypatch, 4711, rank=1, size=2)
    job_module._export_ranks(LocalJobEnvironment())
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [os.environ[name] for name in names] == ["1", "2", "1", "2", "127.0.0.1"]
    ports = []
    for number in (8_999, 9_000, 9_001):
        local_environment(monkeypatch, number, rank=0, size=2)
        job_module._export_ranks(LocalJobEnvironment())
        ports.append(int(os.environ["MASTER_PORT"]))
    assert len(set(ports)) == 3
    assert all(20_000 <= port < 29_000 for port in ports)


def test_the_requeue_is_tried_again_while_the_controller_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Away(LocalJobEnvironment):
        """Its controller is back at the third try."""

        tries = 0

        def _requeue(self, countdown: int) -> None:
            self.tries += 1
            if self.tries < 3:
                raise subprocess.CalledProcessError(1, ["scontrol", "requeue"])
            super()._requeue(countdown)

    local_environment(monkeypatch, 1, rank=0, size=1)
    monkeypatch.setattr(job_module, "_REQUEUE_PAUSE", 0.0)
    assert job_module._requeue(Away()) == LOCAL_REQUEUE_RETURN_CODE
    assert capsys.readouterr().err.count("to requeue") == 2


def test_a_failed_rank_that_hangs_is_ended() -> None:
    code = "from ferdist.training.job import _die_in; _die_in(1); import time; time.sleep(9999)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=PATIENCE, check=False)
    assert done.returncode == -signal.SIGALRM


def test_a_job_comes_up_without_torch() -> None:
    """submitit sets its handlers after it has read the job: until then SIGUSR2 kills."""
    code = "import sys, ferdist.training.job; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=PATIENCE, check=False)
    assert done.returncode == 0


def test_a_job_trains_and_answers_with_its_results(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tiny("train.epochs=1")
    local_environment(monkeypatch, 1, rank=0, size=1)
    assert TrainingJob(to_dict(config), threads=1)() == str(Path(config.run_dir) / "results.json")
