from __future__ import annotations

import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ferdist import io as io_module
from ferdist.data import archive as archive_module
from ferdist.data.archive import open_archive, sources_of
from ferdist.data.ckplus import read_ckplus
from ferdist.data.fer2013 import read_fer2013
from ferdist.data.images import open_image, read_gray_images
from ferdist.data.namelists import read_name_list
from ferdist.errors import DataError
from ferdist.io import MIB
from tests.data.files import encoded, noise, refused, write_files

FILES = {"b/two.txt": b"two", "a/one.txt": b"one", "a/.hidden": b"x", "__MACOSX/a/one.txt": b"x"}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in files.items():
            target.writestr(name, data)
    return path


def test_a_folder_and_its_zip_read_the_same(tmp_path: Path) -> None:
    folder = open_archive(write_files(tmp_path / "data", FILES))
    packed = open_archive(write_zip(tmp_path / "data.zip", FILES))
    for archive in (folder, packed):
        assert archive.names() == ["a/one.txt", "b/two.txt"]
        assert archive.folders() == ["a", "b"]
        assert archive.read("b/two.txt") == b"two"
    (tmp_path / "data" / "empty").mkdir()
    assert "empty" in folder.folders()
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as target:
        target.mkdir("empty")
    assert open_archive(tmp_path / "empty.zip").folders() == ["empty"]


def test_checksum_of_a_folder_depends_on_what_was_read_not_on_the_order(tmp_path: Path) -> None:
    root = write_files(tmp_path / "data", FILES)

    def checksum(*names: str) -> str:
        archive = open_archive(root)
        for name in names:
            archive.read(name)
        return archive.checksum()

    first = checksum("a/one.txt", "b/two.txt")
    assert first == checksum("b/two.txt", "a/one.txt")
    assert first != checksum("a/one.txt")
    (root / "a/one.txt").write_bytes(b"changed")
    assert first != checksum("a/one.txt", "b/two.txt")


def test_sources_name_a_folder_given_as_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_files(tmp_path / "data", FILES))
    assert list(sources_of(open_archive(Path()))) == ["data"]


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    real = write_files(tmp_path / "real", {"x.txt": b"x"})
    root = tmp_path / "data"
    root.mkdir()
    (root / "link").symlink_to(real)
    (real / "loop").symlink_to(root)
    assert open_archive(root).names() == ["link/x.txt"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing: no such file or folder"):
        open_archive(tmp_path / "nothing")
    (tmp_path / "data.tar").write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match=r"data\.tar: neither a folder nor a zip"):
        open_archive(tmp_path / "data.tar")
    archive = open_archive(write_files(tmp_path / "data", FILES))
    (tmp_path / "data/a/one.txt").unlink()
    with pytest.raises(DataError, match=r"a/one\.txt: cannot be read"):
        archive.read("a/one.txt")


def test_broken_zips_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.zip", {"a.bin": bytes(range(256)) * 40})
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"data\.zip: broken zip"):
            open_archive(path)
    flipped = bytearray(whole)
    flipped[60] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"member 'a\.bin' is broken"):
        open_archive(path).read("a.bin")


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/evil.png", "..\\evil.png", "C:/evil.png"]
)
def test_members_that_lead_out_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "data.zip", {name: b"x"})
    with pytest.raises(DataError, match=r"evil\.png' leads out of the archive"):
        open_archive(path)


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.zip", {"a.png": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flags in the central directory
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"'a\.png' is encrypted"):
        open_archive(path)


def test_zip_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "data.zip", {"a.png": bytes(8 * 2**20)})
    with pytest.raises(DataError, match=r"'a\.png' unpacks from [\d,]+ to 8,388,608 bytes"):
        open_archive(path)
    path = write_zip(tmp_path / "many.zip", {"a.png": bytes(1000), "b.png": bytes(1000)})
    monkeypatch.setattr(archive_module, "MAX_TOTAL_BYTES", 1500)
    with pytest.raises(DataError, match=r"many\.zip: unpacks to"):
        open_archive(path)


def test_a_zip_of_very_many_members_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "data.zip", {f"{number:030}.png": b"" for number in range(100)})
    monkeypatch.setattr(io_module, "MAX_MEMBERS", 50)
    with refused(r"data\.zip: broken zip file \(more than 50 members\)"):
        open_archive(path)


