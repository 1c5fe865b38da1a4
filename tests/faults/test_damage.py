"""Damaged checkpoints and disks that refuse: said clearly, and the last good checkpoint counts."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ferdist.config import Config
from ferdist.runtime import checkpoint
from tests.faults.processes import (
    STEPS,
    Training,
    copy_until,
    finish,
    newest_step,
    status_of,
    unequal,
)

pytestmark = pytest.mark.slow

Small = Callable[..., Config]
Start = Callable[..., Training]


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def replace(path: Path, content: bytes) -> None:
    """Write a file anew: the old one is a link to another run's."""
    path.unlink()
    path.write_bytes(content)


def flipped(path: Path) -> bytes:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def test_the_newest_whole_checkpoint_is_taken(small: Small, place: Path, whole: Path) -> None:
    """Five newest ones are damaged, each in another way, and the best weights too."""
    config = small()
    folder = Path(config.run_dir)
    copy_until(whole, folder, STEPS)
    truncated, bit_flipped, empty, missing, attack = reversed(checkpoint.steps(folder / "checkpoints")[-5:])
    replace(truncated, truncated.read_bytes()[:-1000])
    replace(bit_flipped, flipped(bit_flipped))
    replace(empty, b"")
    missing.unlink()
    attack.unlink()
    torch.save({"step": Attack(place / "attacked")}, attack)
    digest = hashlib.sha256(attack.read_bytes()).hexdigest()
    replace(attack.with_name(f"{attack.name}.sha256"), f"{digest}  {attack.name}\n".encode())
    best = folder / "checkpoints" / "best.pt"
    replace(best, flipped(best))

    end = finish(config)
    for path in (truncated, bit_flipped, empty):
        assert f"ferdist: {path}: damaged" in end.errors
    assert (
        f"ferdist: {missing}: there is no such checkpoint; falling back to the previous checkpoint"
        in end.errors
    )
    assert f"ferdist: {attack}: unreadable checkpoint" in end.errors
    assert f"ferdist: {best}: damaged" in end.errors
    assert not (place / "attacked").exists()
    assert [part for part in unequal(whole, folder) if not part.endswith(".npz")] == []
    for path in (truncated, bit_flipped, empty, missing, attack, best):
        checkpoint.load(path, dict)


def test_a_run_without_any_whole_checkpoint_says_that_it_starts_anew(
    small: Small, start: Start, whole: Path
) -> None:
    config = small()
    folder = Path(config.run_dir)
    copy_until(whole, folder, STEPS)
    for path in checkpoint.steps(folder / "checkpoints"):
        replace(path, b"")
    training = start(config)
    training.wait_until(lambda: status_of(folder)["state"] == "running")
    training.kill()
    assert f"ferdist: {folder}: no checkpoint is intact: starting from scratch" in training.end().errors


def test_a_disk_that_takes_no_more(small: Small, start: Start, whole: Path) -> None:
    """A limit on the size of files stands for a quota or a full disk; it is set while the run trains."""
    config = small()
    folder = Path(config.run_dir)
    training = start(config)
    training.wait_for_step(2)
    training.fault_now()
    resource.prlimit(training.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    end = training.end("no checkpoint can be written: file size limit")
    refused_to_write(end.code, end.errors, folder)
    finish(config)
    assert unequal(whole, folder) == []


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 12 MB: room for a few checkpoints of 2 MB."""
    disk = place / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk(small: Small, start: Start, small_disk: Path) -> None:
    """Somebody else fills it to the last byte; the run goes on when there is room again."""
    config = small("train.keep_checkpoints=2", "train.log_every=1", run="disk/run")
    folder = Path(config.run_dir)
    training = start(config)
    training.wait_for_step(2)
    training.fault_now()
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 20))
    end = training.end("full disk")
    refused_to_write(end.code, end.errors, folder)
    before = newest_step(folder)
    filler.unlink()
    training = start(config)
    training.wait_for_step(before + 1)
    training.kill()


def refused_to_write(code: int, errors: str, folder: Path) -> None:
    """One line, exit code 1, and the last checkpoint is whole."""
    assert code == 1
    said = [line for line in errors.splitlines() if line.startswith("ferdist: ")]
    assert len(said) == 1, errors
    assert "cannot write the checkpoint" in said[0]
    assert "Traceback" not in errors
    status = status_of(folder)
    assert (status["state"], f"ferdist: {status['reason']}") == ("failed", said[0])
    assert not list((folder / "checkpoints").glob(".*.tmp"))
    newest = checkpoint.steps(folder / "checkpoints")[-1]
    assert checkpoint.load(newest, dict)["step"] == newest_step(folder)


def test_a_folder_that_cannot_be_written(small: Small, start: Start, whole: Path, place: Path) -> None:
    """A file where the folder should be; a run on a file system that has become read-only."""
    config = small(run="file")
    Path(config.run_dir).write_text("")
    training = start(config)
    end = training.end("a file in place of the run folder")
    assert end.code == 1
    assert end.errors == f"ferdist: {config.run_dir}: the run folder cannot be written: File exists\n"

    config = small()
    copy_until(whole, place / "run", STEPS)
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    bind = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" || exit 9; exec "$@"'
    wrapper = [*namespace, "sh", "-c", bind, config.run_dir]
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace, and so no read-only folder, is to be had here")
    end = start(config, wrapper=wrapper).end("read-only run folder")
    assert end.code == 1
    expected = f"ferdist: {config.run_dir}: the run folder cannot be written: Read-only file system\n"
    assert end.errors == expected
    assert unequal(whole, place / "run") == []
