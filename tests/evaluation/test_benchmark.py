from __future__ import annotations

import hashlib
import inspect

import numpy as np
import pytest

from ferdist.augment.config import AugmentConfig, NoiseConfig, OcclusionConfig
from ferdist.augment.kinds import FILLS, KINDS, GaussianNoise, ImpulseNoise
from ferdist.data.record import Images
from ferdist.data.synthetic import synthesize
from ferdist.errors import ConfigError, DataError
from ferdist.evaluation.benchmark import (
    Benchmark,
    Cell,
    checksums,
    choose_donors,
    covered_fraction,
    grid,
    hidden_pixels,
    seen_in_training,
    total_checksum,
)
from tests.conftest import ROOT

PUBLISHED = "e4179f2e6ab166b3fab5f883776ac5f0da5071aa8d85ea4312a57fcdab525d10"
FIRST_PUBLISHED = "f041fce8d192f1ee7f366508266c92e7d30bb5a2a1af40592dca5fd4aecdeea7"
WHITE = np.full((200, 1, 48, 48), 255, dtype=np.uint8)
NUMBERS = np.arange(200)


def benchmark(faces: Images) -> Benchmark:
    """Of different people; patches are taken from these faces."""
    people = np.arange(len(faces))
    return Benchmark((130,) * faces.shape[1], people, people, faces)


def cover(images: Images, cell: Cell) -> Images:
    return benchmark(images).cover(images, np.arange(len(images)), cell)


def test_the_grid() -> None:
    assert len(grid()) == 74 == len(set(grid()))
    assert grid(["circle"], ["mean"]) == tuple(Cell("circle", s, "mean") for s in range(1, 6))
    assert {cell.fill for cell in grid(["patch", "glasses", "impulse_noise"], ["zero"])} == {
        *("face", "drawn", "none")
    }
    with pytest.raises(ConfigError, match="--kinds: unknown name 'beard': choose from square, circle"):
        grid(["beard"])
    with pytest.raises(ConfigError, match="--fills: unknown name 'red': choose from zero, mean, noise"):
        grid(None, ["red"])


def test_the_docs_list_every_kind() -> None:
    rows = []
    for kind in KINDS.values():
        shares = [kind.covered(severity, 48, 48) for severity in range(1, kind.severities + 1)]
        percent = "" if None in shares else ", ".join(f"{100 * share:.1f}" for share in shares) + " %"
        fills = ", ".join(f"`{fill.name}`" for fill in kind.fills)
        what = " ".join((inspect.getdoc(kind) or "").split())
        rows.append(f"| `{kind.name}` | {what} | {fills} | {percent} |")
    wanted = "\n".join(rows)
    assert wanted in (ROOT / "docs" / "occlusion.md").read_text(), f"write there:\n{wanted}"


@pytest.mark.parametrize("severity", range(1, 6))
def test_graded_kinds_cover_the_same_area(severity: int) -> None:
    side = (8, 16, 24, 32, 36)[severity - 1]
    square, circle, cells = (
        cover(WHITE, Cell(kind, severity, "zero"))[:, 0] == 0 for kind in ("square", "circle", "cells")
    )
    assert covered_fraction(Cell("circle", severity, "zero")) == pytest.approx(side**2 / 48**2)
    assert (square.sum((1, 2)) == side**2).all()
    assert (square.any(2).sum(1) == side).all(), "a square, not cut off by the edge"
    assert circle.mean() == pytest.approx(side**2 / 48**2, rel=0.02)
    assert (abs(circle.any(2).sum(1) - circle.any(1).sum(1)) <= 1).all(), "round, so wholly inside"
    assert (cells.sum((1, 2)) == side**2).all()
    blocks, expected = cells.reshape(200, 12, 4, 12, 4).mean((2, 4)), side**2 / 48**2
    assert np.isin(blocks, (0, 1)).all(), "whole cells"
    assert abs(blocks.mean(0) - expected).max() < 5 * np.sqrt(expected * (1 - expected) / 200), "no favourite"


def test_a_patch_shows_another_face_in_its_place() -> None:
    faces = np.repeat(np.arange(1, 41, dtype=np.uint8)[:, None, None, None], 48, 3).repeat(48, 2)
    people = np.arange(40) // 2  # two samples of each
    donors = np.arange(0, 40, 3)
    maker = Benchmark((0,), people, donors, faces[donors])
    shown = maker.cover(faces, np.arange(40), Cell("patch", 3, "face"))
    foreign = (shown != faces)[:, 0]
    assert (foreign.sum((1, 2)) == 576).all(), "the square's area"
    for sample in range(40):
        (donor,) = np.unique(shown[sample, 0][foreign[sample]]) - 1
        assert donor in donors
        assert people[donor] != people[sample]
    alone = Benchmark((0,), np.zeros(40, dtype=np.int64), donors, faces[donors])
    with pytest.raises(DataError, match="needs faces of two people"):
        alone.cover(faces, np.arange(40), Cell("patch", 1, "face"))


