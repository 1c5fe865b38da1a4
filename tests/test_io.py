"""Files from outside, and writing that nobody can lead elsewhere."""

import fcntl
import os
from pathlib import Path

import pytest

from ferdist import io
from ferdist.errors import LONGEST_LINE, printable, tell


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    fifo, large, folder = tmp_path / "fifo", tmp_path / "large", tmp_path / "folder"
    os.mkfifo(fifo)
    large.write_bytes(b"x" * (io.MIB + 1))
    folder.mkdir()
    for path, reason in {
        fifo: "not a regular file",
        Path("/dev/zero"): "not a regular file",
        large: "larger than 1 MiB",
        folder: "Is a directory",
        tmp_path / "none": "No such file or directory",
    }.items():
        with pytest.raises(OSError) as caught:
            io.read_untrusted(path, io.MIB)
        assert caught.value.strerror == reason
    large.write_bytes(b"x" * io.MIB)
    assert io.read_untrusted(large, io.MIB) == b"x" * io.MIB


def test_json_that_is_nested_too_deeply_is_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        io.read_json(path)


def test_a_link_in_the_folder_does_not_lead_a_writer_elsewhere(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "state.json"
    victim.write_text("precious")
    for name in (f".state.json.{os.getpid()}.tmp", ".state.json.tmp"):
        (tmp_path / name).symlink_to(victim)
    path.symlink_to(victim)
    io.write_text(path, "new")
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("precious", "new", False)


def test_text_from_outside_cannot_steer_a_terminal() -> None:
    assert printable("ok\x1b[2J\nferdist: done\u202etxt\udc80") == (
        "ok\\x1b[2J\\nferdist: done\\u202etxt\\udc80"
    )
    assert printable("naïve 顔 – ±1") == "naïve 顔 – ±1"


def test_what_a_writer_that_died_has_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    names = (f".state.json.{digit * 16}.tmp" for digit in "012")
    file, folder, living = (tmp_path / name for name in names)
    others = tmp_path / ".other.json.0000000000000000.tmp"
    (folder / "figures").mkdir(parents=True)
    for one in (file, folder / "figures" / "a.svg", living, others):
        one.write_text("half")
    with living.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        io.write_text(path, "new")
        with io.scratch_folder(path) as outer, io.atomic_path(path) as inner:
            assert outer.is_dir()
            assert {outer, inner} < set(tmp_path.iterdir()), "those in use stay"
    assert set(tmp_path.iterdir()) == {path, living, others}


def test_a_message_of_megabytes_keeps_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"ferdist: {'x' * 10**6}: shorten the name")
    said = capsys.readouterr().err
    assert len(said) < LONGEST_LINE + 10
    assert said.startswith("ferdist: xxx")
    assert said.endswith("xxx: shorten the name\n")