def test_a_member_that_unpacks_to_more_than_it_says_takes_no_memory(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "data.zip", {"a.png": bytes(64 * MIB)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # the size in the central directory
    data[at : at + 4] = (100_000).to_bytes(4, "little")
    path.write_bytes(data)
    archive = open_archive(path)
    tracemalloc.start()
    with refused(r"member 'a\.png' is broken \(Bad CRC"):
        archive.read("a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * MIB


def test_files_of_any_size_are_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as target:
        target.writestr("a.png", bytes(65 * MIB))
    with refused(r"data\.zip: member 'a\.png' is larger than 64 MiB; remove it"):
        open_archive(tmp_path / "data.zip").read("a.png")
    folder = write_files(tmp_path / "data", {"a.png": b""})
    os.truncate(folder / "a.png", 65 * MIB)
    with refused(r"a\.png: cannot be read \(larger than 64 MiB\)"):
        open_archive(folder).read("a.png")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bounds_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w", method) as target:
        target.writestr("a.png", b"123")
    with refused(r"member 'a\.png' is packed by another method than deflate; pack it again"):
        open_archive(tmp_path / "data.zip")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "data", {"a.png": b""})
    os.mkfifo(folder / "b.png")
    (folder / "c.png").symlink_to("/dev/zero")
    for name in ("b.png", "c.png"):
        with refused(rf"{name}: cannot be read \(not a regular file\)"):
            open_archive(folder).read(name)
        for read in (open_archive, read_fer2013, read_ckplus):
            with refused(rf"{name}: cannot be read \(not a regular file\)"):
                read(folder / name)
        with refused(rf"{name}: cannot read it: not a regular file"):
            read_name_list(folder / name)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_listed_twice_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as target:
        target.writestr("a.png", b"1")
        target.writestr("a.png", b"2")
    with pytest.raises(DataError, match=r"'a\.png' appears twice"):
        open_archive(tmp_path / "data.zip")


@pytest.mark.parametrize("name", ["a\nb.png", "a\udcff.png"])
def test_names_that_break_a_line_are_refused(tmp_path: Path, name: str) -> None:
    archive = open_archive(write_files(tmp_path / "data", {name: b"x"}))
    with pytest.raises(DataError, match=r"'a\\.*png' has control characters") as caught:
        archive.names()
    assert str(caught.value).isprintable()


def test_names_in_any_language_and_with_backslashes_are_read(tmp_path: Path) -> None:
    name = "中文/9.41\u202fAM é.png"  # macOS puts narrow no-break spaces into names of screenshots
    assert open_archive(write_files(tmp_path / "data", {name: b"x"})).names() == [name]
    assert open_archive(write_zip(tmp_path / "data.zip", {"a\\b.txt": b"x"})).names() == ["a/b.txt"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"no image at all", "not one of JPEG, PNG"),
        (encoded(noise(64, 64))[:1500], ".*truncated"),
        (encoded(Image.new("1", (10_000, 5_001))), "10000x5001 pixels, more than 50,000,000"),
        (b"P2 2 1 255 0 255 ", "PPM with its pixels as text"),
    ],
)
def test_unreadable_images_are_named(tmp_path: Path, data: bytes, reason: str) -> None:
    archive = open_archive(write_files(tmp_path / "data", {"x.png": data}))
    with refused(rf"x\.png: not a readable image \({reason}"):
        open_image(archive, "x.png")


def test_gray_images_must_be_gray_and_of_one_size(tmp_path: Path) -> None:
    images = {
        "a.png": encoded(np.arange(6, dtype=np.uint8).reshape(2, 3)),
        "b.png": encoded(Image.new("L", (3, 3))),
        "c.png": encoded(Image.new("RGB", (3, 2))),
    }
    archive = open_archive(write_files(tmp_path / "data", images))
    read = read_gray_images(archive, ["a.png"])
    assert read.shape == (1, 1, 2, 3)
    assert read.ravel().tolist() == list(range(6))
    with pytest.raises(DataError, match=r"b\.png: 3x3 pixels, but a\.png has 3x2; .*prepare folders"):
        read_gray_images(archive, ["a.png", "b.png"])
    with pytest.raises(DataError, match=r"c\.png: not an 8-bit gray image \(mode RGB\); .*prepare folders"):
        read_gray_images(archive, ["a.png", "c.png"])
