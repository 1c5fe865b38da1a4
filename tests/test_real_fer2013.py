"""The original FER2013, Training and PublicTest: read, audited, joined with FER+, and scored.

The published counts include PrivateTest, which is kept back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ferdist.cli import main
from ferdist.data import prepare
from ferdist.data.beton import Beton, labels_of, open_beton
from ferdist.evaluation.records import read_results
from ferdist.models import weights

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("fer2013")]

USAGES = ("Training", "PublicTest")


@pytest.fixture(scope="module")
def original(real_data: Path) -> dict[str, np.ndarray]:
    """Pixels, labels and rows as they are stored."""
    path = real_data / "fer2013_train_val.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with np.load(path) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def beton(
    original: dict[str, np.ndarray], real_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Beton:
    """Made of a fer2013.csv and of the rows of FER+ that belong to it."""
    place = tmp_path_factory.mktemp("fer2013")
    with (place / "fer2013.csv").open("w") as file:
        file.write("emotion,pixels,Usage\n")
        for image, label, usage in zip(*(original[k] for k in ("images", "emotion", "usage")), strict=True):
            file.write(f"{label},{' '.join(map(str, image.ravel().tolist()))},{USAGES[usage]}\n")
    head, *rows = (real_data / "fer2013new.csv").read_text().splitlines()
    (place / "fer2013new.csv").write_text("\n".join([head, *(rows[row] for row in original["row"])]) + "\n")
    return open_beton(prepare.fer2013(place / "fer2013.csv", place, ferplus=place / "fer2013new.csv"))


def test_counts_pixels_and_findings(beton: Beton, original: dict[str, np.ndarray]) -> None:
    manifest = beton.manifest
    assert manifest.splits["train"]["per_class"] == [3995, 436, 4097, 7215, 4830, 3171, 4965]
    assert manifest.splits["val"]["per_class"] == [467, 56, 496, 895, 653, 415, 607]
    assert manifest.statistics["train"]["mean"] == pytest.approx([0.5077], abs=1e-4)
    assert manifest.statistics["train"]["std"] == pytest.approx([0.2550], abs=1e-4)
    assert np.array_equal(beton.label, original["emotion"])
    assert not manifest.audit["equalised"]
    assert manifest.audit["near_constant"]["samples"] == 13
    assert manifest.audit["unique_images"] == 30765
    assert manifest.audit["copies"] == {"groups": 1274, "samples": 2807}
    assert manifest.audit["conflicting_labels"] == {"groups": 48, "samples": 131}
    assert manifest.audit["leaks"] == {"val_in_train": 280, "test_in_train_or_val": 0, "across_folds": 0}


def test_ferplus_votes_join_by_row(beton: Beton) -> None:
    majority = labels_of(beton, "ferplus-majority")
    soft = labels_of(beton, "ferplus-soft")
    assert [len(majority.scorable(beton.indices(name))) for name in ("train", "val")] == [25060, 3199]
    assert [len(soft.learnable(beton.indices(name))) for name in ("train", "val")] == [27956, 3505]


@pytest.mark.parametrize("name", weights.shipped())
def test_the_shipped_weights_reach_what_their_card_says(
    beton: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Half precision and bf16 turn a few images over, and one of the two was trained on equalised pixels."""
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", name, "--data", str(beton.path), "--split", "val", "--device", "cpu"]) == 0
    entries = read_results(Path("runs") / "weights" / name / "results.json").evaluations
    found = {one.subset: (one.samples, one.accuracy) for one in entries}
    _, facts = weights.read(weights.SHIPPED / f"{name}.safetensors")
    stated = {one["subset"]: (one["samples"], one["accuracy"]) for one in facts["val"]}
    assert found["all"] == (stated["all"][0], pytest.approx(stated["all"][1], abs=0.005))
