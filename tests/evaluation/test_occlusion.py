from __future__ import annotations

import hashlib

import numpy as np
import pytest

from ferdist.evaluation import occlusion

PUBLISHED = "f041fce8d192f1ee7f366508266c92e7d30bb5a2a1af40592dca5fd4aecdeea7"
WHITE = np.full((200, 1, 48, 48), 255, dtype=np.uint8)


@pytest.mark.parametrize("severity", range(1, 6))
def test_squares_cover_exactly_what_they_should_wholly_inside(severity: int) -> None:
    covered = occlusion.cover(WHITE, np.arange(200), "square", severity, samples=200) == 0
    side = (8, 16, 24, 32, 36)[severity - 1]
    assert (covered.sum((1, 2, 3)) == side**2).all()
    assert occlusion.covered_fraction(severity) == pytest.approx(side**2 / 48**2)
    assert (covered.any(3).sum(2) == side).all(), "a square, not cut off by the edge"


@pytest.mark.parametrize("severity", range(1, 6))
def test_circles_cover_the_same_area(severity: int) -> None:
    covered = occlusion.cover(WHITE, np.arange(200), "circle", severity, samples=200) == 0
    fraction = covered.mean((1, 2, 3))
    assert fraction.mean() == pytest.approx(occlusion.covered_fraction(severity), rel=0.02)
    heights, widths = covered.any(3).sum(2), covered.any(2).sum(2)
    assert (abs(heights - widths) <= 1).all(), "round, so wholly inside"


def test_a_place_depends_on_the_sample_only() -> None:
    whole = occlusion.cover(WHITE, np.arange(200), "circle", 3, samples=200)
    chosen = np.array([150, 3, 77])
    assert np.array_equal(occlusion.cover(WHITE[:3], chosen, "circle", 3, samples=200), whole[chosen])
    other = occlusion.cover(WHITE, np.arange(200), "circle", 3, samples=200, seed=1)
    assert not np.array_equal(whole, other)
    assert len({image.tobytes() for image in whole}) > 150, "places differ between samples"


def test_the_covers_are_the_published_ones() -> None:
    """If this changes, results under occlusion do not compare with earlier ones: say so in CHANGELOG.md."""
    digest = hashlib.sha256()
    for kind in occlusion.KINDS:
        for severity in range(1, 6):
            digest.update(occlusion.cover(WHITE, np.arange(200), kind, severity, samples=200).tobytes())
    assert digest.hexdigest() == PUBLISHED


def test_colour_other_sizes_and_the_originals() -> None:
    images = np.full((4, 3, 100, 60), 255, dtype=np.uint8)
    covered = occlusion.cover(images, np.arange(4), "square", 2, samples=4)
    assert (images == 255).all()
    assert covered.shape == images.shape
    assert (covered.min(1) == covered.max(1)).all(), "all channels are covered alike"
    assert ((covered[:, 0] == 0).sum((1, 2)) == 20 * 20).all()
