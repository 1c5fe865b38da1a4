"""Small data sets of random pixels, and betons of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ferdist.data.audit import audit
from ferdist.data.beton import write_beton
from ferdist.data.record import FaceDataset, no_values

CLASSES = ("angry", "happy", "sad")


def _faces(samples: int = 60, *, shape: tuple[int, int, int] = (1, 12, 10), seed: int = 0) -> FaceDataset:
    """Random images with a train, val and test split of 50, 25 and 25 %."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (samples, *shape), dtype=np.uint8)
    images[-1] = images[0]  # a copy
    return FaceDataset(
        name="faces",
        images=images,
        labels=generator.integers(0, len(CLASSES), samples),
        split=np.array([0, 0, 1, 2])[np.arange(samples) % 4],
        subject=no_values(samples),
        sequence=no_values(samples),
        fold=no_values(samples),
        source_id=[str(row) for row in range(samples)],
        classes=CLASSES,
        sources={"faces.csv": "0" * 64},
    )


def _videos(samples: int = 60, *, folds: int = 4, seed: int = 0) -> FaceDataset:
    """Random images of ten subjects in folds, without splits; sequences of three frames."""
    generator = np.random.default_rng(seed)
    subject = np.arange(samples) // 3 % 10
    return FaceDataset(
        name="videos",
        images=generator.integers(0, 256, (samples, 3, 6, 8), dtype=np.uint8),
        labels=generator.integers(0, len(CLASSES), samples),
        split=no_values(samples),
        subject=subject,
        sequence=np.arange(samples) // 3,
        fold=subject % folds,
        source_id=[f'S{row},"{row}".png' for row in range(samples)],
        classes=CLASSES,
        subject_names=("NA", *(f"S{number:03d}" for number in range(1, 10))),
        sequence_names=tuple(f"Q{number}" for number in range(-(-samples // 3))),
    )


@pytest.fixture
def faces() -> Callable[..., FaceDataset]:
    """Make a data set with splits; see ``_faces``."""
    return _faces


@pytest.fixture
def videos() -> Callable[..., FaceDataset]:
    """Make a data set with subjects, sequences and folds; see ``_videos``."""
    return _videos


@pytest.fixture
def write(tmp_path: Path) -> Callable[[FaceDataset], Path]:
    """Write a data set, with its audit, into the test's folder."""
    return lambda dataset: write_beton(dataset, tmp_path, audit(dataset))
