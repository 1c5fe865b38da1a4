"""Grids of images: layout, the original first, and files that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ferdist.augment import Augment, AugmentConfig
from ferdist.augment.grid import image_grid, save_augment_grid, save_class_grid
from ferdist.errors import DataError


def _images(count: int = 3, channels: int = 1, height: int = 48, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def _augment(channels: int = 1, **parts: object) -> Augment:
    return Augment(AugmentConfig(**parts), [0.5] * channels, [0.25] * channels)


def test_layout() -> None:
    images = _images(5)
    grid = image_grid(images, columns=3)
    assert grid.dtype == np.uint8
    assert grid.shape == (2 * 50 + 2, 3 * 42 + 2, 3)
    assert np.array_equal(grid[2:50, 44:84], images[1].transpose(1, 2, 0).repeat(3, 2))
    assert np.array_equal(grid[52:100, 2:42, 0], images[3, 0])
    assert not grid[52:100, 86:126].any()  # the sixth place is empty


def test_float_images_are_clamped_and_rounded() -> None:
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0]).view(5, 1, 1, 1)
    grid = image_grid(values.to(torch.bfloat16), columns=5)
    assert grid[2, 2::3, 0].tolist() == [0, 0, 128, 255, 255]


def test_colour_stays_colour() -> None:
    images = _images(2, channels=3)
    assert np.array_equal(image_grid(images, 2)[2:50, 2:42], images[0].transpose(1, 2, 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_column_is_the_original(tmp_path: Path, channels: int) -> None:
    images = _images(2, channels)
    path = tmp_path / "grid.png"
    save_augment_grid(images, _augment(channels), path, columns=4, seed=0)
    picture = np.asarray(Image.open(path))
    assert picture.shape == (2 * 98 + 2, 4 * 82 + 2, 3)  # enlarged twice
    for row in range(2):
        top = 2 + 98 * row
        original = images[row].transpose(1, 2, 0)
        assert np.array_equal(picture[top : top + 96 : 2, 2:82:2], np.broadcast_to(original, (48, 40, 3)))
        augmented = picture[top : top + 96 : 2, 84:164:2]
        assert not np.array_equal(augmented, np.broadcast_to(original, (48, 40, 3)))


def test_the_seed_decides(tmp_path: Path) -> None:
    for name, seed in [("a.png", 1), ("b.png", 1), ("c.png", 2)]:
        save_augment_grid(_images(), _augment(), tmp_path / name, columns=5, seed=seed)
    first, same, other = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert first == same != other


def test_augmentation_off_shows_the_original_everywhere(tmp_path: Path) -> None:
    images = _images(1)
    save_augment_grid(images, _augment(enabled=False), tmp_path / "grid.png", columns=3, seed=0)
    picture = np.asarray(Image.open(tmp_path / "grid.png"))
    assert np.array_equal(picture[:, 2:82], picture[:, 84:164])


def test_a_row_per_class(tmp_path: Path) -> None:
    images = _images(6)
    labels = np.array([2, 0, 2, 2, 0, 2])
    path = tmp_path / "classes.png"
    save_class_grid(images, labels, ["angry", "disgust", "surprise"], path, columns=3, seed=0)
    picture = np.asarray(Image.open(path))
    margin = picture.shape[1] - (3 * 82 + 2)
    assert picture.shape[0] == 2 * 98 + 2  # disgust has no sample
    assert picture[2:98, :margin].any()  # its name
    tiles = [
        picture[2 + 98 * r : 98 + 98 * r : 2, margin + 2 + 82 * c :][:, :80:2, 0]
        for r in (0, 1)
        for c in range(3)
    ]
    found = [[k for k in range(6) if np.array_equal(tile, images[k, 0])] for tile in tiles]
    assert sorted(found[0] + found[1]) == [1, 4]
    assert found[2] == []
    assert not tiles[2].any()
    assert all(len(which) == 1 and labels[which[0]] == 2 for which in found[3:])


def test_bad_requests_are_one_line_and_leave_nothing(tmp_path: Path) -> None:
    images, labels = _images(), np.zeros(3, dtype=np.int64)
    path = tmp_path / "grid.png"
    with pytest.raises(DataError, match="at least 2"):
        save_augment_grid(images, _augment(), path, columns=1, seed=0)
    with pytest.raises(DataError, match="no image"):
        save_augment_grid(images[:0], _augment(), path, columns=4, seed=0)
    with pytest.raises(DataError, match="at least 1"):
        save_class_grid(images, labels, ["a"], path, columns=0, seed=0)
    with pytest.raises(DataError, match="no image"):
        save_class_grid(images[:0], labels[:0], ["a"], path, columns=2, seed=0)
    with pytest.raises(DataError, match="cannot write the grid: No such file"):
        save_augment_grid(images, _augment(), tmp_path / "missing" / "grid.png", columns=2, seed=0)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match="cannot write the grid"):
        save_augment_grid(images, _augment(), tmp_path / "folder.png", columns=2, seed=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.png"]