def test_a_patch_keeps_its_place_in_the_face() -> None:
    faces = synthesize(2, 0).images
    shown = cover(faces, Cell("patch", 4, "face"))
    assert ((shown[0] == faces[0]) | (shown[0] == faces[1])).all()


def test_donors_are_a_choice_of_the_candidates_alone() -> None:
    candidates = np.arange(1000, 5000, 3)
    donors = choose_donors(candidates)
    assert len(donors) == 256 == len(np.unique(donors))
    assert np.isin(donors, candidates).all()
    assert np.array_equal(donors, choose_donors(candidates[::-1])), "whatever their order"
    assert choose_donors(np.array([5, 2])).tolist() == [2, 5]


@pytest.mark.parametrize(
    ("kind", "fraction", "covered", "free"),
    [
        ("eye_band", 0.25, (17, 10), (30, 24)),
        ("mouth_band", 0.25, (38, 24), (17, 10)),
        ("left_half", 0.5, (5, 5), (5, 30)),
        ("right_half", 0.5, (5, 30), (5, 5)),
        ("glasses", 0.1233, (17, 15), (38, 24)),
        ("mask", 0.3247, (38, 24), (15, 24)),
    ],
)
def test_fixed_covers(kind: str, fraction: float, covered: tuple[int, int], free: tuple[int, int]) -> None:
    (cell,) = grid([kind], ["zero"])
    changed = (cover(WHITE, cell) != WHITE)[:, 0]
    assert (changed == changed[0]).all()
    assert changed[0].mean() == covered_fraction(cell) == pytest.approx(fraction, abs=5e-5)
    assert changed[0][covered]
    assert not changed[0][free]
    if cell.fill == "drawn":
        shown = cover(WHITE[:1], cell)[0, 0]
        assert np.array_equal(shown, shown[:, ::-1])
        assert len(np.unique(shown)) == 3, "two gray levels and the face"


@pytest.mark.parametrize("kind", ["square", "circle", "cells", "right_half"])
def test_fills(kind: str) -> None:
    faces = np.full((50, 3, 48, 48), 7, dtype=np.uint8)
    maker = Benchmark((10, 20, 30), np.arange(50), np.arange(2), faces[:2])
    cells = [Cell(kind, KINDS[kind].severities, fill.name) for fill in FILLS]
    zero, mean, noise = (maker.cover(faces, np.arange(50), cell).swapaxes(0, 1) for cell in cells)
    covered = zero[0] != 7
    assert (zero[:, covered] == 0).all()
    assert (mean[:, covered] == np.array([10, 20, 30])[:, None]).all()
    values = noise[:, covered]
    assert np.bincount(values.ravel(), minlength=256).min() > 0.85 * values.size / 256
    assert (values[0] != values[1]).mean() > 0.99, "each channel has its own"
    for shown in (zero, mean, noise):
        assert (shown[:, ~covered] == 7).all(), "in the same place whatever the fill"


GRAY = np.full((100, 1, 48, 48), 128, dtype=np.uint8)


def test_gaussian_noise_has_its_sigma_and_is_normal() -> None:
    for severity in (1, 2, 3):
        noise = cover(GRAY, Cell("gaussian_noise", severity, "none")) / 255 - 128 / 255
        sigma = GaussianNoise.amounts[severity - 1]
        assert noise.mean() == pytest.approx(0, abs=2e-3)
        assert (abs(noise) < sigma).mean() == pytest.approx(0.6827, abs=0.01)
        if severity == 1:
            assert noise.std() == pytest.approx(sigma, rel=0.01)
            assert (abs(noise) < 0.5 * 255 / 256 - 0.01).all()


@pytest.mark.parametrize("severity", range(1, 6))
def test_impulse_noise_sets_its_share_to_black_and_white(severity: int) -> None:
    noisy = cover(GRAY, Cell("impulse_noise", severity, "none"))
    share = ImpulseNoise.amounts[severity - 1]
    for value in (0, 255):
        assert (noisy == value).mean() == pytest.approx(share / 2, rel=0.05)
    assert (noisy == 128).mean() == pytest.approx(1 - share, abs=0.005)


def test_an_image_depends_on_its_sample_only() -> None:
    """Neither on the batch that it is in nor on its place there."""
    faces = synthesize(60, 3).images
    whole, chosen = benchmark(faces), np.array([50, 3, 27])
    for cell in grid():
        everything = whole.cover(faces, np.arange(60), cell)
        assert np.array_equal(whole.cover(faces[chosen], chosen, cell), everything[chosen]), cell


