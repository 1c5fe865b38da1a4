"""What a person watches goes on when its files are deleted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ferdist.config import Config
from ferdist.runtime.folder import RunFolder
from ferdist.training.monitor import Monitor


@pytest.fixture
def monitor(tmp_path: Path) -> Monitor:
    (tmp_path / "config.yaml").touch()
    return Monitor(RunFolder(tmp_path), Config(), 0, 10, 0.0)


def test_a_deleted_tensorboard_folder_is_begun_again(
    monitor: Monitor, caplog: pytest.LogCaptureFixture
) -> None:
    monitor.record(1, 0.1, {"train/loss": 3.0})
    shutil.rmtree(monitor.folder.tensorboard)
    for step in (2, 3):
        monitor.record(step, 0.1, {"train/loss": 4.0 - step})
    monitor.hyperparameters({"accuracy": 0.5})
    monitor.close()
    events = EventAccumulator(str(monitor.folder.tensorboard)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(2, 2.0), (3, 1.0)]
    assert [json.loads(line)["step"] for line in monitor.folder.metrics.open()] == [1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        f"{monitor.folder.tensorboard}: deleted during the run; what follows is written there again"
    ]


def test_a_line_without_scores_is_not_printed(monitor: Monitor, capsys: pytest.CaptureFixture[str]) -> None:
    monitor.record(1, 0.1, {"gate/layer1/mean": 1.0})
    monitor.record(2, 0.2, {"train/loss": 3.0})
    monitor.close()
    assert capsys.readouterr().err == "step 2/10  epoch 0.2  train loss 3\n"


def test_a_tensorboard_folder_deleted_last_costs_nothing_else(monitor: Monitor) -> None:
    monitor.record(1, 0.1, {"train/loss": 3.0})
    shutil.rmtree(monitor.folder.tensorboard)
    monitor.close()
    assert not monitor.folder.tensorboard.exists()
