"""Small data sets of random pixels, and betons of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ferdist.data.beton import write_beton
from ferdist.data.record import FaceDataset
from tests.data.beton import Make, Write

CLASSES = ("angry", "happy", "sad")


def _faces(samples: int = 60, *, shape: tuple[int, int, int] = (1, 12, 10), seed: int = 0) -> FaceDataset:
    """Random images with a train, val and test split of 50, 25 and 25 %."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (samples, *shape), dtype=np.uint8)
    images[-1] = images[0]  # a copy
    split = np.array([0, 0, 1, 2])[np.arange(samples) % 4]
    labels, names = generator.integers(0, len(CLASSES), samples), [str(row) for row in range(samples)]
    sources = {"faces.csv": "0" * 64}
    return FaceDataset.of("faces", images, labels, CLASSES, names, split=split, sources=sources)


def _videos(samples: int = 60, *, folds: int = 4, seed: int = 0) -> FaceDataset:
    """Random images of ten subjects in folds, without splits; sequences of three frames."""
    generator = np.random.default_rng(seed)
    subject = np.arange(samples) // 3 % 10
    dataset = FaceDataset.of(
        "videos",
        generator.integers(0, 256, (samples, 3, 6, 8), dtype=np.uint8),
        generator.integers(0, len(CLASSES), samples),
        CLASSES,
        [f' S{row},\n"{row}".png ' for row in range(samples)],
        subjects=[f"S{number:03d}" if number else "NA" for number in subject],
        sequences=[f"Q{row // 3:02d}" for row in range(samples)],
    )
    return replace(dataset, fold=subject % folds)


@pytest.fixture
def faces() -> Make:
    """Make a data set with splits; see ``_faces``."""
    return _faces


@pytest.fixture
def videos() -> Make:
    """Make a data set with subjects, sequences and folds; see ``_videos``."""
    return _videos


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a data set into the test's folder."""
    return partial(write_beton, out_dir=tmp_path)