def test_draws_differ_between_samples_severities_and_kinds() -> None:
    hidden = {
        (kind, severity): hidden_pixels(Cell(kind, severity, "zero"), NUMBERS, 48, 48)
        for kind in ("square", "patch", "cells")
        for severity in (3, 4)
    }
    for masks in hidden.values():
        assert len({mask.tobytes() for mask in masks}) > 110, "places differ between samples"
    heights = np.array([(masks.mean(2) * np.arange(48)).sum(1) for masks in hidden.values()])
    between = np.corrcoef(heights) - np.eye(len(hidden))
    assert abs(between).max() < 5 / np.sqrt(200), "nor does one follow from another"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [24, 32, 64, 100, 224])
def test_any_size_and_colour(side: int, channels: int) -> None:
    faces = np.full((6, channels, side, side), 250, dtype=np.uint8)
    faces += np.arange(6, dtype=np.uint8)[:, None, None, None]
    for cell in grid(None, ["mean"]):
        shown = cover(faces, cell)
        assert shown.shape == faces.shape
        assert shown.dtype == np.uint8
        fraction = covered_fraction(cell, side, side)
        if fraction is None:
            continue
        changed = (shown != faces).all(1)
        assert np.array_equal(changed, (shown != faces).any(1)), "all channels alike"
        root = np.sqrt(changed.mean((1, 2)).mean() * side**2)
        assert abs(root - np.sqrt(fraction) * side) < 0.75, "the side of a square of this area, in pixels"
        assert (faces[5] == 255).all(), "the originals stay as they are"


def test_the_images_are_the_published_ones() -> None:
    """If this changes, results under occlusion do not compare with earlier ones: say so in CHANGELOG.md."""
    faces = synthesize(40, 0).images
    total = hashlib.sha256()
    for cell in grid():
        rows = checksums(cover(faces, cell))
        total.update(total_checksum(rows).encode())
    assert total.hexdigest() == PUBLISHED


def test_squares_and_circles_lie_where_they_lay_in_the_first_version() -> None:
    digest = hashlib.sha256()
    for cell in grid(["square", "circle"], ["zero"]):
        digest.update(cover(WHITE, cell).tobytes())
    assert digest.hexdigest() == FIRST_PUBLISHED


@pytest.mark.parametrize(
    ("cell", "change", "expected"),
    [
        (Cell("square", 1, "zero"), {}, "seen"),
        (Cell("square", 4, "zero"), {}, "unseen size"),
        (Cell("square", 1, "zero"), {"area": [0.05, 0.33]}, "unseen size"),
        (Cell("square", 3, "zero"), {"value": 0.5}, "unseen kind"),
        (Cell("square", 3, "mean"), {"value": 0.5}, "seen"),
        (Cell("square", 3, "noise"), {"fill": "constant"}, "unseen kind"),
        (Cell("square", 3, "zero"), {"shape": "circle"}, "unseen kind"),
        (Cell("circle", 3, "zero"), {"shape": "circle"}, "seen"),
        (Cell("circle", 3, "zero"), {"probability": 0.0}, "unseen kind"),
        (Cell("square", 3, "zero"), {"aspect": [1.5, 2.0]}, "unseen size"),
        (Cell("eye_band", 1, "zero"), {}, "unseen size"),
        (Cell("eye_band", 1, "zero"), {"aspect": [0.2, 3.3]}, "seen"),
        (Cell("left_half", 1, "noise"), {"area": [0.02, 0.5]}, "seen"),
        (Cell("cells", 1, "zero"), {}, "unseen kind"),
        (Cell("patch", 1, "face"), {}, "unseen kind"),
        (Cell("mask", 1, "drawn"), {}, "unseen kind"),
        (Cell("impulse_noise", 1, "none"), {}, "unseen kind"),
    ],
)
def test_what_training_has_seen(cell: Cell, change: dict[str, object], expected: str) -> None:
    augment = AugmentConfig(occlusion=OcclusionConfig(**change))  # type: ignore[arg-type]
    assert seen_in_training(cell, augment) == expected
    augment.enabled = False
    assert seen_in_training(cell, augment) == "unseen kind"


def test_which_noise_training_has_seen() -> None:
    def seen(severity: int, **change: object) -> str:
        augment = AugmentConfig(noise=NoiseConfig(**change))  # type: ignore[arg-type]
        return seen_in_training(Cell("gaussian_noise", severity, "none"), augment)

    assert [seen(severity) for severity in (1, 2)] == ["seen", "unseen size"]
    assert seen(1, probability=0.0) == seen(1, sigma=[0.0, 0.0]) == "unseen kind"
