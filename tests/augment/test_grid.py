"""Grids of images: layout, the original first, a row per class, and files that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ferdist.augment import Augment, AugmentConfig
from ferdist.augment.grid import augmented, by_class, image_grid, save_grid
from ferdist.errors import DataError


def _images(count: int = 3, channels: int = 1, height: int = 48, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def _augment(channels: int = 1, **parts: object) -> Augment:
    return Augment(AugmentConfig(**parts), [0.5] * channels, [0.25] * channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_layout(channels: int) -> None:
    images = _images(5, channels)
    grid = image_grid(images, columns=3)
    assert grid.dtype == np.uint8
    assert grid.shape == (2 * 50 + 2, 3 * 42 + 2, 3)
    for top, left, number in ((2, 44, 1), (52, 2, 3)):
        expected = np.broadcast_to(images[number].transpose(1, 2, 0), (48, 40, 3))
        assert np.array_equal(grid[top : top + 48, left : left + 40], expected)
    assert not grid[52:100, 86:126].any()  # the sixth place is empty


def test_float_images_are_clamped_and_rounded() -> None:
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0]).view(5, 1, 1, 1)
    grid = image_grid(values.to(torch.bfloat16), columns=5)
    assert grid[2, 2::3, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_column_is_the_original_and_the_seed_decides_the_others(channels: int) -> None:
    images = _images(2, channels)
    first, same, other = (augmented(images, _augment(channels), 4, seed).numpy() for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    originals = np.rint(255 * first[::4]).astype(np.uint8)
    assert np.array_equal(originals, images)
    assert np.array_equal(first[::4], other[::4])
    for k in (1, 2, 3):
        assert not np.array_equal(first[k::4], first[::4])
        assert not np.array_equal(first[k::4], other[k::4])
    off = augmented(images, _augment(channels, enabled=False), 3, seed=0).numpy()
    np.testing.assert_allclose(off, images.repeat(3, 0) / 255, atol=1e-6)


def test_a_row_per_class() -> None:
    images, labels = _images(6), np.array([2, 0, 2, 2, 0, 2])
    rows = by_class(images, labels, 3)
    assert np.array_equal(rows, np.concatenate([images[[1, 4]], 0 * images[:1], images[[0, 2, 3]]]))


def test_a_file_is_enlarged_and_its_rows_have_names(tmp_path: Path) -> None:
    images, path = _images(4), tmp_path / "grid.png"
    save_grid(images, 2, path, ["angry", "surprise"])
    picture = np.asarray(Image.open(path))
    margin = picture.shape[1] - (2 * 82 + 2)
    assert picture.shape[0] == 2 * 98 + 2
    for row in range(2):
        assert picture[2 + 98 * row : 98 + 98 * row, :margin].any(), "its name"
        tile = picture[2 + 98 * row : 98 + 98 * row : 2, margin + 2 : margin + 82 : 2, 0]
        assert np.array_equal(tile, images[2 * row, 0])


def test_a_grid_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for path, reason in ((tmp_path / "no" / "grid.png", ": No such file"), (tmp_path / "folder.png", "")):
        with pytest.raises(DataError, match="cannot write the grid" + reason):
            save_grid(_images(), 2, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.png"]
