"""Checkpoints: whole or passed over, whatever lies in their place."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ferdist.errors import RunError
from ferdist.io import sha256
from ferdist.runtime import checkpoint


def training_state(step: int) -> dict[str, Any]:
    tensors = {"w": torch.zeros(1000)}
    return {
        **{"step": step, "read_at": step, "counters": torch.zeros(4), "seconds": 1.0, "world_size": 1},
        **{"model": tensors, "ema": tensors, "optimizer": {}, "scaler": {}, "card": {}},
    }


def test_a_checkpoint_comes_back_and_keeps_its_checksum(tmp_path: Path) -> None:
    path = checkpoint.step_path(tmp_path, 12)
    checkpoint.save(path, {"step": 12, "x": torch.arange(3)})
    assert path.name == "step-00000012.pt"
    assert torch.equal(checkpoint.load(path, dict)["x"], torch.arange(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000012.pt", "step-00000012.pt.sha256"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        checkpoint.save(checkpoint.step_path(tmp_path, step), training_state(step))
    newest = checkpoint.step_path(tmp_path, 2)
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"flip": content, "truncate": content[:100], "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        state = checkpoint.load_newest(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert "step-00000002.pt: damaged" in caplog.text


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.mkdir, (tmp_path / "attacked",))  # type: ignore[return-value]

    path = tmp_path / "attack.pt"
    checkpoint.save(path, {"step": Attack()})
    with pytest.raises(RunError, match="unreadable checkpoint"):
        checkpoint.load(path, dict)
    assert not (tmp_path / "attacked").exists()


def bomb(path: Path) -> None:
    """A state whose tensor is packed a thousand times: torch itself never packs."""
    torch.save(training_state(2) | {"counters": torch.zeros(2**24)}, path)
    with zipfile.ZipFile(path) as plain:
        members = {name: plain.read(name) for name in plain.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)


ODD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.touch(), "not a whole zip file"),
    "text": (lambda path: path.write_text("x" * 1000), "not a whole zip file"),
    "old format": (
        lambda path: torch.save(training_state(2), path, _use_new_zipfile_serialization=False),
        "not a whole zip file",
    ),
    "cut": (lambda path: (torch.save(training_state(2), path), os.truncate(path, 900)), "not a whole zip"),
    "other zip": (lambda path: np.savez(path.open("wb"), a=[1]), "unreadable checkpoint"),
    "bomb": (bomb, "when unpacked"),
    "list": (lambda path: torch.save([1], path), "Expected `object`, got `array`"),
    "no keys": (lambda path: torch.save({"step": 2}, path), "missing required field"),
    "keys": (lambda path: torch.save({1: 2}, path), "Expected `str`"),
    "text step": (
        lambda path: torch.save(training_state(2) | {"step": "2"}, path),
        "Expected `int`, got `str` - at `$.step`",
    ),
    "list of weights": (
        lambda path: torch.save(training_state(2) | {"ema": {"w": [1.0]}}, path),
        "Expected `Tensor`, got `list`",
    ),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "fifo": (os.mkfifo, "not a regular file"),
    "folder": (Path.mkdir, "Is a directory"),
}


@pytest.mark.parametrize("name", ODD_CHECKPOINTS)
def test_an_odd_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where its checksum is right; without a checksum nothing of it is read."""
    checkpoint.save(checkpoint.step_path(tmp_path, 1), training_state(1))
    newest = checkpoint.step_path(tmp_path, 2)
    write, reason = ODD_CHECKPOINTS[name]
    write(newest)
    assert (checkpoint.load_newest(tmp_path) or {})["step"] == 1
    if newest.is_file():
        assert f"{newest}: step-00000002.pt.sha256 is missing" in caplog.text
        newest.with_name(f"{newest.name}.sha256").write_text(f"{sha256(newest)}  {newest.name}\n")
        caplog.clear()
        assert (checkpoint.load_newest(tmp_path) or {})["step"] == 1
    (line,) = caplog.messages
    assert reason in line
    assert "\n" not in line


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        checkpoint.save(checkpoint.step_path(tmp_path, step), {"step": step})
    checkpoint.prune(tmp_path, 2)
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-00000004.pt", "step-00000005.pt"]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    blocker = tmp_path / "checkpoints"
    blocker.write_text("a file where the folder should be")
    with pytest.raises(RunError, match="cannot write the checkpoint"):
        checkpoint.save(blocker / "step-00000001.pt", {"step": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]
