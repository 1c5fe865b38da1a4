from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ferdist.data.beton import open_beton, stage, stage_beton, staged_path, write_beton
from ferdist.errors import ConfigError, DataError
from tests.conftest import PATIENCE, ROOT
from tests.data.beton import Make, Write
from tests.data.files import refused

STAGE = (
    "import sys; from pathlib import Path; from ferdist.data.beton import stage_beton; "
    "print(stage_beton(Path(sys.argv[1]), sys.argv[2]).stat().st_ino)"
)
HOLD = (
    "import fcntl, sys, time; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, fcntl.LOCK_EX); "
    "print(); time.sleep(99)"
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder that stands for a node's own disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def contents(path: Path) -> dict[str, bytes]:
    """The files of a beton, by name."""
    return {p.name: p.read_bytes() for p in sorted(path.parent.glob(f"{path.stem}.*"))}


def damage(path: Path) -> None:
    """Change one byte in the middle and keep the size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def stage_in_process(path: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, str(path), str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


def test_the_copy_is_the_same_and_is_used_again(
    faces: Make, write: Write, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(faces())
    monkeypatch.setenv("NODE_DISK", str(disk))
    copy = stage_beton(path, "$NODE_DISK")
    assert copy == staged_path(path, "${NODE_DISK}")
    assert copy.is_relative_to(disk)
    assert contents(copy) == contents(path)
    assert len(contents(copy)) == 3
    assert open_beton(copy, checksum=True).manifest == open_beton(path).manifest
    assert copy.parent.stat().st_mode & 0o077 == 0
    before = copy.stat()
    assert stage_beton(path, str(disk)) == copy
    assert copy.stat() == before


@pytest.mark.parametrize("suffix", [".beton", ".json", ".samples.csv"])
def test_a_copy_that_is_damaged_or_not_whole_is_made_again(
    faces: Make, write: Write, disk: Path, suffix: str
) -> None:
    path = write(faces())
    copy = stage_beton(path, str(disk))
    damage(copy.with_suffix(suffix))
    stage_beton(path, str(disk))
    assert contents(copy) == contents(path)
    copy.with_suffix(suffix).unlink()
    stage_beton(path, str(disk))
    assert contents(copy) == contents(path)


def test_data_sets_of_one_name_do_not_meet(faces: Make, tmp_path: Path, disk: Path) -> None:
    paths = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        paths.append(write_beton(faces(seed=seed), tmp_path / str(seed)))
    copies = [stage_beton(path, str(disk)) for path in paths]
    assert [contents(copy) for copy in copies] == [contents(path) for path in paths]


def test_a_damaged_beton_is_not_kept(faces: Make, write: Write, disk: Path) -> None:
    path = write(faces())
    content = path.read_bytes()
    position = content.index(faces().images[5].tobytes())
    path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    with refused(rf"{re.escape(str(path))}: this, or its copy in .*, is damaged"):
        stage_beton(path, str(disk))
    assert [p.name for p in disk.rglob("*") if p.is_file()] == [".lock"]


def test_a_set_that_is_replaced_while_it_is_copied(
    faces: Make, write: Write, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(faces())
    first, check = contents(path), stage._check_own

    def replace_and_check(folder: Path) -> None:
        write(faces(seed=1))
        check(folder)

    monkeypatch.setattr(stage, "_check_own", replace_and_check)
    copy = stage_beton(path, str(disk))
    assert contents(copy) == first
    assert contents(path).keys() == first.keys()
    assert contents(path) != first


def test_a_set_that_goes_before_it_is_copied(
    faces: Make, write: Write, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(faces())
    monkeypatch.setattr(stage, "open_beton", lambda path: path.unlink())
    with refused(r"faces\.beton: there is no such file"):
        stage_beton(path, str(disk))


def test_what_is_missing_is_named(faces: Make, write: Write, disk: Path, tmp_path: Path) -> None:
    path = write(faces())
    with pytest.raises(DataError, match=r"no: data.stage is not a folder on .*: make it, or name another"):
        stage_beton(path, str(disk / "no"))
    with pytest.raises(
        ConfigError, match=r"data.stage is '\$NO_SUCH_VARIABLE/x': a variable in it is not set"
    ):
        stage_beton(path, "$NO_SUCH_VARIABLE/x")
    with pytest.raises(DataError, match="no such file"):
        stage_beton(tmp_path / "none.beton", str(disk))
    (disk / "file").write_text("")
    staged_path(path, str(disk)).parent.write_text("")
    with pytest.raises(DataError, match=r"data.stage cannot make this copy on .*: File exists"):
        stage_beton(path, str(disk))


def test_a_folder_that_somebody_else_has_made_is_left_alone(
    faces: Make, write: Write, disk: Path, tmp_path: Path
) -> None:
    path = write(faces())
    folder, victim = staged_path(path, str(disk)).parent, tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / ".x.tmp").write_text("mine")
    folder.symlink_to(victim)
    with refused(r"not a folder of yours that nobody else can enter \(mode 0700\): remove it, or name"):
        stage_beton(path, str(disk))
    assert [file.name for file in victim.iterdir()] == [".x.tmp"]
    folder.unlink()
    folder.mkdir()
    for mode, owner in ((0o750, os.getuid()), (0o707, os.getuid()), (0o700, 65534)):
        folder.chmod(mode)
        if owner != os.getuid():
            if os.getuid():
                continue
            os.chown(folder, owner, -1)
        with refused("not a folder of yours"):
            stage_beton(path, str(disk))
    assert list(folder.iterdir()) == []


@pytest.fixture
def small_disk(disk: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_keeps_nothing(faces: Make, write: Write, small_disk: Path) -> None:
    path = write(faces())
    with refused("No space left on device: make room there"):
        stage_beton(path, str(small_disk))
    assert [p.name for p in small_disk.rglob("*") if p.is_file()] == [".lock"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert contents(stage_beton(path, str(small_disk))) == contents(path)


@pytest.mark.slow
def test_jobs_that_stage_at_once_share_one_copy(faces: Make, write: Write, disk: Path) -> None:
    path = write(faces())
    jobs = [stage_in_process(path, disk) for _ in range(3)]
    copies = {job.communicate(timeout=PATIENCE)[0] for job in jobs}
    assert [job.returncode for job in jobs] == [0] * 3
    assert len(copies) == 1, "one of them has replaced the file of another"
    assert contents(staged_path(path, str(disk))) == contents(path)


@pytest.mark.slow
def test_a_job_waits_for_a_live_one_and_not_for_a_dead_one(faces: Make, write: Write, disk: Path) -> None:
    path = write(faces())
    place = staged_path(path, str(disk)).parent
    place.mkdir(mode=0o700)
    (place / ".faces.beton.1.tmp").write_bytes(b"begun")
    command = [sys.executable, "-c", HOLD, str(place / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            job = stage_in_process(path, disk)
            waiting = f"-> FLOCK  ADVISORY  WRITE {job.pid} "
            limit = time.monotonic() + PATIENCE
            while waiting not in Path("/proc/locks").read_text():
                assert job.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.05)
            assert not (place / path.name).exists()
        finally:
            holder.kill()
    assert job.communicate(timeout=PATIENCE)[0] == f"{(place / path.name).stat().st_ino}\n"
    assert contents(place / path.name) == contents(path)
    assert not list(place.glob(".*.tmp"))
